"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack):
    r"""One step of the whole budget along the sign of the gradient: :math:`x' = x + \epsilon \operatorname{sign} \nabla_x L`.

    In other norms than Linf, the threat's own steepest step of the whole budget, projected.

    Source: Goodfellow, Shlens and Szegedy 2015.
    """

    threat: ThreatModel
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        checks.function("gradient", self.gradient)
        checks.function("loss", self.loss)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        gradient, _ = goal.gradient(self.gradient, model, x, self.loss, stream.fork("step"))
        warn_if_blunt(self, gradient)
        return self.threat.project(self.threat.step(x, gradient, self.threat.step_size(x)), x)
