"""A number of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.attacks.projection import settle, top, unit
from snnrobust.attacks.threat import Ball, Eps, uniform_like
from snnrobust.draws import Stream

__all__ = ["L0"]

Unit = Literal["pixel", "element"]
SHARE = 0.5  # of the width of the box, what a step moves an element by on average
WHOLE = 1e6  # so large a step that the projection maximises the linearised loss


@dataclass(frozen=True, init=False)
class L0(Ball):
    r"""At most ``eps`` pixels may change, by any amount inside the box: :math:`\|x' - x\|_0 \le \epsilon`.

    Args:
        eps: A whole number of pixels, or one a sample; at most the number of pixels.
        bounds: The box, lowest and highest value of an input.
        unit: What is counted. ``"pixel"``: a position with all its channels, the third axis from the end, of inputs of rank 4
            or more (``[B, C, H, W]``; ``[B, T, C, H, W]``, at each time step), otherwise as ``"element"``: every number.

    Source: Croce and Hein 2019, "Sparse and imperceivable adversarial attacks" (PGD with this projection and this step).
    """

    unit: Unit = "pixel"

    def __init__(self, eps: Eps, bounds: tuple[float, float] = (0.0, 1.0), unit: Unit = "pixel") -> None:
        super().__init__(eps, bounds)
        object.__setattr__(self, "unit", checks.choice("unit", unit, get_args(Unit)))

    def _one(self, eps: float | str) -> float:
        value = checks.fraction("eps", eps)
        if not value.is_integer():
            raise ValueError(f"eps must be a whole number, of pixels that may change, got {eps}")
        return value

    @property
    def name(self) -> str:
        return f"L0 ({self.unit}s)"

    def largest(self, x: Tensor) -> float:
        """The number of pixels."""
        return float(self._count(x[:1]).shape[1])

    def step_size(self, x: Tensor, steps: int | None = None) -> float | Tensor:
        """The L1 length of a step: half the width of the box for each element, however many steps there are.

        Shorter steps would leave the attack with the pixels of its first step: another has to gain more in one step than those
        that have moved already. Without ``steps``, so long that every chosen element reaches an end of the box.
        """
        self.budget(x)
        return (WHOLE if steps is None else SHARE) * (self.bounds[1] - self.bounds[0]) * x[0].numel()

    def _nearest(self, wish: Tensor, x: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(wish, self.bounds[0] - x), self.bounds[1] - x)
        gain = self._count(inside * (2 * wish - inside))  # what the squared distance to the wish falls by
        return torch.where(self._spread((gain > 0) & top(gain, self._k(gain)), x), inside, 0.0)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        r"""``size`` along :math:`g / \|g\|_1`, not projected; a gradient of zero moves nothing."""
        return x_adv + size * unit(gradient, 1)

    def random_start(self, x: Tensor, stream: Stream) -> Tensor:
        """Random pixels, as many as may change, each of any colour of the box, uniformly."""
        value = self.bounds[0] + (self.bounds[1] - self.bounds[0]) * uniform_like(x.double(), stream)
        return self._put(x, value, stream)

    def boundary(self, x: Tensor, stream: Stream) -> Tensor:
        """Random pixels, as many as may change, each channel at an end of the box at random: at the other, where it was there."""
        low, high = self.bounds
        upper = uniform_like(x, stream) < 0.5
        exact = x.double()
        upper = torch.where(exact == low, True, torch.where(exact == high, False, upper))
        return self._put(x, torch.where(upper, high, low).double(), stream)

    def _put(self, x: Tensor, value: Tensor, stream: Stream) -> Tensor:
        exact = x.double()
        ranks = uniform_like(self._count(exact), stream.fork("pixels"))
        chosen = self._spread(top(ranks, self._k(ranks)), x)
        return settle(x, x, torch.where(chosen, value - exact, 0.0), self.bounds)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``: the number of pixels that differ."""
        return (self._count((x_adv != x).double()) > 0).sum(1, dtype=torch.float64)

    def _k(self, scores: Tensor) -> Tensor | int:
        eps = self.budget(scores)
        return eps if isinstance(eps, Tensor) else int(eps)

    def _channels(self, x: Tensor) -> bool:
        return self.unit == "pixel" and x.dim() >= 4

    def _count(self, x: Tensor) -> Tensor:
        """Sums over the channels of each pixel, ``[B, pixels]``."""
        return (x.sum(-3) if self._channels(x) else x).flatten(1)

    def _spread(self, pixels: Tensor, x: Tensor) -> Tensor:
        """``[B, pixels]`` back to a mask of the rank of ``x``."""
        if not self._channels(x):
            return pixels.view(x.shape)
        return pixels.view(*x.shape[:-3], *x.shape[-2:]).unsqueeze(-3)
