"""Batch normalisation and LIF neurons as one operation: the normalised currents are never stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust.kernels.layout import aligned, new_like
from snnrobust.kernels.lif import LifStruct, per_channel, run, start
from snnrobust.neurons.lif import _constants, _Rule, _split, _timed
from snnrobust.neurons.surrogate import in_kernel

__all__ = ["Norm", "norm_lif"]


class Norm(NamedTuple):
    r"""Normalisation of ``[T, B, C, *]``: :math:`y = (x - \mu) \, g / \sqrt{\sigma^2 + \epsilon} + b`.

    Attributes:
        gain, shift: :math:`g` and :math:`b` (or None), ``[T, C]``, or ``[1, C]`` for all steps alike.
        mean, var: :math:`\mu` and :math:`\sigma^2`, likewise; None for those of this batch, at each step where ``gain`` has
            T rows and over all steps where it has one.
        eps: :math:`\epsilon`.
    """

    gain: Tensor
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float


def norm_lif(
    x: Tensor, steps: int, norm: Norm, decay: float | Tensor, threshold: float | Tensor, rule: _Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~snnrobust.neurons.lif` of what ``norm`` makes of ``x``, and the mean and the variance (biased) that it used.

    Args:
        x: float32 or bfloat16 ``[T, B, C, *]`` on a CPU with compiled kernels; or ``[B, C, *]``, the same at each of ``steps``.
        norm: Statistics and constants in float32.
        decay, threshold, rule: As in ``lif``; the surrogate must be one that the kernels know.
    """
    constants = _constants(decay, threshold, x[None] if steps else x)
    s, mean, var = _NormLIF.apply(x, steps, norm.gain, norm.shift, norm.mean, norm.var, norm.eps, *constants, rule)  # type: ignore[no-untyped-call]
    return s, mean, var


class _NormLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, steps: int, gain: Tensor, shift: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float,
        decay: float | Tensor, threshold: float | Tensor, rule: _Rule,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (beta, betas), (theta, thetas) = _split(decay), _split(threshold)
        ctx.of_batch = mean is None or var is None
        if mean is None or var is None:
            mean, var = _moments(x, steps, len(gain))
        rstd = (var + eps).rsqrt()
        scale = gain.detach() * rstd
        ctx.save_for_backward(x, gain.detach(), None if shift is None else shift.detach(), mean, rstd, betas, thetas)
        ctx.numbers, ctx.rule, ctx.steps = (beta, theta), rule, steps
        ctx.shapes = [p.shape if isinstance(p, Tensor) else None for p in (decay, threshold)]
        x, k, kept = _prepared(x, steps, rule, (beta, theta), (betas, thetas), mean, scale, shift)
        s = new_like(x, steps)
        k.s = s.data_ptr()
        if k.M:
            run("lif_forward", k)
        del kept
        ctx.mark_non_differentiable(mean, var)
        return s, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, mean, rstd, betas, thetas = ctx.saved_tensors
        rule, steps, scale = ctx.rule, ctx.steps, gain * rstd
        of_gain, of_shift, of_decay, of_threshold = (ctx.needs_input_grad[i] for i in (2, 3, 7, 8))
        x, k, kept = _prepared(x, steps, rule, ctx.numbers, (betas, thetas), mean, scale, shift)
        grad = aligned(grad, x.expand(steps, *x.shape) if steps else x, x.dtype)
        k.grad, k.detach, (k.kind, k.a, k.b) = grad.data_ptr(), rule.detach_reset, in_kernel(rule.surrogate)
        of_h = new_like(x, steps if ctx.of_batch else 0)
        k.grad_x, k.unscaled = of_h.data_ptr(), ctx.of_batch
        sums = None
        if ctx.of_batch or of_gain or of_shift:
            sums = x.new_zeros((k.threads, len(gain), k.C, 2), dtype=torch.float64)
            k.sums = sums.data_ptr()
        one = x if steps else x[0]
        maps = [torch.empty_like(one, dtype=torch.float32) if asked else None for asked in (of_decay, of_threshold)]
        for name, made in zip(("grad_decay", "grad_threshold"), maps, strict=True):
            if made is not None:
                setattr(k, name, made.data_ptr())
        if k.M:
            run("lif_backward", k)
        first, second = (
            (None, None) if sums is None else sums.sum(0).unbind(-1)
        )  # of grad_h, and of grad_h * (x - mean)
        of_x = of_h
        if ctx.of_batch and first is not None and second is not None:
            of_x = _through_statistics(k, x, steps, of_h, scale, rstd, first, second)
        del kept, grad
        of_constants = [None if m is None else m.sum_to_size(s) for m, s in zip(maps, ctx.shapes, strict=True)]
        return (
            of_x, None, (second * rstd).to(gain.dtype) if second is not None and of_gain else None,
            first.to(gain.dtype) if first is not None and of_shift else None, None, None, None, *of_constants, None,
        )  # fmt: skip


