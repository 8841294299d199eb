"""The noise baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["RandomNoise", "RandomSign"]


@dataclass(frozen=True)
class RandomNoise(Attack):
    """A random point at which the whole budget is spent: what a budget does without knowledge.

    For ``Linf`` random signs, for ``L2`` and ``L1`` a random direction, for ``L0`` random pixels at the ends of the box. An
    attack that is not clearly stronger has learnt nothing about the model.
    """

    targetable: ClassVar[bool] = False

    threat: ThreatModel

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        return self.threat.boundary(x, stream.fork("corner"))


@dataclass(frozen=True)
class RandomSign(RandomNoise):
    r""":math:`x' = x + \epsilon r`, with :math:`r` uniform in :math:`\{-1, 1\}`: :class:`RandomNoise` of ``Linf``."""

    def __post_init__(self) -> None:
        if isinstance(self.threat, ThreatModel) and not isinstance(self.threat, Linf):
            raise ValueError(f"RandomSign is noise for Linf, got a threat in {self.threat.name}: use RandomNoise")
