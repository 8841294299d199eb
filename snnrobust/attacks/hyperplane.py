"""The decision boundary as a gradient sees it: hyperplanes, the nearest of them, and the way onto one inside the box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import GradientSource, again
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.losses import margin
from snnrobust.attacks.projection import room
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["Difference", "Hyperplane", "dual_norm", "lengths", "nearest", "onto", "order"]

ORDERS: dict[type, float] = {Linf: math.inf, L2: 2.0, L1: 1.0}


def order(who: str, threat: ThreatModel, supported: tuple[type, ...]) -> float:
    """The p of the threat's norm, if ``who`` is made for it."""
    for kind in supported:
        if isinstance(threat, kind):
            return ORDERS[kind]
    names = " and ".join(kind.__name__ for kind in supported)
    raise ValueError(f"{who} is an attack for {names}, got a threat in {threat.name}: use MinimalNorm(PGD(...))")


@dataclass(frozen=True)
class Difference:
    r""":math:`z_j - z_y` of the class :math:`j` that each sample's label names, and its class :math:`y` kept here.

    A gradient source may ask for several copies of the batch at once, one behind the other.
    """

    y: Tensor
    others: Tensor

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        copies = len(labels) // len(self.others)
        if not torch.equal(labels, self.others.repeat(copies)):
            raise ValueError(
                "the gradient source must call the loss on the batch that it was given, or on whole copies of it one "
                "behind the other: it split or reordered the samples"
            )
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, labels] - logits[rows, self.y.repeat(copies)]


class Hyperplane(NamedTuple):
    r"""For each sample :math:`\{x' : f + \langle w, x' - x \rangle = 0\}`; the goal lies where that is positive."""

    normal: Tensor  # w, [B, *], float64
    value: Tensor  # f, [B], float64

    def seen_from(self, other: Tensor, x: Tensor) -> Self:
        """The same plane, its value that at ``other``."""
        along = (self.normal * (other.double() - x.double())).flatten(1).sum(1)
        return self._replace(value=self.value + along)


def lengths(change: Tensor, p: float) -> Tensor:
    """:math:`\\|v\\|_p` of each sample, float64 ``[B]``."""
    length: Tensor = torch.linalg.vector_norm(change.double().flatten(1), p, dim=1)
    return length


def dual_norm(normal: Tensor, p: float) -> Tensor:
    r""":math:`\|w\|_q` with :math:`1/p + 1/q = 1`, ``[B]``: a plane lies :math:`|f| / \|w\|_q` away in the p-norm."""
    return lengths(normal, {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p])


def nearest(
    source: GradientSource, model: nn.Module, x: Tensor, goal: Goal, classes: Tensor, stream: Stream, p: float
) -> tuple[Hyperplane, Tensor]:
    """Of the planes between ``y`` and ``classes`` ``[B, k]``, linearised at ``x``, the nearest in the p-norm; and the logits.

    With targets it is the one plane of the target against the best other class. All gradients share the draws of ``stream``.
    Spike counts tie: on a tie that does not reach the goal, :math:`f` is the smallest difference that there is between the
    first and another logit (1 where there is none), below zero. A gradient of zero is a plane infinitely far away.
    """
    if goal.targets is not None:
        gradient, logits = goal.gradient(source, model, x, margin, stream)
        return Hyperplane(_finite(gradient), _untied(goal.margin(logits.double()), logits, goal)), logits
    best: Hyperplane | None = None
    least = torch.empty(0)
    for others in classes.unbind(1):
        gradient, logits = source(model, x, others, Difference(goal.y, others), stream)
        source = again(source)
        behind = (logits.gather(1, others[:, None]) - logits.gather(1, goal.y[:, None]))[:, 0].double()
        plane = Hyperplane(_finite(gradient), _untied(behind, logits, goal))
        length = dual_norm(plane.normal, p)
        distance = torch.where(length > 0, plane.value.abs() / torch.where(length > 0, length, 1.0), torch.inf)
        if best is None:
            best, least = plane, distance
            continue
        nearer = distance < least
        least = torch.where(nearer, distance, least)
        shape = (-1, *[1] * (x.dim() - 1))
        best = Hyperplane(
            torch.where(nearer.view(shape), plane.normal, best.normal), torch.where(nearer, plane.value, best.value)
        )
    assert best is not None, "there must be a class"
    return best, logits


