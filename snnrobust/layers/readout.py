"""Readouts turn the network's output over time, ``[T, B, K]``, into logits, ``[B, K]``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.temporal import State, Temporal

__all__ = ["READOUTS", "LastOutput", "MeanMembrane", "MeanOutput", "Readout", "SpikeCount"]


READOUTS: dict[str, type[Readout]] = {}


class Readout(Temporal):
    """``step`` gives the running logits after each time step; ``forward`` the last of them, summed in the same order.

    Subclasses register themselves by name.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.free_name(READOUTS, cls)
        READOUTS[cls.__name__] = cls

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x, rank=3)
        state = self.initial_state(x[0])
        for x_t in x.unbind(0):
            logits, state = self.step(x_t, state)
        return logits


class _Running(NamedTuple):
    steps: int
    membrane: Tensor
    total: Tensor


class MeanMembrane(Readout):
    r"""Mean membrane potential of a non-spiking leaky integrator.

    .. math:: v_t = \beta v_{t-1} + x_t, \quad \text{logits} = \tfrac{1}{T} \sum_t v_t

    Args:
        decay: :math:`\beta` in [0, 1].
    """

    def __init__(self, decay: float = 0.95) -> None:
        super().__init__()
        self.decay = checks.number("decay", decay, 0.0, 1.0)

    def initial_state(self, x_t: Tensor) -> _Running:
        return _Running(0, torch.zeros_like(x_t), torch.zeros_like(x_t))

    def step(self, x_t: Tensor, state: _Running) -> tuple[Tensor, _Running]:
        membrane = state.membrane * self.decay + x_t
        after = _Running(state.steps + 1, membrane, state.total + membrane)
        return after.total / after.steps, after

    def extra_repr(self) -> str:
        return f"decay={self.decay}"


class MeanOutput(MeanMembrane):
    r"""Mean of the output over time, :math:`\tfrac{1}{T} \sum_t x_t`: an integrator without leak, divided by T (BNTT)."""

    def __init__(self) -> None:
        super().__init__(0.0)


class SpikeCount(Readout):
    r"""Number of output spikes, :math:`\sum_t s_t`, for networks that end in spiking neurons."""

    def initial_state(self, x_t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        total = state + x_t
        return total, total


class LastOutput(Readout):
    r"""The output of the last time step, :math:`x_T`, for networks that remember, such as ``nn.LSTM``."""

    def initial_state(self, x_t: Tensor) -> None:
        return None

    def step(self, x_t: Tensor, state: None) -> tuple[Tensor, None]:
        return x_t, None
