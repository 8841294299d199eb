"""What an attacker may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.attacks.projection import settle
from snnrobust.draws import Stream, _words, normal, uniform

__all__ = ["THREATS", "Ball", "Eps", "Linf", "ThreatModel", "common_eps", "normal_like", "uniform_like"]

Eps = float | str | Tensor | tuple[float, ...]
"""A budget: a number, a fraction such as ``"8/255"``, or one number a sample, ``[B]``."""

THREATS: dict[str, type[Ball]] = {}


@runtime_checkable
class ThreatModel(Protocol):
    """What every threat model offers an attack."""

    @property
    def name(self) -> str: ...

    @property
    def eps(self) -> float | tuple[float, ...]: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    def at(self, eps: Eps) -> ThreatModel: ...
    def select(self, index: Tensor) -> ThreatModel: ...
    def check(self, name: str, x: Tensor) -> None: ...
    def largest(self, x: Tensor) -> float: ...
    def step_size(self, x: Tensor, steps: int | None = None) -> float | Tensor: ...
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor: ...
    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor: ...
    def random_start(self, x: Tensor, stream: Stream) -> Tensor: ...
    def boundary(self, x: Tensor, stream: Stream) -> Tensor: ...
    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor: ...
    def validate(self, x: Tensor, x_adv: Tensor) -> None: ...


def common_eps(threat: ThreatModel, who: str) -> float:
    """The one budget of all samples, which ``who`` needs."""
    if isinstance(threat.eps, tuple):
        raise ValueError(
            f"{who} needs one eps for all samples, got one for each of {len(threat.eps)}: use eps = [...] for several budgets"
        )
    return threat.eps


@dataclass(frozen=True, init=False)
class Ball:
    """All inputs of a box that lie within ``eps`` of ``x``. Subclasses register themselves by name and say in which norm.

    A subclass has :meth:`distance`, :meth:`largest`, :meth:`step`, :meth:`random_start`, :meth:`boundary` and either
    :meth:`project` or what that needs, :meth:`_nearest`.

    Args:
        eps: The budget, or one for each sample of a batch, ``[B]``. It holds exactly: the distance computed in float64 is at most
            ``eps``, whatever the dtype of ``x``.
        bounds: The box, lowest and highest value of an input.
    """

    eps: float | tuple[float, ...]
    bounds: tuple[float, float] = (0.0, 1.0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        THREATS[cls.__name__] = cls

    def __init__(self, eps: Eps, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        if not isinstance(bounds, tuple) or len(bounds) != 2:
            raise TypeError(f"bounds must be a pair (low, high), got {bounds!r}")
        low, high = (checks.number("bounds", b) for b in bounds)
        if low >= high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        object.__setattr__(self, "bounds", (low, high))
        if isinstance(eps, Tensor):
            if eps.dim() != 1 or eps.dtype.is_complex or eps.dtype == torch.bool:
                raise TypeError(
                    f"eps must be a number, a fraction or a tensor [B] of one number a sample, got {eps.dtype} of shape "
                    f"{tuple(eps.shape)}"
                )
            eps = tuple(eps.tolist())
        if eps == ():
            raise ValueError("eps must hold one number a sample, got none")
        value = tuple(map(self._one, eps)) if isinstance(eps, tuple) else self._one(eps)
        object.__setattr__(self, "eps", value)

    def _one(self, eps: float | str) -> float:
        return checks.fraction("eps", eps)

    @property
    def name(self) -> str:
        """The norm, as a report writes it."""
        return type(self).__name__

    def at(self, eps: Eps) -> Self:
        """The same threat with another budget, or with one for each sample."""
        return replace(self, eps=eps)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> Self:
        """The threat of the samples at ``index``, as ``stream.select`` and ``x[index]``."""
        if not isinstance(self.eps, tuple):
            return self
        return self.at(torch.tensor(self.eps, dtype=torch.float64)[index.cpu()])

    def budget(self, x: Tensor) -> float | Tensor:
        """``eps`` to compute with: a number, or float64 ``[B, 1, ...]`` of the rank of ``x``."""
        if not isinstance(self.eps, tuple):
            return self.eps
        if len(self.eps) != len(x):
            raise ValueError(f"eps must be one number, or one for each of {len(x)} samples, got {len(self.eps)}")
        return torch.tensor(self.eps, dtype=torch.float64, device=x.device).view(-1, *[1] * (x.dim() - 1))

    def check(self, name: str, x: Tensor) -> None:
        """Raise unless ``x`` is a batch ``[B, *]`` in the box and the budget means something for it.

        Raises:
            ValueError, TypeError: bad inputs, budgets for another number of samples, ``eps`` above :meth:`largest`.
        """
        checks.pixels(name, x, bounds=self.bounds)
        self.budget(x)
        eps = max(self.eps) if isinstance(self.eps, tuple) else self.eps
        if eps > self.largest(x):
            raise ValueError(
                f"eps must be at most {self.largest(x):g}, the largest {self.name} distance of two inputs of shape "
                f"{list(x.shape[1:])} in [{self.bounds[0]:g}, {self.bounds[1]:g}], got {eps:g}"
            )

    def largest(self, x: Tensor) -> float:
        """The largest distance of two inputs like those of ``x``: a budget that allows everything."""
        raise NotImplementedError

    def step_size(self, x: Tensor, steps: int | None = None) -> float | Tensor:
        r"""The length of a step, :math:`2.5 \epsilon / \text{steps}`; without ``steps``, one that spends the whole budget."""
        eps = self.budget(x)
        size = eps if steps is None else 2.5 * eps / steps
        return size.to(x.dtype) if isinstance(size, Tensor) else size

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest legal input, in the Euclidean distance."""
        exact = x.detach().double()
        wish = (x_adv.double() - exact).clamp(-1e100, 1e100)  # so that squares of it are numbers
        return settle(x_adv, x, self._nearest(wish, exact), self.bounds)

    def _nearest(self, wish: Tensor, x: Tensor) -> Tensor:
        """The change nearest to ``wish`` that is legal at ``x``, in float64; ``wish`` itself, to the bit, where it is legal."""
        raise NotImplementedError

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``."""
        raise NotImplementedError

    def validate(self, x: Tensor, x_adv: Tensor) -> None:
        """Raise ``ValueError`` unless every ``x_adv`` is a legal input."""
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
            raise ValueError(
                f"x_adv must be {x.dtype} of shape {tuple(x.shape)}, got {x_adv.dtype} of shape {tuple(x_adv.shape)}"
            )
        checks.pixels("x_adv", x_adv, bounds=self.bounds)
        distance = self.distance(x, x_adv)
        excess = distance - self.budget(distance)
        worst = int(excess.argmax())
        if excess[worst] > 0:
            eps = self.eps[worst] if isinstance(self.eps, tuple) else self.eps
            raise ValueError(
                f"x_adv must stay within eps={eps:.17g} of x in {self.name}, but it reaches {float(distance[worst]):.17g}"
            )


@dataclass(frozen=True, init=False)
class Linf(Ball):
    r"""Every pixel may change by at most ``eps``: :math:`\|x' - x\|_\infty \le \epsilon`, inside the box.

    Args:
        eps: In units of the input, a number, a fraction such as ``"8/255"`` or one number a sample; 0 to the width of the box.
        bounds: The box, lowest and highest value of an input.
    """

    def _one(self, eps: float | str) -> float:
        value, width = checks.fraction("eps", eps), self.bounds[1] - self.bounds[0]
        if value > width:
            raise ValueError(
                f'eps must be in [0, {width:g}], the width of the box, got {eps}: pixel steps are written "8/255"'
            )
        return value

    def largest(self, x: Tensor) -> float:
        """The width of the box."""
        return self.bounds[1] - self.bounds[0]

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest legal value of every pixel, in the dtype of ``x``."""
        edges = []
        exact, eps = x.detach().double(), self.budget(x)
        for sign in (-1.0, 1.0):
            edge = (exact + sign * eps).clamp(*self.bounds).to(x.dtype)
            wide = edge.double()
            outside = ((wide - exact).abs() > eps) | (wide < self.bounds[0]) | (wide > self.bounds[1])
            edges.append(torch.where(outside, torch.nextafter(edge, x), edge))  # a rounding went too far: step inward
        return edges[0], edges[1]

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest legal input."""
        low, high = self.box(x)
        return torch.minimum(torch.maximum(x_adv, low), high)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """The steepest ascent of length ``size``, along the sign of the gradient, not projected."""
        return x_adv + size * gradient.sign()

    def random_start(self, x: Tensor, stream: Stream) -> Tensor:
        """Uniform in the ball, then projected."""
        return self.project(x + self.step_size(x) * (2 * uniform_like(x, stream) - 1), x)

    def boundary(self, x: Tensor, stream: Stream) -> Tensor:
        """A random corner of the ball, every pixel up or down by ``eps``, then projected."""
        return self.project(x + self.step_size(x) * (2 * (uniform_like(x, stream) < 0.5).to(x.dtype) - 1), x)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Per sample, float64 ``[B]``: the largest change of a pixel."""
        return (x_adv.double() - x.double()).abs().flatten(1).amax(1)


def uniform_like(x: Tensor, stream: Stream) -> Tensor:
    """Draws in [0, 1) of the shape and dtype of ``x``, keyed by sample."""
    return uniform(_words(stream.key).to(x.device), stream.sample_ids.to(x.device), (1, *x.shape))[0].to(x.dtype)


def normal_like(x: Tensor, stream: Stream) -> Tensor:
    """Standard normal draws of the shape and dtype of ``x``, keyed by sample."""
    return normal(_words(stream.key).to(x.device), stream.sample_ids.to(x.device), (1, *x.shape))[0].to(x.dtype)