def _finite(gradient: Tensor) -> Tensor:
    return gradient.double().clamp(-1e300, 1e300)


def _untied(value: Tensor, logits: Tensor, goal: Goal) -> Tensor:
    gaps = logits.double().amax(1, keepdim=True) - logits.double()
    smallest = torch.where(gaps > 0, gaps, torch.inf).amin(1)
    gap = torch.where(smallest.isinf(), 1.0, smallest)
    return torch.where((value == 0) & ~goal.reached(logits), -gap, value)


def onto(x: Tensor, plane: Hyperplane, bounds: tuple[float, float], p: float) -> Tensor:
    r"""The change of smallest p-norm, float64 like ``x``, that leads onto the plane inside the box.

    .. math:: \min_\delta \|\delta\|_p \quad \text{with} \quad f + \langle w, \delta \rangle = 0, \quad l \le x + \delta \le u

    Exact: each element moves along the sign of :math:`-f w`, by :math:`\min(\lambda c_i, m_i)` with :math:`m_i` the room that
    the box leaves, :math:`c_i = 1` (Linf) or :math:`|w_i|` (L2), and the :math:`\lambda` that is needed; in L1 the elements
    of largest :math:`|w_i|` move, one after the other as far as the box lets them. Where the box does not reach the plane,
    the corner nearest to it; where :math:`w = 0`, nothing moves.
    """
    w = plane.normal.flatten(1)
    scale = w.abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    gain, need = (w / scale).abs(), (plane.value[:, None] / scale).abs()
    wish = -torch.sign(plane.value)[:, None] * w.sign()
    most = torch.where(wish != 0, room(wish, x.double().flatten(1), bounds), 0.0)
    size = _greedy(gain, most, need) if p == 1 else _level(gain, gain if p == 2 else torch.ones_like(gain), most, need)
    return (wish * size).view(x.shape)


def _level(gain: Tensor, pace: Tensor, most: Tensor, need: Tensor) -> Tensor:
    """``min(s pace, most)`` with the s at which ``gain`` times it sums to ``need``, or ``most`` where no s does.

    The sum is piecewise linear in s and bends where an element is full: sort these places, add up, solve in one piece.
    """
    moving = (gain > 1e-150) & (most > 0)  # else its square vanishes
    pace = torch.where(moving, pace, 0.0)
    filled = torch.where(moving, most / torch.where(moving, pace, 1.0), 0.0)  # the s at which an element is full
    bends, by = filled.sort(dim=1, stable=True)
    fixed = torch.where(moving, gain * most, 0.0).gather(1, by).cumsum(1)
    rates = (gain * pace).gather(1, by)
    left = rates.flip(1).cumsum(1).flip(1)  # the slope before each bend
    reached = fixed + bends * (left - rates)
    piece = (reached < need).sum(1, keepdim=True)  # how many bends lie before the solution
    within = piece < gain.shape[1]
    at = piece.clamp(max=gain.shape[1] - 1)
    before = torch.where(at > 0, fixed.gather(1, (at - 1).clamp(min=0)), 0.0)
    slope = left.gather(1, at)
    s = torch.where(within & (slope > 0), (need - before) / torch.where(slope > 0, slope, 1.0), torch.inf)
    full = moving & (s >= filled)
    return torch.where(full, most, torch.where(s.isinf(), 0.0, s) * pace)


def _greedy(gain: Tensor, most: Tensor, need: Tensor) -> Tensor:
    order = gain.argsort(dim=1, descending=True, stable=True)
    g, m = gain.gather(1, order), most.gather(1, order)
    before = (g * m).cumsum(1) - g * m
    size = torch.where(g > 0, (need - before) / torch.where(g > 0, g, 1.0), 0.0).clamp(min=0)
    return torch.zeros_like(gain).scatter(1, order, torch.minimum(size, m))
