"""Carlini and Wagner's L2 attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.closest import Closest, predict
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource, begin
from snnrobust.attacks.hyperplane import order
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.losses import margin
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream

__all__ = ["CW"]

INSIDE = 0.999999  # of half the width of the box: its edges would be at infinity
PROGRESS = 0.9999  # of the loss a tenth of the steps before, what counts as progress


@dataclass(frozen=True)
class CW(Attack):
    r"""Adam on the squared distance and the margin together, over a variable that cannot leave the box.

    .. math:: \min_w \|x' - x\|_2^2 + c \max \big( \kappa - m(x'), 0 \big), \quad x' = \tfrac{u + l}{2} + \tfrac{u - l}{2} \tanh w

    with :math:`m` the margin by which the goal is reached: :math:`\max_{j \ne y} z_j - z_y`, or with targets
    :math:`z_t - \max_{j \ne t} z_j`. For each sample :math:`c` is searched: tenfold until the goal is reached, then by
    bisection; the closest input of all is kept. The budget plays no part in that: a result beyond it is projected back, and need
    not be adversarial any more.

    Args:
        threat: ``L2``.
        steps: Of Adam, for each c.
        search_steps: Values of c.
        lr: Of Adam.
        c: The first value.
        confidence: :math:`\kappa \ge 0`, in units of the logits.
        abort_early: A sample whose loss has not fallen in a tenth of the steps leaves this c.
        gradient: What is differentiated: the margin is, through it.
        selection_draws: A model with randomness is fooled where the goal is reached in as many draws of their own.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks". There, up to 10,000 steps.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 200
    search_steps: int = 7
    lr: float = 0.05
    c: float = 0.1
    confidence: float = 0.0
    abort_early: bool = True
    gradient: GradientSource = field(default_factory=Backprop)
    selection_draws: int = 32

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.count("search_steps", self.search_steps)
        checks.count("selection_draws", self.selection_draws)
        checks.number("lr", self.lr, 0.0, exclusive_low=True)
        checks.number("c", self.c, 0.0, exclusive_low=True)
        checks.number("confidence", self.confidence, 0.0)
        checks.boolean("abort_early", self.abort_early)
        checks.function("gradient", self.gradient)
        if isinstance(self.threat, ThreatModel):
            order("CW", self.threat, (L2,))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        closest = Closest(model, x, goal, self.threat, stream, self.selection_draws)
        everyone = torch.arange(len(x), device=x.device)
        logits = predict(model, x, goal, stream.fork("start"))
        sure = (goal.margin(logits) >= self.confidence).nonzero()[:, 0]
        closest.offer(everyone[sure], x[sure], logits[sure], "start")
        active = closest.distance.isinf().nonzero()[:, 0]
        attempt = x.clone()
        c = torch.full((len(x),), self.c, dtype=torch.float64, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for search in range(self.search_steps if len(active) else 0):
            found = self._descend(closest, active, c[active], attempt, stream.fork("search", search), search)
            tried = c[active]
            high[active] = torch.where(found, tried, high[active])
            low[active] = torch.where(found, low[active], tried)
            c[active] = torch.where(high[active].isinf(), tried * 10, (low[active] + high[active]) / 2)
        return closest.within(attempt)

    def _descend(
        self, closest: Closest, active: Tensor, c: Tensor, attempt: Tensor, stream: Stream, search: int
    ) -> Tensor:
        """One run of Adam for the samples at ``active``: whether they reached the goal. ``attempt`` gets their last inputs."""
        bottom, top = self.threat.bounds
        middle, half = (bottom + top) / 2, (top - bottom) / 2
        shape = (-1, *[1] * (closest.x.dim() - 1))
        w = torch.atanh((closest.x[active].double() - middle) / half * INSIDE)
        centre = middle + half * w.tanh()
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        before = torch.full_like(c, torch.inf)
        found = torch.zeros(len(active), dtype=torch.bool, device=w.device)
        going = torch.arange(len(active), device=w.device)
        source = begin(self.gradient)
        for i in range(self.steps):
            index = active[going]
            aim, here = closest.goal.select(index), stream.select(index.cpu()).fork("step", i)
            squashed = w[going].tanh()
            at = (middle + half * squashed).clamp(bottom, top).to(attempt.dtype)
            gradient, logits = aim.gradient(source, closest.model, at, margin, here)
            if search == i == 0:
                warn_if_blunt(self, gradient)
            reached, beyond = aim.reached(logits), aim.margin(logits.double())
            sure = reached & (beyond >= self.confidence)
            rows = sure.nonzero()[:, 0]
            sure[rows] = closest.offer(index[rows], at[rows], logits[rows], search, i)
            found[going] |= sure
            attempt[index] = at
            change = middle + half * squashed - centre[going]
            pull = torch.where(sure, 0.0, c[going])
            slope = (2 * change - pull.view(shape) * gradient.double()) * half * (1 - squashed.square())
            first[going] = 0.9 * first[going] + 0.1 * slope
            second[going] = 0.999 * second[going] + 0.001 * slope.square()
            step = first[going] / (1 - 0.9 ** (i + 1))
            w[going] -= self.lr * step / ((second[going] / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
            if self.abort_early and i % -(-self.steps // 10) == 0:
                loss = change.flatten(1).square().sum(1) + pull * (self.confidence - beyond).clamp(min=0)
                better = loss <= PROGRESS * before[going]
                before[going] = loss
                going = going[better]
                if len(going) == 0:
                    break
        return found
