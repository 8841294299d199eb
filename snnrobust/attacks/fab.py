"""The fast adaptive boundary attack."""

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
from snnrobust.attacks.hyperplane import lengths, nearest, onto, order
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["FAB"]

SUPPORTED = (Linf, L2, L1)


@dataclass(frozen=True)
class FAB(Attack):
    r"""Projections onto the linearised boundary, drawn towards ``x``, and a step back wherever the boundary is crossed.

    With :math:`\delta` and :math:`\delta_0` the smallest changes, inside the box, that lead from :math:`x_i` and from :math:`x`
    onto the nearest boundary linearised at :math:`x_i`:

    .. math:: x_{i+1} = (1 - \alpha) (x_i + \eta \delta) + \alpha (x + \eta \delta_0), \quad
        \alpha = \min \Big( \frac{\|\delta\|_p}{\|\delta\|_p + \|\delta_0\|_p}, \alpha_{\max} \Big)

    and where that is adversarial, it is a candidate and :math:`x_{i+1} \leftarrow (1 - \beta) x + \beta x_{i+1}`. It minimises
    the distance, whatever the budget: a result beyond it is projected back, and need not be adversarial any more. With targets
    there is one boundary, of the target against the best other class.

    Args:
        threat: ``Linf``, ``L2`` or ``L1``.
        steps: Iterations of one run.
        restarts: Runs; the first starts at ``x``, the others at random within half the smaller of budget and distance found.
        classes: How many classes, the likeliest at ``x``, are considered besides the label; None, all.
        each_class: A run for each of these classes alone ("FAB-T"): a gradient a step instead of one for each class.
        alpha_max, eta, beta: See above.
        final_steps: Bisections of the way from ``x`` to the closest input at the end; forward passes only.
        gradient: What is differentiated.
        selection_draws: A model with randomness is fooled where the goal is reached in as many draws of their own.

    Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack". The rule for
    ties is ours.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 100
    restarts: int = 1
    classes: int | None = None
    each_class: bool = False
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_steps: int = 8
    gradient: GradientSource = field(default_factory=Backprop)
    selection_draws: int = 32

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.count("restarts", self.restarts)
        checks.count("final_steps", self.final_steps, low=0)
        checks.count("selection_draws", self.selection_draws)
        checks.boolean("each_class", self.each_class)
        checks.number("alpha_max", self.alpha_max, 0.0, 1.0)
        checks.number("eta", self.eta, 1.0)
        checks.number("beta", self.beta, 0.0, 1.0)
        checks.function("gradient", self.gradient)
        if self.classes is not None:
            checks.count("classes", self.classes)
        if isinstance(self.threat, ThreatModel):
            order("FAB", self.threat, SUPPORTED)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        closest = Closest(model, x, goal, self.threat, stream, self.selection_draws)
        logits = predict(model, x, goal, stream.fork("start"))
        wrong = closest.offer(torch.arange(len(x), device=x.device), x, logits, "start")
        active = (~wrong).nonzero()[:, 0]
        attempt = x.clone()
        if len(active):
            classes = goal.next_classes(logits, min(self.classes or logits.shape[1], logits.shape[1] - 1))
            one_by_one = self.each_class and goal.targets is None
            runs = classes[:, :, None].unbind(1) if one_by_one else (classes,)
            for restart in range(self.restarts):
                for r, others in enumerate(runs):
                    attempt = self._run(closest, attempt, active, others, restart, stream.fork("run", restart, r))
            self._shorten(closest, active, stream.fork("final"))
        return closest.within(attempt)

    def _run(
        self, closest: Closest, attempt: Tensor, active: Tensor, classes: Tensor, restart: int, stream: Stream
    ) -> Tensor:
        p = order("FAB", self.threat, SUPPORTED)
        model, start, aim = closest.model, closest.x[active], closest.goal.select(active)
        stream, (low, high) = stream.select(active.cpu()), self.threat.bounds
        exact, shape = start.double(), (-1, *[1] * (start.dim() - 1))
        x_i = start
        if restart:
            eps = torch.tensor(self.threat.eps, dtype=torch.float64, device=start.device)
            eps = eps[active] if eps.dim() else eps
            radius = torch.minimum(closest.distance[active], eps) / 2
            x_i = self.threat.at(radius).random_start(start, stream.fork("start"))
        source = begin(self.gradient)
        for i in range(self.steps):
            plane, _ = nearest(source, model, x_i, aim, classes[active], stream.fork("step", i), p)
            if i == 0:
                warn_if_blunt(self, plane.normal)
            near = onto(x_i, plane, (low, high), p)
            direct = onto(start, plane.seen_from(start, x_i), (low, high), p)
            a, b = lengths(near, p), lengths(direct, p)
            alpha = (a / torch.where(a + b > 0, a + b, 1.0)).clamp(max=self.alpha_max).view(shape)
            mixed = (1 - alpha) * (x_i.double() + self.eta * near) + alpha * (exact + self.eta * direct)
            x_i = mixed.clamp(low, high).to(start.dtype)
            logits = predict(model, x_i, aim, stream.fork("check", i))
            reached = closest.offer(active, x_i, logits, stream.key, i)
            back = (exact + self.beta * (x_i.double() - exact)).clamp(low, high).to(start.dtype)
            x_i = torch.where(reached.view(shape), back, x_i)
        attempt = attempt.clone()
        attempt[active] = x_i
        return attempt

    def _shorten(self, closest: Closest, active: Tensor, stream: Stream) -> None:
        """Bisection of the segment from ``x`` to the closest input, as long as what is nearer reaches the goal too."""
        index = active[closest.distance[active].isfinite()]
        if len(index) == 0:
            return
        x, aim, here = closest.x[index].double(), closest.goal.select(index), stream.select(index.cpu())
        way = closest.x_adv[index].double() - x
        low = torch.zeros(len(index), dtype=torch.float64, device=x.device)
        high, shape = torch.ones_like(low), (-1, *[1] * (x.dim() - 1))
        for i in range(self.final_steps):
            share = (low + high) / 2
            at = (x + share.view(shape) * way).clamp(*self.threat.bounds).to(closest.x.dtype)
            reached = closest.offer(index, at, predict(closest.model, at, aim, here.fork(i)), "final", i)
            low, high = torch.where(reached, low, share), torch.where(reached, share, high)
