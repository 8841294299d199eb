"""Temporal coding: the brighter, the earlier."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import Encoder

__all__ = ["Latency"]

Mapping = Literal["linear", "logarithmic"]
_LONGEST = 80  # exp(80) is within float32, and so is the slope at zero
_LARGEST_HALF = torch.finfo(torch.float16).max


class Latency(Encoder):
    r"""Time to first spike: one spike for each element, :math:`s_t = [t = \mathrm{round}(t_f(x))]`, with

    .. math:: t_f = (T - 1)(1 - x) \quad\text{or}\quad t_f = (T - 1) - \ln(\alpha x + 1), \; \alpha = e^{T-1} - 1.

    Ones spike at step 0 and zeros at step T - 1: black is coded as well, by the last spike. Rounding is to even.

    The declared gradient shares a spike at a fractional time linearly between its two neighbouring steps. With :math:`g` the
    gradient at the output, :math:`\partial L / \partial x = (g_{\lceil t_f \rceil} - g_{\lfloor t_f \rfloor}) \, t_f'(x)`; where
    :math:`t_f` is an integer :math:`k`, :math:`(g_{k+1} - g_{k-1}) / 2`, one-sided at both ends; :math:`t_f'` is exact. The
    logarithm is steep at zero, :math:`t_f'(0) = -\alpha`.

    Args:
        time_steps: T, at least 2; at most 80 for the logarithm.
        mapping: ``"linear"`` or ``"logarithmic"``.

    Raises:
        ValueError: a value outside [0, 1]; float16 that requires a gradient, for the logarithm of more than 12 steps.

    Source: Thorpe, Delorme and Van Rullen 2001 (the idea); both mappings are SpikingJelly's.
    """

    truncatable = False

    def __init__(self, time_steps: int, mapping: Mapping = "linear") -> None:
        super().__init__(checks.count("time_steps", time_steps, 2, "with one step every value spikes at the same time"))
        self.mapping = checks.choice("mapping", mapping, get_args(Mapping))
        if self.mapping == "logarithmic" and time_steps > _LONGEST:
            raise ValueError(
                f"time_steps must be at most {_LONGEST} for the logarithm, got {time_steps}: use mapping='linear'"
            )

    @property
    def stochastic(self) -> bool:
        return False

    def _spike_time(self, x: Tensor) -> Tensor:
        """:math:`t_f`, not rounded; at least float32."""
        last = self.time_steps - 1.0
        if (
            self.mapping == "logarithmic"
            and x.requires_grad
            and x.dtype == torch.float16
            and math.expm1(last) > _LARGEST_HALF
        ):
            raise ValueError(
                f"x must not be float16 for the logarithm of {self.time_steps} time steps, whose slope it cannot hold: "
                "convert with x.float(), or use mapping='linear'"
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.mapping == "linear":
            return last * (1.0 - x)
        return last - torch.log1p(math.expm1(last) * x)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return _OneSpike.apply(self._spike_time(x), start, steps, self.time_steps).to(x.dtype)  # type: ignore[no-any-return, no-untyped-call]


class _OneSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spike_time: Tensor, start: int, steps: int, time_steps: int) -> Tensor:
        # ln(alpha + 1) may miss T - 1 by a rounding. Cut here: autograd's clamp would pass no gradient at x = 1.
        spike_time = spike_time.clamp(0, time_steps - 1)
        ctx.save_for_backward(spike_time)
        ctx.start, ctx.last = start, time_steps - 1
        t = torch.arange(start, start + steps, device=spike_time.device).view(-1, *[1] * spike_time.dim())
        return (spike_time.round() == t).to(spike_time.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (spike_time,) = ctx.saved_tensors
        before = (spike_time.ceil().long() - 1).clamp(min=0)  # the neighbours; of an integer those on both sides
        after = (spike_time.floor().long() + 1).clamp(max=ctx.last)
        return (_at(grad, after - ctx.start) - _at(grad, before - ctx.start)) / (after - before), None, None, None


def _at(grad: Tensor, step: Tensor) -> Tensor:
    """``grad[step]`` element by element, and zero where ``step`` is in another chunk."""
    found = grad.gather(0, step.clamp(0, len(grad) - 1)[None])[0]
    return found * ((step >= 0) & (step < len(grad)))
