"""The basic iterative method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource, begin
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["BIM", "Direction"]

Direction = Callable[[Tensor], Tensor]
"""What is stepped along, given a gradient."""


@dataclass(frozen=True)
class BIM(Attack):
    r"""FGSM in small steps from ``x`` itself.

    .. math:: x_{i+1} = \Pi \big( x_i + \alpha \operatorname{sign} \nabla_x L(f(x_i), y) \big)

    In other norms than Linf, the threat's own steepest step takes the place of the sign.

    Args:
        threat: Budget and box.
        steps: Iterations.
        step_size: :math:`\alpha`, in the threat's norm; default :math:`\epsilon / \text{steps}`, so that the last step may just
            reach the edge; in L0 1 / 2.5 of the threat's own.
        gradient: What is differentiated.
        loss: What is raised.

    Source: Kurakin, Goodfellow and Bengio 2017, "Adversarial examples in the physical world".
    """

    threat: ThreatModel
    steps: int = 10
    step_size: float | None = None
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.function("gradient", self.gradient)
        checks.function("loss", self.loss)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", checks.fraction("step_size", self.step_size))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        return self._walk(model, x, goal, stream, lambda gradient: gradient)

    def _walk(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream, direction: Direction) -> Tensor:
        size = self.threat.step_size(x, self.steps) / 2.5 if self.step_size is None else self.step_size
        source, x_adv = begin(self.gradient), x
        for i in range(self.steps):
            gradient, _ = goal.gradient(source, model, x_adv, self.loss, stream.fork("step", i))
            if i == 0:
                warn_if_blunt(self, gradient)
            x_adv = self.threat.project(self.threat.step(x_adv, direction(gradient), size), x)
        return x_adv
