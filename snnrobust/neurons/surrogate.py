r"""Surrogate derivatives of the spike :math:`s = [u \ge 0]`, where :math:`u = h - \theta` (Neftci, Mostafa and Zenke 2019).

A surrogate is a small frozen object: what it does is its ``derivative``. The forward pass never depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.kernels.lif import GIVEN

__all__ = [
    "SILENT", "SURROGATES", "ATan", "Exponential", "FastSigmoid", "Gaussian", "Rectangle", "Sigmoid", "SpikeTime",
    "StraightThrough", "Surrogate", "Triangle", "found", "in_kernel", "lend", "override", "spike",
]  # fmt: skip

SURROGATES: dict[str, type[Surrogate]] = {}
SILENT = 1000
"""Steps since the last spike for a neuron that has not fired yet (Rathi et al. 2020)."""


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates; subclasses register themselves by name.

    A ``timed`` surrogate is a function of the time since the neuron's last spike instead of :math:`u`.
    """

    timed: ClassVar[bool] = False

    def __init_subclass__(cls, registered: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if registered:
            checks.free_name(SURROGATES, cls)
            SURROGATES[cls.__name__] = cls

    def __post_init__(self) -> None:
        if type(self).derivative is Surrogate.derivative:
            raise TypeError(f"{type(self).__name__} has no derivative: use one that has, such as ATan(2.0)")
        for name, value in vars(self).items():
            checks.number(f"{type(self).__name__}.{name}", value, 0, exclusive_low=True)

    def derivative(self, u: Tensor) -> Tensor:
        """What stands for ds/du at ``u`` = membrane potential - threshold, a new tensor of the shape of ``u``.

        A ``timed`` surrogate gets the number of steps since the last spike in place of ``u``.
        """
        raise NotImplementedError

    def observed(self, u: Tensor) -> Surrogate:
        """What differentiates this step of neurons that run step by step, called in the forward pass with ``u`` ``[B, *]``.

        Neurons that run whole sequences call ``derivative`` with ``u`` ``[T, B, *]`` in the backward pass instead, so a surrogate
        that looks at all steps has both.
        """
        return self


@dataclass(frozen=True)
class ATan(Surrogate):
    r""":math:`\frac{\alpha}{2} \big/ \left(1 + (\frac{\pi}{2} \alpha u)^2\right)` (Fang et al. 2021)."""

    alpha: float = 2.0

    def derivative(self, u: Tensor) -> Tensor:
        return (self.alpha / 2) / (u * (math.pi / 2 * self.alpha)).square_().add_(1.0)


@dataclass(frozen=True)
class Triangle(Surrogate):
    r""":math:`\gamma \max(0, 1 - |u| / w)` (Bellec et al. 2018; BNTT uses :math:`\gamma = 0.3`)."""

    gamma: float = 0.3
    width: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return u.abs().mul_(-self.gamma / self.width).add_(self.gamma).clamp_(min=0.0)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    r""":math:`1 / (1 + k |u|)^2` (Zenke and Ganguli 2018, SuperSpike)."""

    slope: float = 25.0

    def derivative(self, u: Tensor) -> Tensor:
        return u.abs().mul_(self.slope).add_(1.0).square_().reciprocal_()


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    r""":math:`\alpha \sigma(\alpha u) (1 - \sigma(\alpha u))`."""

    alpha: float = 4.0

    def derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1.0 - s)


@dataclass(frozen=True)
class Rectangle(Surrogate):
    r""":math:`1 / w` where :math:`|u| \le w / 2` (Wu et al. 2018, STBP)."""

    width: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() <= self.width / 2).to(u.dtype).mul_(1 / self.width)


@dataclass(frozen=True)
class Gaussian(Surrogate):
    r""":math:`\exp(-u^2 / 2 \sigma^2) \big/ \sqrt{2 \pi} \sigma` (Wu et al. 2018, STBP)."""

    sigma: float = 0.5

    def derivative(self, u: Tensor) -> Tensor:
        return u.square().mul_(-0.5 / self.sigma**2).exp_().mul_(1 / (math.sqrt(2 * math.pi) * self.sigma))


