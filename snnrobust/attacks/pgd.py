"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource, begin
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.selection import always_reached, worst_of
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream, is_stochastic

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(Attack):
    r"""Steepest ascent of the loss, projected onto the threat after each step.

    .. math:: x_{i+1} = \Pi \big( x_i + \alpha \operatorname{sign} \nabla_x L(f(x_i), y) \big)

    In other norms than Linf the threat's own steepest step takes the place of the sign.

    Args:
        threat: Budget and box.
        steps: Iterations of one restart.
        step_size: :math:`\alpha`, the length of a step in the threat's norm; default the threat's ``step_size``, which is
            :math:`2.5 \epsilon / \text{steps}` but for L0.
        restarts: Independent random starts. With more than one, a sample keeps the candidate that is worst for the model on
            ``selection_draws`` draws of their own (one, for a model without randomness); with one, the last iterate.
        random_start: Start uniformly in the ball instead of at ``x``.
        gradient: What is differentiated; ``EOT(n)`` for models with randomness.
        loss: What is raised.
        early_stop: A sample that has reached the goal, in all of ``selection_draws`` draws, stays where it is. This makes another
            attack: it keeps the first adversarial input, not the last.
        selection_draws: See above.

    Source: Madry et al. 2018.
    """

    threat: ThreatModel
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy
    early_stop: bool = False
    selection_draws: int = 32

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.count("restarts", self.restarts)
        checks.count("selection_draws", self.selection_draws)
        checks.function("gradient", self.gradient)
        checks.function("loss", self.loss)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", checks.fraction("step_size", self.step_size))
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts > 1 need random_start=True: without it they are all the same")

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        selects = self.restarts > 1 or self.early_stop
        draws = self.selection_draws if selects and is_stochastic(model, x[:8]) else 1
        if self.restarts == 1:
            return self._climb(model, x, goal, stream.fork("restart", 0), draws)
        climbs = (self._climb(model, x, goal, stream.fork("restart", r), draws) for r in range(self.restarts))
        return worst_of(model, climbs, goal, stream.fork("selection"), draws)

    def _climb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream, draws: int) -> Tensor:
        x_adv = self.threat.random_start(x, stream.fork("start")) if self.random_start else x.clone()
        active = torch.arange(len(x), device=x.device)
        source = begin(self.gradient)
        for i in range(self.steps):
            at, aim, step_stream = x_adv[active], goal.select(active), stream.select(active.cpu()).fork("step", i)
            gradient, logits = aim.gradient(source, model, at, self.loss, step_stream)
            if i == 0:
                warn_if_blunt(self, gradient)
            moving = torch.ones(len(at), dtype=torch.bool, device=x.device)
            if self.early_stop:
                moving = ~always_reached(model, at, aim, logits, step_stream.fork("stop"), draws)
            active = active[moving]
            if len(active) == 0:
                break
            threat, start = self.threat.select(active), x[active]
            size = threat.step_size(start, self.steps) if self.step_size is None else self.step_size
            x_adv[active] = threat.project(threat.step(at[moving], gradient[moving], size), start)
        return x_adv
