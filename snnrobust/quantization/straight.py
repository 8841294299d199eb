"""Rounding to levels with a declared gradient, and that of a learned step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust.quantization.levels import Levels

__all__ = ["lsq", "straight_through"]


def straight_through(x: Tensor, step: Tensor, zero: Tensor | None, levels: Levels, clipped: bool) -> Tensor:
    r"""Nearest level, with the gradient of the identity.

    .. math:: q = s \, (L(x / s + z) - z), \quad \partial q / \partial x := [l - m \le x / s + z \le u + m] \text{ or } 1

    with levels L from l to u and their margin m (half a step of integers, as torch's fake quantization has it). ``step`` s and
    ``zero`` z get no gradient.

    Args:
        x: Any shape.
        step: s > 0, broadcasts over ``x``; where it is 0, so is q, and the gradient is 1: a layer that is silent so far must be
            able to learn and to be attacked.
        zero: z, an integer; None for 0.
        levels: L.
        clipped: Whether the gradient is zero where the levels saturate.
    """
    return _Straight.apply(x, step, zero, levels, clipped)  # type: ignore[no-any-return, no-untyped-call]


def lsq(x: Tensor, step: Tensor, levels: Levels, scale: float) -> Tensor:
    r"""Nearest level with a step that is learned.

    .. math:: q = s \, L(x / s), \quad \partial q / \partial x := [l < x/s < u], \quad
        \partial q / \partial s := g \cdot \begin{cases} l & x/s \le l \\ u & x/s \ge u \\ L(x/s) - x/s & \text{else} \end{cases}

    Args:
        x: Any shape.
        step: s > 0, broadcasts over ``x``.
        levels: L.
        scale: g, for which the paper takes :math:`1 / \sqrt{N u}`, N numbers to a step.

    Source: Esser et al. 2020, "Learned step size quantization".
    """
    return _LSQ.apply(x, step, levels, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor | None, levels: Levels, clipped: bool) -> Tensor:
        u = x / step
        if zero is not None:
            u += zero
        if clipped and ctx.needs_input_grad[0] and not x.is_meta:
            low, high = levels.low - levels.margin, levels.high + levels.margin
            least, most = u.aminmax()  # one pass, after which there is mostly nothing to mask
            within = bool((least >= low) & (most <= high))  # not so where a step is 0
            ctx.save_for_backward(None if within else (u >= low) & (u <= high) | ~(step > 0))
        q = levels.nearest(u)
        if zero is not None:
            q -= zero
        q *= step
        # A step of 0 (all numbers are 0, or too small for one) has 0 alone.
        return q if step.is_meta or bool((step > 0).all()) else torch.where(step > 0, q, torch.zeros_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside = ctx.saved_tensors[0] if ctx.saved_tensors else None
        return (grad if inside is None else grad * inside, None, None, None, None)


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: Levels, scale: float) -> Tensor:
        u = x / step
        q = levels.nearest(u)
        if any(ctx.needs_input_grad) and not x.is_meta:
            least, most = u.aminmax()
            within = bool((least > levels.low) & (most < levels.high))
            inside = None if within else (u > levels.low) & (u < levels.high)
            ctx.save_for_backward(u, q, step, inside)
            ctx.scale = scale
        return q * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, q, step, inside = ctx.saved_tensors
        of_x = grad if inside is None else grad * inside
        of_step = None
        if ctx.needs_input_grad[1]:
            # inside the levels q - u, beyond them the last level, which is q
            if step.numel() == 1:
                whole = torch.dot(grad.flatten(), q.flatten()) - torch.dot(of_x.flatten(), u.flatten())
                of_step = whole.reshape(step.shape) * ctx.scale
            else:
                of_step = (grad * q - of_x * u).sum_to_size(step.shape) * ctx.scale
        return of_x if ctx.needs_input_grad[0] else None, of_step, None, None
