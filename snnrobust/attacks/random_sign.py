"""The noise baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from snnrobust.attacks.attack import Attack
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["RandomSign"]


@dataclass(frozen=True)
class RandomSign(Attack):
    r""":math:`x' = x + \epsilon r`, with :math:`r` uniform in :math:`\{-1, 1\}`: what a budget does without knowledge.

    An attack that is not clearly stronger has learnt nothing about the model.
    """

    threat: ThreatModel

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> Tensor:
        return self.threat.corner(x, stream.fork("corner"))
