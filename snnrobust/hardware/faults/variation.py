"""Neurons that differ from one another: thresholds and leaks as a process makes them."""

from __future__ import annotations

import copy
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks, draws
from snnrobust.hardware.backend import Backend, Drawn
from snnrobust.hardware.faults.outputs import of_chip
from snnrobust.hardware.faults.wrapper import OnChip, demand_neuron
from snnrobust.kernels.lif import state_dtype
from snnrobust.neurons import Neuron
from snnrobust.temporal import State, advance

__all__ = ["NeuronVariation"]

Distribution = Literal["normal", "lognormal", "uniform"]
LEAST = 0.01
"""Below this share of the nominal value the factor is cut: thresholds have to be positive."""


class NeuronVariation(Backend):
    r"""Thresholds and leaks that vary from neuron to neuron.

    .. math:: \tilde\theta_j = \theta f_j, \quad \tilde\beta_j = \beta^{g_j}, \quad E[f] = E[g] = 1, \;
        \operatorname{sd}[f] = \sigma_\theta, \; \operatorname{sd}[g] = \sigma_\beta

    :math:`\beta^g` is a leak rate :math:`-\ln\beta` (the inverse of the time constant) that is g times the nominal one; it stays
    in [0, 1]. Drawn per chip, one f and g for each neuron, which is one element of the output. The gradient is exact, but for the
    surrogate of the neuron. Works for all neurons of snnrobust, alone and inside ``Recurrent``; learnt thresholds and leaks are
    varied around what was learnt. Of ``ALIF`` the threshold at rest varies, of ``CuBaLIF`` the leak of the membrane.

    Args:
        threshold: :math:`\sigma_\theta \ge 0`, relative.
        leak: :math:`\sigma_\beta \ge 0`, relative.
        distribution: Of f and g: ``"normal"`` and ``"uniform"`` are cut at 0.01, ``"lognormal"`` is positive.

    Raises:
        TypeError: for ``nn.ReLU`` and neurons of other libraries.
        ValueError: ``leak`` > 0 for neurons without leak (``IF``).
    """

    drawn: Drawn = "chip"

    def __init__(self, threshold: float = 0.0, leak: float = 0.0, distribution: Distribution = "normal") -> None:
        super().__init__()
        self.threshold = checks.number("threshold", threshold, 0.0)
        self.leak = checks.number("leak", leak, 0.0)
        self.distribution = checks.choice("distribution", distribution, get_args(Distribution))

    def neuron(self, neuron: nn.Module) -> nn.Module:
        demand_neuron(self, neuron, relu=False, why=", which has no threshold or leak that is known")
        if isinstance(neuron, OnChip):  # the constants are inside
            neuron.neuron = self.neuron(neuron.neuron)
            return neuron
        if self.threshold > 0:
            _constant(neuron, "threshold")
        if self.leak > 0 and (_value(neuron, _constant(neuron, "decay")) == 1).all():
            raise ValueError(f"leak must be 0 for {type(neuron).__name__} with decay 1: it has no leak that could vary")
        return VariedNeuron(neuron, self) if self.threshold > 0 or self.leak > 0 else neuron

    def factors(self, sigma: float, shape: tuple[int, ...], start: int, device: torch.device) -> Tensor:
        """f (``start`` 0) or g (``start`` 1), float64 of ``shape``."""
        draw = draws.uniform if self.distribution == "uniform" else draws.normal
        z = of_chip(self, draw, (1, 1, *shape), device, start)[0, 0].double()
        if self.distribution == "lognormal":
            s2 = math.log1p(sigma**2)
            return (z * math.sqrt(s2) - s2 / 2).exp()
        z = (2.0 * z - 1.0) * math.sqrt(3.0) if self.distribution == "uniform" else z
        return (1.0 + sigma * z).clamp(min=LEAST)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, leak={self.leak}, distribution={self.distribution!r}"


_NAMES = {"threshold": ("log_threshold", "threshold"), "decay": ("logit_decay", "fixed_decay", "decay")}
"""Where neurons keep a constant: learnt ones by their logarithm or logit."""


