"""PGD whose step size follows its progress."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.ascent import check_settings, search
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["APGD"]


@dataclass(frozen=True)
class APGD(Attack):
    r"""Auto-PGD: ascent with momentum, whose step size is halved where it makes no progress.

    .. math::

        z = \Pi \big( x_i + \eta_i d(\nabla_x L(f(x_i), y)) \big), \quad
        x_{i+1} = \Pi \big( x_i + \alpha (z - x_i) + (1 - \alpha) (x_i - x_{i-1}) \big)

    with the threat's steepest step :math:`d`, :math:`\eta_0 = 2 \epsilon` and no momentum in the first step. At checkpoints
    after :math:`\lceil p_j \cdot \text{steps} \rceil` steps, :math:`p_1 = 0.22`, :math:`p_{j+1} = p_j + \max(p_j - p_{j-1} -
    0.03, 0.06)`, a sample halves :math:`\eta` and goes on from its best point if at most a share :math:`\rho` of the steps since
    the last checkpoint raised the loss, or if neither :math:`\eta` nor the best loss has changed since then.

    What it returns is the point of the largest margin, not that of the largest loss: DLR has no bound where the first and third
    logits meet, and is largest at points that are hardly wrong.

    Args:
        threat: Budget and box.
        steps: Iterations of one restart, each one gradient; the last point costs another forward pass, and a gradient where the
            model has randomness.
        restarts: Independent random starts, of which each sample keeps the worst for the model on ``selection_draws`` draws.
        random_start: Start uniformly in the ball instead of at ``x``.
        gradient: What is differentiated; ``EOT(n)`` for models with randomness.
        loss: What is raised.
        early_stop: A sample that has reached the goal, in all of ``selection_draws`` draws, stays where it is, and costs
            nothing more in this restart and in others.
        rho: :math:`\rho`.
        momentum: :math:`\alpha`, the weight of the new step.
        selection_draws: See above; one, for a model without randomness.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks". Their own method for L1 is another (2021): here L1 takes its threat's step. In L0, which is ours, :math:`\eta` is
    the threat's own and never halved.
    """

    threat: ThreatModel
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy
    early_stop: bool = False
    rho: float = 0.75
    momentum: float = 0.75
    selection_draws: int = 32

    def __post_init__(self) -> None:
        check_settings(self)
        checks.number("rho", self.rho, 0.0, 1.0)
        checks.number("momentum", self.momentum, 0.0, 1.0)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        return search(self, model, x, goal, [goal], stream, 2.0, self.rho, lambda: Momentum(self.momentum))


class Momentum:
    """A step, averaged with the one before."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.previous: Tensor | None = None

    def __call__(self, threat: ThreatModel, x: Tensor, at: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        step = threat.project(threat.step(at, gradient, size), x)
        if self.previous is not None:
            mixed = torch.lerp(at, step, self.weight).add_(at - self.previous, alpha=1 - self.weight)
            step = threat.project(mixed, x)
        self.previous = at
        return step

    def keep(self, index: Tensor) -> None:
        self.previous = None if self.previous is None else self.previous[index]
