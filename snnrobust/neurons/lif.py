"""Integrate-and-fire neurons, leaky (LIF) and not (IF)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.neurons.surrogate import ATan, Surrogate, spike
from snnrobust.temporal import Temporal

__all__ = ["IF", "LIF", "Reset", "lif"]

Reset = Literal["soft", "hard"]


def lif(
    x: Tensor,
    decay: float,
    threshold: float = 1.0,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
) -> Tensor:
    r"""Leaky integrate-and-fire neurons over a whole sequence, from the zero state.

    .. math:: h_t = \beta v_{t-1} + x_t, \quad s_t = [h_t \ge \theta], \quad v_t = h_t - \theta s_t

    (hard reset: :math:`v_t = h_t (1 - s_t)`).

    Args:
        x: Input current, ``[T, B, *]``.
        decay: Leak :math:`\beta` in [0, 1]; 1 is integrate-and-fire.
        threshold: :math:`\theta` > 0, in units of the membrane.
        reset: ``"soft"`` subtracts the threshold, ``"hard"`` returns to zero.
        surrogate: Derivative used for :math:`\partial s / \partial h` in the backward pass.

    Returns:
        Spikes in {0, 1}, shape and dtype of ``x``.

    Raises:
        ValueError: ``decay`` outside [0, 1], ``threshold`` not positive, or ``x`` without a time axis.

    Source: Neftci, Mostafa and Zenke 2019. The reset is not differentiated, as in Zenke and Vogels 2021.
    """
    checks.sequence("x", x)
    _check(decay, threshold, reset, surrogate)
    return _LIF.apply(x, decay, threshold, reset == "hard", surrogate)  # type: ignore[no-any-return, no-untyped-call]


class _LIF(torch.autograd.Function):
    """The whole sequence in one node: T steps of a handful of kernels, and no graph of T steps to walk back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: float, threshold: float, hard: bool, surrogate: Surrogate) -> Tensor:
        h = torch.empty_like(x)
        s = torch.empty_like(x)
        v = torch.zeros_like(x[0])
        for x_t, h_t, s_t in zip(x.unbind(0), h.unbind(0), s.unbind(0), strict=True):
            torch.mul(v, decay, out=h_t)
            h_t.add_(x_t)  # multiply and add stay apart: step() and a kernel must round alike
            torch.ge(h_t, threshold, out=s_t)
            if hard:
                torch.mul(h_t, 1.0 - s_t, out=v)
            else:
                torch.sub(h_t, s_t, alpha=threshold, out=v)
        ctx.save_for_backward(h, s)
        ctx.constants = decay, threshold, hard, surrogate
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        h, s = ctx.saved_tensors
        decay, threshold, hard, surrogate = ctx.constants
        grad_h = surrogate.derivative(h - threshold).mul_(grad)
        steps = grad_h.unbind(0)
        for t in range(len(steps) - 2, -1, -1):
            carried = steps[t + 1] * decay
            steps[t].add_(carried.mul_(1.0 - s[t]) if hard else carried)
        return grad_h, None, None, None, None


def _check(decay: float, threshold: float, reset: str, surrogate: Surrogate) -> None:
    checks.number("decay", decay, 0.0, 1.0, hint="use decay=1.0 for integrate-and-fire")
    checks.number("threshold", threshold, 0.0, exclusive_low=True)
    checks.choice("reset", reset, get_args(Reset))
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {surrogate!r}")


class LIF(Temporal):
    """Leaky integrate-and-fire neurons, ``[T, B, *] -> [T, B, *]``; see :func:`lif`."""

    def __init__(
        self,
        decay: float = 0.95,
        threshold: float = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    ) -> None:
        super().__init__()
        _check(decay, threshold, reset, surrogate)
        self.decay, self.threshold, self.reset, self.surrogate = decay, threshold, reset, surrogate

    def forward(self, x: Tensor) -> Tensor:
        return lif(x, self.decay, self.threshold, self.reset, self.surrogate)

    def initial_state(self, x_t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = state * self.decay + x_t
        s = spike(h - self.threshold, self.surrogate)
        fired = s.detach()
        v = h * (1.0 - fired) if self.reset == "hard" else h - self.threshold * fired
        return s, v

    def extra_repr(self) -> str:
        return f"decay={self.decay}, threshold={self.threshold}, reset={self.reset!r}, surrogate={self.surrogate}"


class IF(LIF):
    """Integrate-and-fire neurons: :class:`LIF` without leak."""

    def __init__(
        self,
        threshold: float = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    ) -> None:
        super().__init__(1.0, threshold, reset, surrogate)
