"""Transfer attacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.draws import Stream, evaluating

__all__ = ["Transfer"]


@dataclass(frozen=True)
class Transfer(Attack):
    """Inputs crafted by ``attack`` on ``source`` and shown to the victim, whose gradient is never asked for.

    Source: Papernot, McDaniel and Goodfellow 2016.
    """

    attack: Attack
    source: nn.Module
    threat: ThreatModel = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attack such as PGD(Linf('8/255')), got {self.attack!r}")
        checks.module("source", self.source)
        object.__setattr__(self, "threat", self.attack.threat)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        with evaluating(self.source):
            return self.attack.perturb(self.source, x, goal, stream.fork("transfer"))

    def _check_targets(self, targets: Tensor, y: Tensor) -> None:
        self.attack._check_targets(targets, y)

    def at(self, eps: Eps) -> Self:
        return replace(self, attack=self.attack.at(eps))
