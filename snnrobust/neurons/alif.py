"""LIF neurons with an adaptive threshold."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.kernels.lif import state_dtype
from snnrobust.neurons.neuron import (
    Constant,
    Neuron,
    Reset,
    along_channels,
    check_rule,
    continues,
    fire,
    heard,
    silence,
    within,
)
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["ALIF", "alif"]


class AdaptiveState(NamedTuple):
    """State of an :class:`ALIF`."""

    v: Tensor
    quiet: Tensor | None
    adaptation: Tensor


def alif(
    x: Tensor,
    decay: float | Tensor = 0.95,
    threshold: float | Tensor = 1.0,
    adaptation: float | Tensor = 0.2,
    adaptation_decay: float | Tensor = 0.98,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    detach_reset: bool = True,
    refractory: int = 0,
) -> Tensor:
    r"""Adaptive LIF over a whole sequence, from rest: each spike raises the threshold, which falls back exponentially.

    .. math:: a_t = \rho a_{t-1} + s_{t-1}, \quad \theta_t = \theta + \kappa a_t, \quad s_t = [\beta v_{t-1} + x_t \ge \theta_t]

    The soft reset subtracts :math:`\theta_t`. The gradient passes through :math:`a`, whatever ``detach_reset`` is.

    Args:
        x: Input current, ``[T, B, *]``.
        decay: Leak :math:`\beta` in [0, 1].
        threshold: :math:`\theta` > 0, the threshold at rest.
        adaptation: :math:`\kappa \ge 0`, what a spike adds to the threshold, in units of the membrane.
        adaptation_decay: :math:`\rho` in [0, 1]. These four: a number or one per channel. A tensor gets its gradient.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.

    Source: Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons".
    """
    checks.sequence("x", x)
    check_rule(reset, surrogate, detach_reset, refractory)
    constants = (
        along_channels("decay", within("decay", decay, 1.0), x[0]),
        along_channels("threshold", within("threshold", threshold, math.inf, positive=True), x[0]),
        along_channels("adaptation", within("adaptation", adaptation, math.inf), x[0]),
        along_channels("adaptation_decay", within("adaptation_decay", adaptation_decay, 1.0), x[0]),
    )
    rest, timed = torch.zeros_like(x[0], dtype=state_dtype(x.dtype)), refractory > 0 or surrogate.timed
    state = AdaptiveState(rest, silence(rest) if timed else None, rest)
    spikes = []
    for x_t in x.unbind(0):
        s, state = _step(x_t, state, constants, (reset, surrogate, detach_reset, refractory))
        spikes.append(s)
    return torch.stack(spikes)


def _step(
    x_t: Tensor,
    state: AdaptiveState,
    constants: tuple[float | Tensor, float | Tensor, float | Tensor, float | Tensor],
    rule: tuple[Reset, Surrogate, bool, int],
) -> tuple[Tensor, AdaptiveState]:
    decay, threshold, adaptation, adaptation_decay = constants
    h = state.v * decay + heard(x_t, state.quiet, rule[3])
    s, membrane = fire(h, threshold + state.adaptation * adaptation, state.quiet, *rule)
    return s.to(x_t.dtype), AdaptiveState(*membrane, state.adaptation * adaptation_decay + s)


class ALIF(Neuron):
    """Adaptive LIF neurons, ``[T, B, *] -> [T, B, *]``; see :func:`alif` for the arguments."""

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

    def forward(self, x: Tensor) -> Tensor:
        return alif(
            x, self.decay, self.threshold, self.adaptation, self.adaptation_decay,
            self.reset, self.surrogate, self.detach_reset, self.refractory,
        )  # fmt: skip

    def initial_state(self, x_t: Tensor) -> AdaptiveState:
        rest = self._rest(x_t)
        return AdaptiveState(*rest, torch.zeros_like(rest.v))

    def step(self, x_t: Tensor, state: AdaptiveState) -> tuple[Tensor, AdaptiveState]:
        constants = (
            along_channels("decay", self.decay, x_t),
            along_channels("threshold", self.threshold, x_t),
            along_channels("adaptation", self.adaptation, x_t),
            along_channels("adaptation_decay", self.adaptation_decay, x_t),
        )
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return _step(continues(x_t, state.v), state, constants, rule)

    def extra_repr(self) -> str:
        return self._described("decay", "threshold", "adaptation", "adaptation_decay")