@dataclass(frozen=True)
class Exponential(Surrogate):
    r""":math:`\alpha e^{-\beta |u|}` (Shrestha and Orchard 2018, SLAYER)."""

    alpha: float = 1.0
    beta: float = 2.0

    def derivative(self, u: Tensor) -> Tensor:
        return u.abs().mul_(-self.beta).exp_().mul_(self.alpha)


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1 everywhere (Bengio, Leonard and Courville 2013)."""

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class SpikeTime(Surrogate):
    r""":math:`\alpha e^{-\beta \Delta t}`, where :math:`\Delta t` is the number of steps since the neuron's last spike.

    It does not depend on the membrane potential. A neuron that has not fired yet counts as silent for 1000 steps before the
    first. The paper differentiates by :math:`u / \theta`: for its values divide ``alpha`` by the threshold.

    Source: Rathi et al. 2020, "Enabling deep SNNs with hybrid conversion and spike timing dependent backpropagation" (STDB).
    """

    timed: ClassVar[bool] = True

    alpha: float = 0.3
    beta: float = 0.01

    def derivative(self, u: Tensor) -> Tensor:
        return u.mul(-self.beta).exp_().mul_(self.alpha)


# How csrc/lif.c computes a derivative: its number there, and two constants. Keyed by the function, so that a class derived from
# one of these with a derivative of its own is not taken for it.
_KERNELS: dict[Callable[..., Tensor], Callable[[Any], tuple[int, float, float]]] = {
    ATan.derivative: lambda s: (0, s.alpha / 2, math.pi / 2 * s.alpha),
    Triangle.derivative: lambda s: (1, s.gamma, s.gamma / s.width),
    FastSigmoid.derivative: lambda s: (2, s.slope, 0.0),
    Sigmoid.derivative: lambda s: (3, s.alpha, 0.0),
    Rectangle.derivative: lambda s: (4, s.width / 2, 1 / s.width),
    Gaussian.derivative: lambda s: (5, -0.5 / s.sigma**2, 1 / (math.sqrt(2 * math.pi) * s.sigma)),
    Exponential.derivative: lambda s: (6, s.alpha, s.beta),
    StraightThrough.derivative: lambda s: (7, 0.0, 0.0),
    SpikeTime.derivative: lambda s: (8, s.alpha, s.beta),
}


def in_kernel(surrogate: Surrogate) -> tuple[int, float, float]:
    """Its number in the compiled kernels and two constants; ``GIVEN`` for one that they do not know and are given slopes of."""
    constants = _KERNELS.get(type(surrogate).derivative)
    return (GIVEN, 0.0, 0.0) if constants is None else constants(surrogate)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, at: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        ctx.save_for_backward(at)
        ctx.surrogate = surrogate.observed(at)
        return (u > 0 if strict else u >= 0).to(u.dtype).masked_fill_(u.isnan(), math.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (at,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(at), None, None, None


def spike(u: Tensor, surrogate: Surrogate, quiet: Tensor | None = None) -> Tensor:
    r"""Fire where :math:`u \ge 0`; backward uses ``surrogate.derivative``. Shape and dtype of ``u``; NaN stays NaN.

    Args:
        u: Membrane potential - threshold.
        surrogate: Of ``u``, or, if ``timed``, of ``quiet``.
        quiet: Steps since each neuron's last spike.
    """
    if surrogate.timed and quiet is None:
        raise ValueError(f"{surrogate} needs the time since the last spike: start the stream under this surrogate")
    at = quiet.to(u.dtype) if surrogate.timed and quiet is not None else u.detach()
    return _Spike.apply(u, at, surrogate, False)  # type: ignore[no-any-return, no-untyped-call]


# Where a module keeps its surrogate: the attribute, and how to make a value for it. SpikingJelly fires at u >= 0,
# snnTorch at u > 0; both take a callable.
_HOMES: tuple[tuple[str, Callable[[Surrogate], object]], ...] = (
    ("surrogate", lambda s: s),
    ("surrogate_function", lambda s: _ForeignSpike(s, strict=False)),
    ("spike_grad", lambda s: _ForeignSpike(s, strict=True)),
)
_ABSENT = object()


@dataclass(frozen=True)
class _ForeignSpike:
    surrogate: Surrogate
    strict: bool
    spiking: ClassVar[bool] = True

    def __call__(self, u: Tensor) -> Tensor:
        return _Spike.apply(u, u.detach(), self.surrogate, self.strict)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def override(model: nn.Module, surrogate: Surrogate) -> Iterator[nn.Module]:
    """Within this context every surrogate of ``model`` is ``surrogate``; afterwards each is what it was.

    It reaches the neurons of snnrobust, SpikingJelly (``surrogate_function``) and snnTorch (``spike_grad``).

    Raises:
        ValueError: nothing was swapped. A silent no-op would leave a blunt gradient in place.
    """
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {surrogate!r}")
    with lend(model, lambda _: surrogate):
        yield model


@contextmanager
def lend(model: nn.Module, choose: Callable[[nn.Module], Surrogate]) -> Iterator[None]:
    """:func:`override` with a surrogate for each neuron: ``choose(module)``."""
    homes = _homes(model)
    if not homes:
        raise ValueError(f"{type(model).__name__} has no surrogate to override: is it a spiking model?")
    chosen = [choose(m) for m, _, _ in homes]
    for (_, name, _), surrogate in zip(homes, chosen, strict=True):
        if surrogate.timed and name != "surrogate":
            raise TypeError(
                f"{surrogate} needs the time since the last spike, which neurons of other libraries do not give it"
            )
    # An attribute of the instance hides what is kept as a submodule or on the class, so those stay where they are.
    before = [m.__dict__.get(name, _ABSENT) for m, name, _ in homes]
    try:
        for (m, name, make), surrogate in zip(homes, chosen, strict=True):
            m.__dict__[name] = make(surrogate)
        with _resets_unobserved([m for m, name, _ in homes if name == "spike_grad"]):
            yield
    finally:
        for (m, name, _), value in zip(homes, before, strict=True):
            if value is _ABSENT:
                m.__dict__.pop(name, None)
            else:
                m.__dict__[name] = value


@contextmanager
def _resets_unobserved(modules: list[nn.Module]) -> Iterator[None]:
    """snnTorch's neurons also ask their surrogate where they fired last, in ``mem_reset``, whose gradient they drop. A surrogate
    that looks at each step's potentials is not to see those."""
    at_rest = _ForeignSpike(StraightThrough(), strict=True)

    def quiet(module: nn.Module, mem_reset: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def instead(mem: Tensor) -> Tensor:
            lent = module.__dict__["spike_grad"]
            module.__dict__["spike_grad"] = at_rest
            try:
                return mem_reset(mem)
            finally:
                module.__dict__["spike_grad"] = lent

        return instead

    theirs = [
        (m, reset, m.__dict__.get("mem_reset", _ABSENT))
        for m in modules
        if callable(reset := getattr(m, "mem_reset", None))
    ]
    try:
        for m, mem_reset, _ in theirs:
            m.__dict__["mem_reset"] = quiet(m, mem_reset)
        yield
    finally:
        for m, _, before in theirs:
            if before is _ABSENT:
                m.__dict__.pop("mem_reset", None)
            else:
                m.__dict__["mem_reset"] = before


def found(model: nn.Module) -> bool:
    """Whether ``model`` has surrogates that can be overridden."""
    return bool(_homes(model))


def _homes(model: nn.Module) -> list[tuple[nn.Module, str, Callable[[Surrogate], object]]]:
    return [(m, name, make) for m in model.modules() for name, make in _HOMES if _holds(m, name)]


def _holds(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, Surrogate) if name == "surrogate" else callable(value)
