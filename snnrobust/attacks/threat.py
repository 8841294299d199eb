"""What an attacker may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.draws import Stream, _words, uniform

__all__ = ["Linf", "ThreatModel"]


@runtime_checkable
class ThreatModel(Protocol):
    """What every threat model offers an attack."""

    @property
    def eps(self) -> float: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    def at(self, eps: float | str) -> ThreatModel: ...
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor: ...
    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor: ...
    def random_start(self, x: Tensor, stream: Stream) -> Tensor: ...
    def corner(self, x: Tensor, stream: Stream) -> Tensor: ...
    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor: ...
    def validate(self, x: Tensor, x_adv: Tensor) -> None: ...


@dataclass(frozen=True)
class Linf:
    r"""Every pixel may change by at most ``eps``: :math:`\|x' - x\|_\infty \le \epsilon`, inside the box.

    The budget holds exactly: ``|x' - x| <= eps`` computed in float64, whatever the dtype of ``x``.

    Args:
        eps: In units of the input, a number or a fraction such as ``"8/255"``, 0 to the width of the box.
        bounds: The box, lowest and highest value of an input.
    """

    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __init__(self, eps: float | str, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        if not isinstance(bounds, tuple) or len(bounds) != 2:
            raise TypeError(f"bounds must be a pair (low, high), got {bounds!r}")
        low, high = (checks.number("bounds", b) for b in bounds)
        if low >= high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        object.__setattr__(self, "bounds", (low, high))
        value = checks.fraction("eps", eps)
        if value > high - low:
            raise ValueError(
                f'eps must be in [0, {high - low:g}], the width of the box, got {eps}: pixel steps are written "8/255"'
            )
        object.__setattr__(self, "eps", value)

    def at(self, eps: float | str) -> Self:
        """The same threat with another budget."""
        return replace(self, eps=eps)  # type: ignore[arg-type]

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest legal value of every pixel, in the dtype of ``x``."""
        edges = []
        exact = x.detach().double()
        for sign in (-1.0, 1.0):
            edge = (exact + sign * self.eps).clamp(*self.bounds).to(x.dtype)
            wide = edge.double()
            outside = ((wide - exact).abs() > self.eps) | (wide < self.bounds[0]) | (wide > self.bounds[1])
            edges.append(torch.where(outside, torch.nextafter(edge, x), edge))  # a rounding went too far: step inward
        return edges[0], edges[1]

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest legal input."""
        low, high = self.box(x)
        return torch.minimum(torch.maximum(x_adv, low), high)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        """The steepest ascent of length ``size``, not projected."""
        return x_adv + size * gradient.sign()

    def random_start(self, x: Tensor, stream: Stream) -> Tensor:
        """Uniform in the ball, then projected."""
        return self.project(x + self.eps * (2 * _uniform_like(x, stream) - 1), x)

    def corner(self, x: Tensor, stream: Stream) -> Tensor:
        """A random corner of the ball, every pixel up or down by ``eps``, then projected."""
        return self.project(x + self.eps * (2 * (_uniform_like(x, stream) < 0.5).to(x.dtype) - 1), x)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``."""
        return (x_adv.double() - x.double()).abs().flatten(1).amax(1)

    def validate(self, x: Tensor, x_adv: Tensor) -> None:
        """Raise ``ValueError`` unless every ``x_adv`` is a legal input."""
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
            raise ValueError(
                f"x_adv must be {x.dtype} of shape {tuple(x.shape)}, got {x_adv.dtype} of shape {tuple(x_adv.shape)}"
            )
        checks.pixels("x_adv", x_adv, bounds=self.bounds)
        worst = float(self.distance(x, x_adv).max())
        if worst > self.eps:
            raise ValueError(f"x_adv must stay within eps={self.eps:.17g} of x, but it reaches {worst:.17g}")


def _uniform_like(x: Tensor, stream: Stream) -> Tensor:
    key = _words(stream.key).to(x.device)
    return uniform(key, stream.sample_ids.to(x.device), (1, *x.shape))[0].to(x.dtype)
