"""The L1 ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.attacks.projection import norm, room, settle, shrink, slack, stretch, top
from snnrobust.attacks.threat import Ball, Eps, uniform_like
from snnrobust.draws import Stream

__all__ = ["L1"]


@dataclass(frozen=True, init=False)
class L1(Ball):
    r"""The sum of all changes of a sample is bounded: :math:`\|x' - x\|_1 \le \epsilon`, inside the box.

    Args:
        eps: In units of the input, a number, a fraction or one number a sample; at most the width of the box times the number of
            elements.
        bounds: The box, lowest and highest value of an input.
        density: Share of the elements that a step moves, at least one of them. Moving one, ``density=0``, is the steepest ascent;
            it takes many steps.

    Source: Tramèr and Boneh 2019, "Adversarial training and robustness for multiple perturbations" (the step); Croce and Hein
    2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers" (the projection onto ball and box together).
    """

    density: float = 0.01

    def __init__(self, eps: Eps, bounds: tuple[float, float] = (0.0, 1.0), density: float = 0.01) -> None:
        super().__init__(eps, bounds)
        object.__setattr__(self, "density", checks.number("density", density, 0.0, 1.0))

    def largest(self, x: Tensor) -> float:
        """The width of the box times the number of elements."""
        return (self.bounds[1] - self.bounds[0]) * x[0].numel()

    def _nearest(self, wish: Tensor, x: Tensor) -> Tensor:
        flat, exact, eps = wish.flatten(1), x.flatten(1), self.budget(x.flatten(1))
        most, margin = room(flat, exact, self.bounds), slack(flat.shape[1])
        size = torch.minimum(flat.abs(), most)
        over = norm(size, 1) > eps * (1 - margin)
        if over.any():  # a margin twice as wide, so that the result is not projected again
            size = torch.where(over, shrink(flat.abs(), most, eps * (1 - 2 * margin)), size)
        return torch.copysign(size, flat).view_as(wish)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """``size``, shared equally by the elements that gain most by it, each along the sign of its gradient, not projected.

        An element gains its gradient times its share, or times the room that the box leaves it. Where the box is far this is the
        steepest ascent of L1 length ``size`` in which no element moves by more than its share.
        """
        k = max(1, math.ceil(self.density * gradient[0].numel()))
        left = torch.minimum(room(gradient, x_adv.double(), self.bounds), torch.as_tensor(size).double() / k)
        gain = (gradient.abs().double().clamp(max=1e300) * left).flatten(1)
        most = gain.amax(1, keepdim=True)
        grain = min(torch.finfo(gradient.dtype).eps ** 0.5, 1e-3) * torch.where(most > 0, most, 1.0)
        gain = (gain / grain).round()  # of those that are equal up to rounding, as spikes often make them, the first
        signs = torch.where((gain > 0) & top(gain, k), gradient.flatten(1).sign(), 0.0)
        count = signs.abs().sum(1, keepdim=True, dtype=torch.float64).clamp(min=1)
        return x_adv + size * (signs / count).view_as(gradient).to(x_adv.dtype)

    def random_start(self, x: Tensor, stream: Stream) -> Tensor:
        """Uniform in the ball, then projected."""
        direction = self._exponential(x, stream)
        beyond = -torch.log1p(-uniform_like(x.double().flatten(1)[:, :1], stream.fork("radius")))
        total = norm(direction, 1) + beyond
        change = self.budget(direction) * direction / torch.where(total > 0, total, 1.0)
        return settle(x, x, self._nearest(change.view(x.shape), x.double()), self.bounds)

    def boundary(self, x: Tensor, stream: Stream) -> Tensor:
        """In a direction uniform on the L1 sphere, as far as the budget reaches: what meets the box stops, the rest goes on."""
        direction, exact = self._exponential(x, stream), x.double().flatten(1)
        radius = self.budget(exact) * (1 - 2 * slack(exact.shape[1]))
        size = stretch(direction.abs(), room(direction, exact, self.bounds), radius, 1)
        return settle(x, x, torch.copysign(size, direction).view(x.shape), self.bounds)

    def _exponential(self, x: Tensor, stream: Stream) -> Tensor:
        """Exponential draws with random signs ``[B, d]``: divided by their L1 norm they are uniform on the L1 sphere."""
        flat = x.double().flatten(1)
        sign = torch.where(uniform_like(flat, stream.fork("sign")) < 0.5, -1.0, 1.0)
        return -torch.log1p(-uniform_like(flat, stream)) * sign

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``: the sum of all changes."""
        return norm((x_adv.double() - x.double()).flatten(1), 1)[:, 0]
