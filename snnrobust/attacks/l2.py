"""The Euclidean ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snnrobust.attacks.projection import norm, room, settle, slack, stretch, unit
from snnrobust.attacks.threat import Ball, normal_like, uniform_like
from snnrobust.draws import Stream

__all__ = ["L2"]


@dataclass(frozen=True, init=False)
class L2(Ball):
    r"""The whole change of a sample is bounded: :math:`\|x' - x\|_2 \le \epsilon`, inside the box.

    Args:
        eps: In units of the input, a number, a fraction or one number a sample; at most the diagonal of the box.
        bounds: The box, lowest and highest value of an input.

    The projection is the exact one onto ball and box together: scaling onto the ball and clipping to the box afterwards
    stays inside both, but ends nearer to ``x`` than it has to.
    """

    def largest(self, x: Tensor) -> float:
        """The diagonal of the box."""
        return (self.bounds[1] - self.bounds[0]) * math.sqrt(x[0].numel())

    def _nearest(self, wish: Tensor, x: Tensor) -> Tensor:
        flat, exact, eps = wish.flatten(1), x.flatten(1), self.budget(x.flatten(1))
        most, margin = room(flat, exact, self.bounds), slack(flat.shape[1])
        size = torch.minimum(flat.abs(), most)
        over = norm(size, 2) > eps * (1 - margin)
        if over.any():  # a margin twice as wide, so that the result is not projected again
            size = torch.where(over, stretch(flat.abs(), most, eps * (1 - 2 * margin), 2), size)
        return torch.copysign(size, flat).view_as(wish)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        r"""The steepest ascent of length ``size``, :math:`g / \|g\|_2`, not projected; a gradient of zero moves nothing."""
        return x_adv + size * unit(gradient, 2)

    def random_start(self, x: Tensor, stream: Stream) -> Tensor:
        """Uniform in the ball, then projected."""
        d = x[0].numel()
        radius = uniform_like(x.double().flatten(1)[:, :1], stream.fork("radius")) ** (1 / d)
        change = self.budget(x.flatten(1)) * radius * self._direction(x, stream)
        exact = x.double()
        return settle(x, x, self._nearest(change.view(x.shape), exact), self.bounds)

    def boundary(self, x: Tensor, stream: Stream) -> Tensor:
        """In a random direction, as far as the budget reaches: what meets the box stops, the rest goes on."""
        direction, exact = self._direction(x, stream), x.double().flatten(1)
        radius = self.budget(exact) * (1 - 2 * slack(exact.shape[1]))
        size = stretch(direction.abs(), room(direction, exact, self.bounds), radius, 2)
        return settle(x, x, torch.copysign(size, direction).view(x.shape), self.bounds)

    def _direction(self, x: Tensor, stream: Stream) -> Tensor:
        return unit(normal_like(x.double().flatten(1), stream), 2)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``: the Euclidean length of the change."""
        return norm((x_adv.double() - x.double()).flatten(1), 2)[:, 0]
