"""Faults of what neurons emit: dead and stuck neurons, lost and inserted spikes."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks, draws
from snnrobust.hardware.backend import BACKENDS, Backend, Drawn
from snnrobust.hardware.faults.wrapper import OnChip, demand_neuron
from snnrobust.temporal import State, Temporal, advance

__all__ = ["DeadNeurons", "SpikeInsertion", "SpikeLoss", "StuckNeurons"]


class OutputFault(Backend):
    r"""Base: each output becomes ``value`` with probability ``rate``, whatever the neuron does.

    .. math:: \tilde s = (1 - m) \, s + m \, c, \quad m \sim \operatorname{Bernoulli}(r)
    """

    value: float
    on_relu: ClassVar[bool] = True
    why: ClassVar[str] = ""

    def __init__(self, rate: float, drawn: Drawn) -> None:
        super().__init__()
        self.rate = checks.number("rate", rate, 0.0, 1.0)
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]

    @property
    def stochastic(self) -> bool:
        return self.drawn != "chip" and self.rate > 0

    def neuron(self, neuron: nn.Module) -> nn.Module:
        demand_neuron(self, neuron, relu=self.on_relu, why=self.why)
        return FaultyNeuron(neuron, self) if self.rate > 0 else neuron

    def strike(self, s: Tensor, start: int) -> Tensor:
        """``s`` ``[T, B, *]`` of the time steps from ``start`` on, with the fault."""
        return s.masked_fill(self.mask(s.shape, start, s.device), self.value)

    def mask(self, shape: torch.Size, start: int, device: torch.device) -> Tensor:
        """Where the fault strikes outputs of ``shape`` ``[T, B, *]``: bool, broadcasts to it."""
        if self.drawn == "step":
            u = self.uniform(shape, start, device)
        elif self.drawn == "inference":
            u = self.uniform((1, *shape[1:]), 0, device)
        else:
            u = of_chip(self, draws.uniform, (1, 1, *shape[2:]), device)
        return u < self.rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def of_chip(backend: Backend, draw: Any, shape: tuple[int, ...], device: torch.device, start: int = 0) -> Tensor:
    """``draw(key, ids, shape)`` of the chip: the same at every forward, sample and step. ``shape`` is ``[1, 1, *]``."""
    one = torch.zeros(1, dtype=torch.int64, device=device)
    return draw(backend.chip_key(device), one, shape, start)  # type: ignore[no-any-return]


del BACKENDS["OutputFault"]  # no fault by itself


class DeadNeurons(OutputFault):
    r"""Neurons that never emit anything: :math:`\tilde s = (1 - m) s`, :math:`m \sim \operatorname{Bernoulli}(r)` per neuron.

    Drawn per chip. A neuron is one element of the output: of a convolution, one position of one channel. ``nn.ReLU`` in ordinary
    networks has dead neurons too. The gradient is exact: none through a dead neuron.

    Args:
        rate: r in [0, 1].
    """

    def __init__(self, rate: float) -> None:
        super().__init__(rate, "chip")
        self.value = 0.0


class StuckNeurons(OutputFault):
    r"""Neurons that emit ``value`` at every step: :math:`\tilde s = (1 - m) s + m c`, :math:`m` as in :class:`DeadNeurons`.

    Drawn per chip. The gradient is exact: none through a stuck neuron.

    Args:
        rate: r in [0, 1].
        value: c, what a stuck neuron emits: 1 is a neuron that always fires. An ``nn.ReLU`` has no natural value: choose one in
            units of its activation.
    """

    def __init__(self, rate: float, value: float = 1.0) -> None:
        super().__init__(rate, "chip")
        self.value = checks.number("value", value)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, value={self.value}"


class SpikeLoss(OutputFault):
    r"""Each spike is lost with probability r: :math:`\tilde s_t = (1 - m_t) s_t`.

    An activation of ``nn.ReLU`` is lost as a whole. The gradient is exact for the draw; over draws (EOT)
    :math:`E[\tilde s] = (1 - r) s`.

    Args:
        rate: r in [0, 1].
        drawn: ``"step"`` (every spike alone), ``"inference"`` (a neuron loses all spikes of a forward pass or none) or ``"chip"``
            (then it is :class:`DeadNeurons`).
    """

    def __init__(self, rate: float, drawn: Drawn = "step") -> None:
        super().__init__(rate, drawn)
        self.value = 0.0

    def extra_repr(self) -> str:
        return f"rate={self.rate}, drawn={self.drawn!r}"


class SpikeInsertion(OutputFault):
    r"""A spike where there is none, with probability r: :math:`\tilde s_t = s_t + m_t (1 - s_t)`.

    The membrane does not notice: no reset, no refractory period. The gradient is exact for the draw in this (multilinear) form,
    :math:`\partial \tilde s / \partial s = 1 - m`; over draws (EOT) it is that of :math:`E[\tilde s] = (1 - r) s + r`.

    Args:
        rate: r in [0, 1], for each neuron and step.
        drawn: As in :class:`SpikeLoss`; ``"chip"`` is :class:`StuckNeurons`.
    """

    on_relu = False
    why = ", which emits no spikes: use StuckNeurons(rate, value=...) there"

    def __init__(self, rate: float, drawn: Drawn = "step") -> None:
        super().__init__(rate, drawn)
        self.value = 1.0

    def extra_repr(self) -> str:
        return f"rate={self.rate}, drawn={self.drawn!r}"


class FaultyState(NamedTuple):
    """State of the neuron (None for one without memory), and the time step."""

    neuron: State
    t: int


class FaultyNeuron(OnChip):
    """A neuron whose output passes ``fault``, ``[T, B, *] -> [T, B, *]``."""

    def __init__(self, neuron: nn.Module, fault: OutputFault) -> None:
        super().__init__()
        self.neuron, self.fault = neuron, fault

    def forward(self, x: Tensor) -> Tensor:
        return self.fault.strike(self.neuron(x), 0)

    def initial_state(self, x_t: Tensor) -> FaultyState:
        neuron = self.neuron
        return FaultyState(neuron.initial_state(x_t) if isinstance(neuron, Temporal) else None, 0)

    def step(self, x_t: Tensor, state: FaultyState) -> tuple[Tensor, FaultyState]:
        neuron, after = self.neuron, state.neuron
        if isinstance(neuron, Temporal):
            s, after = neuron.step(x_t, state.neuron)
        else:
            s = neuron(x_t)
        return self.fault.strike(s[None], state.t)[0], FaultyState(after, state.t + 1)

    def advance(self, x: Tensor, state: FaultyState) -> tuple[Tensor, FaultyState]:
        neuron, after = self.neuron, state.neuron
        if isinstance(neuron, Temporal):
            s, after = advance(neuron, x, state.neuron)
        else:
            s = neuron(x)
        return self.fault.strike(s, state.t), FaultyState(after, state.t + x.shape[0])

    def potential(self, state: FaultyState) -> Tensor:
        return self.neuron.potential(state.neuron)  # type: ignore[operator, no-any-return]
