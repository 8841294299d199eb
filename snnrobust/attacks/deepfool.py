"""DeepFool."""

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
from snnrobust.attacks.hyperplane import dual_norm, nearest, order
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["DeepFool"]

LEAST = 1e-4  # of the width of the box, what a step moves at least: rounding and slight curvature are not to stop it


@dataclass(frozen=True)
class DeepFool(Attack):
    r"""Steps onto the nearest linearised boundary, until the sample is beyond the true one.

    .. math:: r = \frac{|f_j|}{\|w_j\|_q^q} |w_j|^{q-1} \operatorname{sign} w_j, \quad
        j = \arg\min_j \frac{|f_j|}{\|w_j\|_q}, \quad f_j = z_j - z_y, \quad w_j = \nabla_x f_j, \quad
        x' = x + (1 + \text{overshoot}) \sum r

    with q = 2 for ``L2`` and 1 for ``Linf``; each :math:`x'` is clipped to the box. It minimises the distance, whatever the
    budget: a result beyond it is projected back, and need not be adversarial any more. With targets there is one boundary, of
    the target against the best other class.

    Args:
        threat: ``L2`` or ``Linf``.
        steps: At most; a sample that has reached the goal stays where it is.
        overshoot: Relative.
        classes: How many classes, the likeliest at ``x``, are considered besides the label; None, all. Each is a gradient a step.
        gradient: What is differentiated.
        selection_draws: A model with randomness is fooled where the goal is reached in as many draws of their own.

    Source: Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural networks". A
    step is at least 1e-4 of the width of the box, and the rule for ties is ours.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 50
    overshoot: float = 0.02
    classes: int | None = 9
    gradient: GradientSource = field(default_factory=Backprop)
    selection_draws: int = 32

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.number("overshoot", self.overshoot, 0.0)
        checks.count("selection_draws", self.selection_draws)
        checks.function("gradient", self.gradient)
        if self.classes is not None:
            checks.count("classes", self.classes)
        if isinstance(self.threat, ThreatModel):
            order("DeepFool", self.threat, (L2, Linf))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        p = order("DeepFool", self.threat, (L2, Linf))
        closest = Closest(model, x, goal, self.threat, stream, self.selection_draws)
        low, high = self.threat.bounds
        logits = predict(model, x, goal, stream.fork("start"))
        classes = goal.next_classes(logits, min(self.classes or logits.shape[1], logits.shape[1] - 1))
        active = torch.arange(len(x), device=x.device)
        x_adv, total = x.clone(), torch.zeros_like(x, dtype=torch.float64)
        source = begin(self.gradient)
        for i in range(self.steps):
            fooled = closest.offer(active, x_adv[active], logits, i)
            active = active[~fooled]
            if len(active) == 0:
                break
            aim, here = goal.select(active), stream.select(active.cpu())
            plane, _ = nearest(source, model, x_adv[active], aim, classes[active], here.fork("step", i), p)
            if i == 0:
                warn_if_blunt(self, plane.normal)
            length = dual_norm(plane.normal, p)
            blunt = length == 0
            length = torch.where(blunt, 1.0, length)
            distance = (plane.value.abs() / length).clamp(min=LEAST * (high - low))
            shape = (-1, *[1] * (x.dim() - 1))
            way = plane.normal / length.view(shape) if p == 2 else plane.normal.sign()
            total[active] += torch.where(blunt, 0.0, distance).view(shape) * way
            moved = x[active].double() + (1 + self.overshoot) * total[active]
            x_adv[active] = moved.clamp(low, high).to(x.dtype)
            logits = predict(model, x_adv[active], aim, here.fork("check", i))
        else:
            closest.offer(active, x_adv[active], logits, self.steps)
        return closest.within(x_adv)