def _prepared(
    x: Tensor, steps: int, rule: _Rule, numbers: tuple[float, float], constants: tuple[Tensor | None, Tensor | None],
    mean: Tensor, scale: Tensor, shift: Tensor | None,
) -> tuple[Tensor, LifStruct, list[Tensor]]:  # fmt: skip
    x, k = start(x, steps, rule.hard, rule.refractory, *numbers)
    kept = [per_channel(k, n, p) for n, p in zip(("decays", "thresholds"), constants, strict=True) if p is not None]
    for name, value in (("mean", mean), ("scale", scale), ("bias", shift)):
        if value is not None:
            kept.append(value.detach().expand(len(scale), k.C).to(torch.float32).contiguous())
            setattr(k, name, kept[-1].data_ptr())
    k.norm_step = k.C if len(scale) > 1 else 0
    if _timed(rule):  # told by a state, which the kernel looks for
        kept.append(torch.full_like(x if steps else x[0], 1000.0, dtype=torch.float32))
        k.quiet0 = kept[-1].data_ptr()
    return x, k, kept


def _moments(x: Tensor, steps: int, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the channels, ``[rows, C]``: at each step, or over all. Sums are of double precision."""
    once = x[None] if steps else x  # steps that are alike have the same statistics
    x, k = start(once, 0, False, 0, 0.0, 1.0)
    own = k.T if rows > 1 and not steps else 1
    pivot = _pivot(x, own)
    ones = torch.ones_like(pivot)
    sums = x.new_zeros((k.threads, own, k.C, 2), dtype=torch.float64)
    k.mean, k.scale, k.sums = pivot.data_ptr(), ones.data_ptr(), sums.data_ptr()
    k.norm_step = k.C if own > 1 else 0
    if k.M:
        run("norm_moments", k)
    first, second = (sums.sum(0) * (own / (k.T * k.M // k.C))).unbind(-1)
    mean, var = (pivot + first).float(), (second - first.square()).clamp(min=0.0).float()
    return mean.expand(rows, -1).contiguous(), var.expand(rows, -1).contiguous()


def _pivot(x: Tensor, rows: int) -> Tensor:
    """A value of each channel, ``[rows, C]`` float32: from there sums of squares cancel nothing."""
    values = x[:rows, 0].reshape(rows, x.shape[2], -1)[:, :, 0].float()
    return values.nan_to_num().contiguous()


def _through_statistics(
    k: LifStruct, x: Tensor, steps: int, of_h: Tensor, scale: Tensor, rstd: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    r""":math:`\partial x = s \, (\partial h - \overline{\partial h} - \hat x \, \overline{\partial h \, \hat x})`."""
    count = k.T * k.M // k.C // len(scale)
    slope = scale.expand(len(scale), k.C).contiguous()
    back = (-scale * rstd.square() * (second / count)).float().contiguous()
    offset = (-scale * (first / count)).float().contiguous()
    of_x = torch.empty_like(x) if steps else of_h
    k.grad, k.grad_x, k.slope, k.scale, k.bias = (t.data_ptr() for t in (of_h, of_x, slope, back, offset))
    if k.M:
        run("norm_backward", k)
    return of_x
