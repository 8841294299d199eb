r"""Gaussian noise on products, drawn and applied in one pass: C code on the CPU, torch operations elsewhere, the same bits.

.. math:: \tilde y = y \, (1 + \sigma_m \xi) + \sigma_a \xi'

The draws are those of :func:`snnrobust.kernels.philox.normal`: one an element for one kind of noise; for both two, side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from snnrobust.kernels import native
from snnrobust.kernels.buffers import empty
from snnrobust.kernels.lif import watched
from snnrobust.kernels.native import F32, I32, I64, P
from snnrobust.kernels.philox import normal

__all__ = ["gaussian_noise"]

Rows = tuple[int, int]


def gaussian_noise(
    y: Tensor, key: Tensor, sample_ids: Tensor, rows: Rows, start: int, multiplicative: float, additive: float
) -> Tensor:
    """``y`` with noise, differentiable in ``y``; nothing of the size of ``y`` is kept for the backward pass.

    Args:
        y: ``[T, B, *]``, floating.
        key, sample_ids: As for :func:`snnrobust.kernels.philox.normal`; one id for each of the drawn samples.
        rows: Steps and samples that are drawn: ``(T, B)``, or with 1 in place of what shares its noise; with ``B`` shared, T is.
        start: The first time step.
        multiplicative, additive: :math:`\\sigma_m, \\sigma_a \\ge 0`, one of them above 0.
    """
    if not _compiled_takes(y):
        return _in_torch(y, key, sample_ids, rows, start, multiplicative, additive)
    both = _both(multiplicative, additive)
    run = _Noise.apply if y.requires_grad and torch.is_grad_enabled() else _run
    noisy: Tensor = run(y, key, sample_ids, rows, start, multiplicative, additive, both)
    return noisy


def _both(multiplicative: float, additive: float) -> bool:
    return multiplicative > 0 and additive > 0


def _compiled_takes(y: Tensor) -> bool:
    """Layouts other than the plain one keep their strides in torch operations."""
    return (
        not watched()
        and type(y) is Tensor
        and y.dtype == torch.float32
        and y.is_cpu
        and y.is_contiguous()
        and not _transformed(y)
        and native.available()
    )


def _transformed(y: Tensor) -> bool:
    """Inside of a transformation of ``torch.func`` a tensor has no memory of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(y) or torch.autograd.forward_ad._current_level >= 0


def _in_torch(
    y: Tensor, key: Tensor, sample_ids: Tensor, rows: Rows, start: int, multiplicative: float, additive: float
) -> Tensor:
    kinds = 1 + _both(multiplicative, additive)
    xi = normal(key, sample_ids, (*rows, *y.shape[2:], kinds), start).to(y.dtype).unbind(-1)
    if multiplicative > 0:
        y = y * (1.0 + multiplicative * xi[0])
    if additive > 0:
        y = y + additive * xi[-1]
    return y


@functools.cache
def _compiled() -> Callable[..., None]:
    return native.function("gaussian_noise", P, P, I64, I64, I64, I64, I64, P, P, F32, F32, I32, I32, I32, I32)


def _run(
    y: Tensor,
    key: Tensor,
    sample_ids: Tensor,
    rows: Rows,
    start: int,
    multiplicative: float,
    additive: float,
    both: bool,
) -> Tensor:
    y = y.detach().resolve_neg()
    steps, batch, *rest = y.shape
    key, sample_ids = key.to(torch.int64).contiguous(), sample_ids.to(torch.int64).contiguous()
    known = rows[0] in (1, steps) and rows[1] in (1, batch) and (rows[0] == 1 or rows[1] == batch)
    if not known or key.shape != (2,) or sample_ids.shape != (rows[1],):
        raise ValueError(
            f"noise for {steps} steps of {batch} samples cannot be drawn for {rows} with a key of shape {tuple(key.shape)} "
            f"and sample_ids of shape {tuple(sample_ids.shape)}"
        )
    out = empty(y.shape)
    drawn = rows[0] * rows[1]
    _compiled()(
        key.data_ptr(), sample_ids.data_ptr(), steps * batch // max(drawn, 1), *rows, prod(rest), start,
        y.data_ptr(), out.data_ptr(), multiplicative, additive, both, multiplicative > 0, additive > 0, native.threads(),
    )  # fmt: skip
    return out


class _Noise(torch.autograd.Function):
    r""":math:`\partial \tilde y / \partial y = 1 + \sigma_m \xi`: the backward pass draws again and keeps nothing."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, key: Tensor, sample_ids: Tensor, rows: Rows, start: int, multiplicative: float, additive: float,
        both: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(key, sample_ids)
        ctx.rest = rows, start, multiplicative, both
        return _run(y, key, sample_ids, rows, start, multiplicative, additive, both)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key, sample_ids = ctx.saved_tensors
        rows, start, multiplicative, both = ctx.rest
        if multiplicative > 0:
            grad = _Noise.apply(grad.contiguous(), key, sample_ids, rows, start, multiplicative, 0.0, both)  # type: ignore[no-untyped-call]
        return grad, None, None, None, None, None, None, None