def _constant(neuron: nn.Module, role: str) -> str:
    for name in _NAMES[role]:
        if name in vars(neuron) or name in neuron._buffers or name in neuron._parameters:
            return name
    raise TypeError(
        f"NeuronVariation knows no {role} of {type(neuron).__name__}: it looks for {', '.join(_NAMES[role])}"
    )


def _value(neuron: nn.Module, name: str) -> Tensor:
    """A constant in its own units."""
    value = torch.as_tensor(getattr(neuron, name))
    return value.exp() if name == "log_threshold" else value.sigmoid() if name == "logit_decay" else value


def _stored(name: str, value: Tensor) -> Tensor:
    return value.log() if name == "log_threshold" else value.logit() if name == "logit_decay" else value


class VariedState(NamedTuple):
    """State of the neurons in a row, ``[B, N]``, and the shape that they have."""

    neurons: State
    shape: torch.Size


class VariedNeuron(OnChip):
    """Neurons with constants of their own, ``[T, B, *] -> [T, B, *]``.

    All neurons of a sample are laid in a row, ``[T, B, N]``: a constant per channel is then one per neuron, and the kernels of
    the neuron serve as they are.
    """

    neuron: Neuron

    def __init__(self, neuron: nn.Module, variation: NeuronVariation) -> None:
        super().__init__()
        self.neuron, self.variation = neuron, variation  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x)
        return self._in_a_row(x[0])(x.reshape(*x.shape[:2], -1)).view(x.shape)  # type: ignore[no-any-return]

    def initial_state(self, x_t: Tensor) -> VariedState:
        return VariedState(self._in_a_row(x_t).initial_state(x_t.reshape(x_t.shape[0], -1)), x_t.shape)

    def step(self, x_t: Tensor, state: VariedState) -> tuple[Tensor, VariedState]:
        s, after = self._in_a_row(x_t).step(x_t.reshape(x_t.shape[0], -1), state.neurons)
        return s.view(x_t.shape), VariedState(after, state.shape)

    def advance(self, x: Tensor, state: VariedState) -> tuple[Tensor, VariedState]:
        s, after = advance(self._in_a_row(x[0]), x.reshape(*x.shape[:2], -1), state.neurons)
        return s.view(x.shape), VariedState(after, state.shape)

    def potential(self, state: VariedState) -> Tensor:
        return self.neuron.potential(state.neurons).view(state.shape)

    def _in_a_row(self, x_t: Tensor) -> Neuron:
        """The neuron with constants ``[N]``, for an input ``[B, N]``; a shallow copy, which shares what is learnt."""
        neuron, dtype = self.neuron, state_dtype(x_t.dtype)
        features = x_t.shape[1:]
        row = copy.copy(neuron)
        row.__dict__ = dict(vars(neuron))
        row._buffers, row._parameters = dict(neuron._buffers), dict(neuron._parameters)
        own = {
            n: v for n, v in (*neuron._buffers.items(), *neuron._parameters.items()) if v is not None and v.dim() == 1
        }
        for name, value in own.items():
            _put(row, name, _per_neuron(name, value, features))
        for role, sigma, start in (("threshold", self.variation.threshold, 0), ("decay", self.variation.leak, 1)):
            if sigma > 0:
                name = _constant(neuron, role)
                nominal = _value(row, name).to(x_t.device, dtype)
                factor = self.variation.factors(sigma, tuple(features), start, x_t.device).flatten().to(dtype)
                value = nominal * factor if role == "threshold" else nominal**factor
                _put(row, name, _stored(name, value))
        return row


def _put(row: nn.Module, name: str, value: Tensor) -> None:
    row._buffers.pop(name, None)
    row._parameters.pop(name, None)
    row.__dict__[name] = value


def _per_neuron(name: str, value: Tensor, features: torch.Size) -> Tensor:
    if not features or len(value) not in (1, features[0]):
        raise ValueError(
            f"{name} has {len(value)} values, one per channel, which do not fit neurons of shape {tuple(features)}"
        )
    return value.view(-1, *[1] * (len(features) - 1)).expand(features).reshape(-1)
