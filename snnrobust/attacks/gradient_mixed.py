"""Several gradient sources within one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import GradientSource, again, begin, registered
from snnrobust.attacks.losses import Loss
from snnrobust.attacks.projection import unit
from snnrobust.draws import Stream

__all__ = ["Mixed"]


@registered
@dataclass(frozen=True)
class Mixed:
    r"""The mean direction of several sources, each with the same weight in each sample.

    .. math:: g = \frac{1}{n} \sum_{i=1}^n g_i / \|g_i\|_2

    All of them see the same draws of the model; the logits are the first one's. The length of the result says how far they agree,
    not how steep the loss is. A source without any gradient for a sample has no say in it.

    Args:
        sources: At least two, such as ``(ASSG(), RGA(), Surrogate(ATan(4.0)))``.
    """

    spiking: ClassVar[bool] = True

    sources: tuple[GradientSource, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sources, tuple) or len(self.sources) < 2:
            raise ValueError(f"sources must be a tuple of at least two gradient sources, got {self.sources!r:.80}")
        for i, source in enumerate(self.sources):
            checks.function(f"sources[{i}]", source)

    def begin(self) -> Self:
        return replace(self, sources=tuple(map(begin, self.sources)))

    def again(self) -> Self:
        return replace(self, sources=tuple(map(again, self.sources)))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        answers = [source(model, x, y, loss, stream) for source in self.sources]
        return torch.stack([unit(gradient, 2) for gradient, _ in answers]).mean(0), answers[0][1]
