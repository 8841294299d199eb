"""LIF neurons with an adaptive threshold."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from snnrobust.neurons.neuron import Constant, Neuron, Reset, along_channels
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["ALIF"]


class AdaptiveState(NamedTuple):
    """State of an :class:`ALIF`."""

    v: Tensor
    quiet: Tensor | None
    adaptation: Tensor


class ALIF(Neuron):
    r"""Adaptive LIF: each spike raises the threshold, which falls back exponentially.

    .. math:: a_t = \rho a_{t-1} + s_{t-1}, \quad \theta_t = \theta + \kappa a_t, \quad s_t = [\beta v_{t-1} + x_t \ge \theta_t]

    The soft reset subtracts :math:`\theta_t`. The gradient passes through :math:`a`, whatever ``detach_reset`` is.

    Args:
        decay: Leak :math:`\beta` in [0, 1].
        threshold: :math:`\theta` > 0, the threshold at rest.
        adaptation: :math:`\kappa \ge 0`, what a spike adds to the threshold, in units of the membrane.
        adaptation_decay: :math:`\rho` in [0, 1]. These four: a number or one per channel.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.

    Source: Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons".
    """

    decay: float | Tensor
    adaptation: float | Tensor
    adaptation_decay: float | Tensor

    def __init__(
        self,
        decay: Constant = 0.95,
        threshold: Constant = 1.0,
        adaptation: Constant = 0.2,
        adaptation_decay: Constant = 0.98,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self._constant("decay", decay, 0.0, 1.0, positive=False)
        self._constant("threshold", threshold, 0.0, math.inf, positive=True)
        self._constant("adaptation", adaptation, 0.0, math.inf, positive=False)
        self._constant("adaptation_decay", adaptation_decay, 0.0, 1.0, positive=False)

    def initial_state(self, x_t: Tensor) -> AdaptiveState:
        return AdaptiveState(*self._rest(x_t), torch.zeros_like(x_t))

    def step(self, x_t: Tensor, state: AdaptiveState) -> tuple[Tensor, AdaptiveState]:
        raised = state.adaptation * along_channels("adaptation", self.adaptation, x_t)
        threshold = along_channels("threshold", self.threshold, x_t) + raised
        h = state.v * along_channels("decay", self.decay, x_t) + self._input(x_t, state.quiet)
        s, membrane = self._fire(h, threshold, state.quiet)
        decayed = state.adaptation * along_channels("adaptation_decay", self.adaptation_decay, x_t)
        return s, AdaptiveState(*membrane, decayed + s)

    def extra_repr(self) -> str:
        return self._described("decay", "threshold", "adaptation", "adaptation_decay")
