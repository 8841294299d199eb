"""A layer of spiking neurons that receive each other's spikes."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.neurons.lif import LIF
from snnrobust.neurons.neuron import Neuron, continues, potentials
from snnrobust.temporal import State, Temporal

__all__ = ["Recurrent"]


class RecurrentState(NamedTuple):
    """State of a :class:`Recurrent` layer: that of its neurons, their last spikes ``[B, F]``, on a chip that of its product."""

    neuron: State
    spikes: Tensor
    synapses: State = None


class Recurrent(Temporal):
    r"""Recurrent spiking layer, ``[T, B, F] -> [T, B, F]``: its neurons get :math:`x_t + W s_{t-1}`.

    With the default neuron it is the recurrent LIF layer. The gradient passes through :math:`s_{t-1}`.

    Args:
        features: F neurons; W is a learnt ``[F, F]`` without bias.
        neuron: Copied; default ``LIF()``.

    Source: Bellec et al. 2018.
    """

    def __init__(self, features: int, neuron: Neuron | None = None) -> None:
        super().__init__()
        self.features = checks.count("features", features)
        if neuron is not None and not isinstance(neuron, Neuron):
            raise TypeError(f"neuron must be a spiking neuron such as LIF(), got {neuron!r:.80}")
        self.neuron = LIF() if neuron is None else deepcopy(neuron)
        self.recurrent = nn.Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self._fits(checks.sequence("x", x, rank=3)[0])
        return super().forward(x)

    def initial_state(self, x_t: Tensor) -> RecurrentState:
        product: nn.Module = self.recurrent  # on a chip, a temporal module
        synapses = product.initial_state(x_t) if isinstance(product, Temporal) else None
        return RecurrentState(self.neuron.initial_state(x_t), torch.zeros_like(x_t), synapses)

    def step(self, x_t: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        x_t = continues(self._fits(x_t), state.spikes)
        synapses, product = state.synapses, cast(nn.Module, self.recurrent)
        if isinstance(product, Temporal):
            y, synapses = product.step(state.spikes, synapses)
        else:
            y = product(state.spikes)
        s, after = self.neuron.step(x_t + y, state.neuron)
        return s, RecurrentState(after, s, synapses)

    def membrane(self, x: Tensor) -> Tensor:
        """The potential of its neurons after each step's reset, ``[T, B, F]``, without gradient."""
        return potentials(self, lambda state: self.neuron.potential(state.neuron), x)

    def _fits(self, x_t: Tensor) -> Tensor:
        if x_t.dim() != 2 or x_t.shape[1] != self.features:
            raise ValueError(f"Recurrent expects {self.features} features in [B, F], got shape {tuple(x_t.shape)}")
        return x_t

    def extra_repr(self) -> str:
        return f"features={self.features}"
