"""Current-based LIF neurons: the input passes a leaky synapse first."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.kernels.lif import state_dtype
from snnrobust.neurons.lif import lif
from snnrobust.neurons.neuron import Constant, Neuron, Reset, along_channels, continues, heard
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["CuBaLIF", "leaky_integral"]


def leaky_integral(x: Tensor, decay: float | Tensor) -> Tensor:
    r"""A leaky integrator over a whole sequence, :math:`i_t = \alpha i_{t-1} + x_t`, from zero.

    Args:
        x: ``[T, B, *]``.
        decay: :math:`\alpha` in [0, 1], a number or one per channel. A tensor gets its gradient.
    """
    checks.sequence("x", x)
    if isinstance(decay, Tensor):
        checks.within("decay", decay, 0.0, 1.0)
    else:
        checks.number("decay", decay, 0.0, 1.0)
    return _LeakyIntegral.apply(x, along_channels("decay", decay, x[0]))  # type: ignore[no-any-return, no-untyped-call]


class _LeakyIntegral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: float | Tensor) -> Tensor:
        out = _scan(x, decay, reverse=False)
        ctx.number = None if isinstance(decay, Tensor) else decay
        ctx.save_for_backward(None if ctx.number is not None else decay, out if ctx.needs_input_grad[1] else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        decay, out = ctx.saved_tensors
        grad_x = _scan(grad, ctx.number if decay is None else decay, reverse=True)
        return grad_x, None if out is None else (grad_x[1:] * out[:-1]).sum(0).sum_to_size(decay.shape)


def _scan(x: Tensor, decay: float | Tensor, reverse: bool) -> Tensor:
    if torch.compiler.is_compiling():  # a graph with gradients may not write into views
        return _scan_traced(x, decay, reverse)
    out = torch.empty_like(x)
    before = torch.zeros_like(x[0])
    pairs = list(zip(x.unbind(0), out.unbind(0), strict=True))
    for x_t, out_t in reversed(pairs) if reverse else pairs:
        torch.mul(before, decay, out=out_t)
        before = out_t.add_(x_t)
    return out


def _scan_traced(x: Tensor, decay: float | Tensor, reverse: bool) -> Tensor:
    before, out = torch.zeros_like(x[0]), []
    for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
        before = before * decay + x_t
        out.append(before)
    return torch.stack(out[::-1] if reverse else out)


class CurrentState(NamedTuple):
    """State of a :class:`CuBaLIF`."""

    v: Tensor
    quiet: Tensor | None
    current: Tensor


class CuBaLIF(Neuron):
    r"""Current-based LIF: :math:`i_t = \alpha i_{t-1} + x_t`, then :func:`~snnrobust.neurons.lif` of :math:`i`.

    Args:
        current_decay: Leak :math:`\alpha` of the synaptic current, in [0, 1]; a number or one per channel.
        decay, threshold, reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`. In its refractory
            period the neuron ignores the current, which goes on.

    Source: Neftci, Mostafa and Zenke 2019, "Surrogate gradient learning in SNNs".
    """

    current_decay: float | Tensor
    decay: float | Tensor

    def __init__(
        self,
        current_decay: Constant = 0.5,
        decay: Constant = 0.95,
        threshold: Constant = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self._constant("current_decay", current_decay, 0.0, 1.0, positive=False)
        self._constant("decay", decay, 0.0, 1.0, positive=False)
        self._constant("threshold", threshold, 0.0, math.inf, positive=True)

    def forward(self, x: Tensor) -> Tensor:
        current = leaky_integral(checks.sequence("x", x).to(state_dtype(x.dtype)), self.current_decay)
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return lif(current, self.decay, self.threshold, *rule).to(x.dtype)

    def initial_state(self, x_t: Tensor) -> CurrentState:
        rest = self._rest(x_t)
        return CurrentState(*rest, torch.zeros_like(rest.v))

    def step(self, x_t: Tensor, state: CurrentState) -> tuple[Tensor, CurrentState]:
        x_t = continues(x_t, state.v)
        current = state.current * along_channels("current_decay", self.current_decay, x_t) + x_t
        h = state.v * along_channels("decay", self.decay, x_t) + heard(current, state.quiet, self.refractory)
        s, membrane = self._fire(h, along_channels("threshold", self.threshold, x_t), state.quiet, x_t.dtype)
        return s, CurrentState(*membrane, current)

    def extra_repr(self) -> str:
        return self._described("current_decay", "decay", "threshold")
