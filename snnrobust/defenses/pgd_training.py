"""Adversarial training with projected gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from snnrobust import checks
from snnrobust.attacks import PGD
from snnrobust.defenses.adversarial import Adversarial, positive
from snnrobust.learning_rules import RULES

__all__ = ["PGDTraining"]


@dataclass(frozen=True, kw_only=True)
class PGDTraining(Adversarial):
    r"""Learn what :class:`~snnrobust.attacks.PGD` finds.

    .. math:: \min_\theta \mathbb{E} \max_{\|x' - x\|_\infty \le \epsilon} L(f_\theta(x'), y)

    Args:
        steps: Of the attack.
        step_size: Default :math:`2.5 \epsilon / \text{steps}`.
        random_start: Start uniformly in the ball.
        share: Of each batch that is attacked, in (0, 1]: 1 is adversarial training as published, 0.5 half clean and half
            adversarial. Attacked are the first ``floor(share * size + 1/2)`` samples of the shuffled batch: of an odd one the
            larger half.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks".
    """

    name: ClassVar[str] = "PGDTraining"

    steps: int = 7
    step_size: float | str | None = None
    random_start: bool = True
    share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("steps", self.steps)
        checks.boolean("random_start", self.random_start)
        checks.number("share", self.share, 0.0, 1.0, exclusive_low=True, hint="with none attacked this is BPTT")
        object.__setattr__(self, "step_size", positive("step_size", self.step_size))

    @property
    def attack(self) -> PGD:
        size = positive("step_size", self.step_size)
        return PGD(self.threat, self.steps, size, random_start=self.random_start, gradient=self._gradient())

    def attacked(self, size: int) -> int:
        return math.floor(self.share * size + 0.5)


RULES[PGDTraining.name] = PGDTraining
