"""Integrate-and-fire neurons, leaky (LIF) and not (IF)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.neurons.neuron import (
    Constant,
    Membrane,
    Neuron,
    Reset,
    along_channels,
    check_rule,
    continues,
    heard,
    silence,
    within,
)
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["IF", "LIF", "lif"]


def lif(
    x: Tensor,
    decay: float | Tensor,
    threshold: float | Tensor = 1.0,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    detach_reset: bool = True,
    refractory: int = 0,
) -> Tensor:
    r"""Leaky integrate-and-fire neurons over a whole sequence, from the zero state.

    .. math:: h_t = \beta v_{t-1} + x_t, \quad s_t = [h_t \ge \theta], \quad v_t = h_t - \theta s_t

    (hard reset: :math:`v_t = h_t (1 - s_t)`). A neuron within its refractory period takes :math:`x_t = 0` and :math:`s_t = 0`.

    Args:
        x: Input current, ``[T, B, *]``.
        decay: Leak :math:`\beta` in [0, 1], a number or one per channel (``[C]`` for ``x`` ``[T, B, C, *]``); 1 is
            integrate-and-fire. A tensor gets its gradient.
        threshold: :math:`\theta` > 0, in units of the membrane; a number or one per channel.
        reset: ``"soft"`` subtracts the threshold, ``"hard"`` returns to zero.
        surrogate: Derivative used for :math:`\partial s / \partial h` in the backward pass.
        detach_reset: Whether :math:`s_t` in the reset counts as a constant in the backward pass (Zenke and Vogels 2021).
        refractory: Steps after a spike in which the neuron ignores its input and does not fire.

    Returns:
        Spikes in {0, 1}, shape and dtype of ``x``. A membrane that became NaN does not fire, and gives NaN at the last step.

    Raises:
        ValueError: ``decay`` outside [0, 1], ``threshold`` not positive, or ``x`` without a time axis.

    Source: Neftci, Mostafa and Zenke 2019.
    """
    checks.sequence("x", x)
    check_rule(reset, surrogate, detach_reset, refractory)
    decay = along_channels("decay", within("decay", decay, 1.0), x[0])
    threshold = along_channels("threshold", within("threshold", threshold, math.inf, positive=True), x[0])
    return _LIF.apply(x, decay, threshold, reset == "hard", surrogate, detach_reset, refractory)  # type: ignore[no-any-return, no-untyped-call]


class _LIF(torch.autograd.Function):
    """The whole sequence in one node: T steps of a handful of kernels, and no graph of T steps to walk back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        decay: float | Tensor,
        threshold: float | Tensor,
        hard: bool,
        surrogate: Surrogate,
        detach_reset: bool,
        refractory: int,
    ) -> Tensor:
        # a graph with gradients may not write into views, and fuses the copies
        h, s = (_traced if torch.compiler.is_compiling() else _in_place)(x, decay, threshold, hard, refractory)
        values = [p if isinstance(p, Tensor) else None for p in (decay, threshold)]
        ctx.save_for_backward(h, s, *values)
        ctx.constants = decay if values[0] is None else None, threshold if values[1] is None else None
        ctx.rule = hard, surrogate, detach_reset, refractory
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, s, decay, threshold = ctx.saved_tensors
        decay = ctx.constants[0] if decay is None else decay
        threshold = ctx.constants[1] if threshold is None else threshold
        hard, surrogate, detach_reset, refractory = ctx.rule
        quiet = _quiet(s) if refractory or surrogate.timed else None
        slope = surrogate.derivative(h - threshold if quiet is None or not surrogate.timed else quiet.to(h.dtype))
        active = quiet > refractory if quiet is not None and refractory else None
        if active is not None:
            slope = slope * active
        of_decay, of_threshold = ctx.needs_input_grad[1:3]
        plain = detach_reset and not of_threshold
        # grad_h = slope * (grad + carried * feedback) + carried * kept, where carried is what reaches v_t from step t + 1
        grad_h = slope.mul_(grad) if plain else torch.empty_like(h)
        grad_decay, grad_threshold = torch.zeros_like(h[0]), torch.zeros_like(h[0])
        carried = torch.zeros_like(h[0])
        for t in range(len(h) - 1, -1, -1):
            h_t, s_t, grad_t = h[t], s[t], grad_h[t]
            if t < len(h) - 1:
                if of_decay:
                    grad_decay += grad_h[t + 1] * _reset(h_t, s_t, threshold, hard)
                carried = grad_h[t + 1] * decay
            kept = carried * (1.0 - s_t) if hard else carried
            if plain:
                grad_t.add_(kept)
                continue
            through_spike = grad[t] if detach_reset else grad[t] - carried * (h_t if hard else threshold)
            through_spike = through_spike * slope[t]
            torch.add(through_spike, kept, out=grad_t)
            if of_threshold:
                grad_threshold -= through_spike if hard else through_spike + carried * s_t
        of_constants = (
            grad_decay.sum_to_size(decay.shape) if of_decay else None,
            grad_threshold.sum_to_size(threshold.shape) if of_threshold else None,
        )
        return grad_h if active is None else grad_h * active, *of_constants, None, None, None, None


