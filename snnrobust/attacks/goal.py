"""What an attack is after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from snnrobust.attacks import losses
from snnrobust.attacks.gradient import GradientSource
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream

__all__ = ["Goal"]


@dataclass(frozen=True)
class Goal:
    """Any prediction but ``y``; or, with ``targets``, the class that they name. Both int64 ``[B]``.

    Attacks ask it for what they raise and for what counts as success, so that one code serves both cases.
    """

    y: Tensor
    targets: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """What losses take: the targets, or ``y``."""
        return self.y if self.targets is None else self.targets

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: Tensor) -> Self:
        """The goal of the samples at ``index``."""
        return type(self)(self.y[index], None if self.targets is None else self.targets[index])

    def loss(self, loss: Loss) -> Loss:
        """What is raised, a function of logits and :attr:`labels`."""
        return loss if self.targets is None else losses.targeted(loss)

    def gradient(
        self, source: GradientSource, model: nn.Module, x: Tensor, loss: Loss, stream: Stream
    ) -> tuple[Tensor, Tensor]:
        """The direction in which ``loss``, as :meth:`loss` has it, rises, and the logits."""
        return source(model, x, self.labels, self.loss(loss), stream)

    def reached(self, logits: Tensor) -> Tensor:
        """bool ``[B]``. The prediction is the first of the largest logits."""
        predicted = logits.argmax(1)
        return predicted != self.y if self.targets is None else predicted == self.targets

    def margin(self, logits: Tensor) -> Tensor:
        """By how much the goal is reached, ``[B]``: positive beyond the boundary, zero on a tie."""
        return losses.margin(logits, self.y) if self.targets is None else -losses.margin(logits, self.targets)

    def next_classes(self, logits: Tensor, k: int) -> Tensor:
        """The ``k`` likeliest classes but ``y``, ``[B, k]``, likeliest first: targets for attacks that need some."""
        others = logits.scatter(1, self.y[:, None], -torch.inf)
        return others.argsort(dim=1, descending=True, stable=True)[:, :k]
