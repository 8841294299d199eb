"""Transfer attacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn

from snnrobust.attacks.attack import Attack, undisturbed
from snnrobust.attacks.threat import Linf
from snnrobust.draws import Stream

__all__ = ["Transfer"]


@dataclass(frozen=True)
class Transfer(Attack):
    """Inputs crafted by ``attack`` on ``source`` and shown to the victim, whose gradient is never asked for.

    Source: Papernot, McDaniel and Goodfellow 2016.
    """

    attack: Attack
    source: nn.Module
    threat: Linf = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threat", self.attack.threat)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> Tensor:
        with undisturbed(self.source):
            return self.attack.perturb(self.source, x, y, stream.fork("transfer"))

    def at(self, eps: float | str) -> Self:
        return replace(self, attack=self.attack.at(eps))