def _in_place(
    x: Tensor, decay: float | Tensor, threshold: float | Tensor, hard: bool, refractory: int
) -> tuple[Tensor, Tensor]:
    h = torch.empty_like(x)
    s = torch.empty_like(x)
    v = torch.zeros_like(x[0])
    quiet = silence(v) if refractory else None
    for x_t, h_t, s_t in zip(x.unbind(0), h.unbind(0), s.unbind(0), strict=True):
        torch.mul(v, decay, out=h_t)
        active = None if quiet is None else quiet > refractory
        # multiply and add stay apart: step() and a kernel round alike
        h_t.add_(x_t if active is None else x_t * active)
        torch.ge(h_t, threshold, out=s_t)
        if quiet is not None and active is not None:
            s_t.mul_(active)
            quiet = torch.where(s_t > 0, 1.0, quiet + 1.0)
        _reset(h_t, s_t, threshold, hard, out=v)
    s[-1].masked_fill_(h[-1].isnan(), math.nan)  # NaN never fires, but stays: the last step tells
    return h, s


def _traced(
    x: Tensor, decay: float | Tensor, threshold: float | Tensor, hard: bool, refractory: int
) -> tuple[Tensor, Tensor]:
    """The same, to the bit, without writing into anything."""
    v = torch.zeros_like(x[0])
    quiet = silence(v) if refractory else None
    potentials, spikes = [], []
    for x_t in x.unbind(0):
        active = None if quiet is None else quiet > refractory
        h = v * decay + (x_t if active is None else x_t * active)
        s = (h >= threshold).to(h.dtype)
        if quiet is not None and active is not None:
            s = s * active
            quiet = torch.where(s > 0, 1.0, quiet + 1.0)
        v = _reset(h, s, threshold, hard)
        potentials.append(h)
        spikes.append(s)
    spikes[-1] = spikes[-1].masked_fill(potentials[-1].isnan(), math.nan)
    return torch.stack(potentials), torch.stack(spikes)


def _reset(h: Tensor, s: Tensor, threshold: float | Tensor, hard: bool, out: Tensor | None = None) -> Tensor:
    if hard:
        return torch.mul(h, 1.0 - s, out=out)
    if isinstance(threshold, Tensor):
        return torch.sub(h, s * threshold, out=out)
    return torch.sub(h, s, alpha=threshold, out=out)


def _quiet(s: Tensor) -> Tensor:
    """Steps since the last spike before each step, ``[T, B, *]``."""
    quiet, trace = silence(s[0]), []
    for s_t in s.unbind(0):
        trace.append(quiet)
        quiet = torch.where(s_t > 0, 1.0, quiet + 1.0)
    return torch.stack(trace)


class LIF(Neuron):
    """Leaky integrate-and-fire neurons, ``[T, B, *] -> [T, B, *]``; see :func:`lif` for the arguments.

    ``decay`` and ``threshold`` are constants, a number or a sequence of one per channel; :class:`~snnrobust.neurons.PLIF`
    and :class:`~snnrobust.neurons.LearnableThresholdLIF` learn theirs.
    """

    decay: float | Tensor

    def __init__(
        self,
        decay: Constant = 0.95,
        threshold: Constant = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self._constant("decay", decay, 0.0, 1.0, positive=False)
        self._constant("threshold", threshold, 0.0, math.inf, positive=True)

    def forward(self, x: Tensor) -> Tensor:
        return lif(
            x, self.decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory
        )  # fmt: skip

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        x_t = heard(continues(x_t, state.v), state.quiet, self.refractory)
        h = state.v * along_channels("decay", self.decay, x_t) + x_t
        return self._fire(h, along_channels("threshold", self.threshold, x_t), state.quiet)

    def extra_repr(self) -> str:
        return self._described("decay", "threshold")


class IF(LIF):
    """Integrate-and-fire neurons: :class:`LIF` without leak."""

    def __init__(
        self,
        threshold: Constant = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(1.0, threshold, reset, surrogate, detach_reset, refractory)

    def extra_repr(self) -> str:
        return self._described("threshold")
