"""FGSM from a random point."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["RFGSM"]


@dataclass(frozen=True)
class RFGSM(Attack):
    r"""A random sign step, then FGSM with the rest of the budget.

    .. math::

        x' = x + \alpha \epsilon r, \quad r \in \{-1, 1\}, \qquad
        x'' = \Pi \big( x' + (1 - \alpha) \epsilon \operatorname{sign} \nabla_x L(f(x'), y) \big)

    In L2 and L1 a random direction and the threat's own steepest step. Not in L0, where a step has no length to share.

    Args:
        threat: Budget and box.
        random_share: :math:`\alpha`, the share of the budget that the random step spends.
        gradient: What is differentiated.
        loss: What is raised.

    Source: Tramèr et al. 2018, "Ensemble adversarial training: attacks and defenses".
    """

    threat: ThreatModel
    random_share: float = 0.5
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        checks.number("random_share", self.random_share, 0.0, 1.0)
        checks.function("gradient", self.gradient)
        checks.function("loss", self.loss)
        if isinstance(self.threat, L0):
            raise ValueError("RFGSM shares a budget between two steps, which L0 cannot: use Linf, L2 or L1")

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        eps, share = self.threat.eps, self.random_share
        part = self.threat.at(tuple(share * e for e in eps) if isinstance(eps, tuple) else share * eps)
        start = part.boundary(x, stream.fork("start"))
        gradient, _ = goal.gradient(self.gradient, model, start, self.loss, stream.fork("step"))
        warn_if_blunt(self, gradient)
        size = self.threat.step_size(x) * (1 - share)
        return self.threat.project(self.threat.step(start, gradient, size), x)
