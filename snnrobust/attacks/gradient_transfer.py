"""The gradient of one model at the inputs of another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import Around, Backprop, GradientSource, registered
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, draws, evaluating

__all__ = ["FromModel"]


@registered
@dataclass(frozen=True)
class FromModel(Around):
    """The gradient of ``model``, where the victim's own is blunt; the victim gives the logits, one forward pass without gradient.

    ``Transfer`` shows the victim nothing but the result. Here the attack sees the victim's predictions at each step, so that
    ``early_stop`` and restarts mean the victim.

    Args:
        model: From the same inputs to the same classes; it is put into eval mode while it is asked.
        source: What is called on it.

    Source: Papernot, McDaniel and Goodfellow 2016.
    """

    spiking: ClassVar[bool] = False

    model: nn.Module
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.module("model", self.model)
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
            logits = checks.call(model, x, y)
        with evaluating(self.model):
            gradient, _ = self.source(self.model, x, y, loss, stream.fork("from model"))
        return gradient, logits
