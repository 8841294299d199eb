"""Max and average pooling in 2d without int64 indices, on recycled memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from snnrobust.kernels import buffers, native
from snnrobust.kernels.native import I32, P

__all__ = ["avg_pool2d", "max_pool2d"]

Pair = tuple[int, int]
SMALLEST = 16384
"""Values of the smallest input for which the kernels pay for their call."""
aten = torch.ops.aten

_library = torch.library.Library("snnrobust", "FRAGMENT")
_window = "int[] kernel, int[] stride, int[] padding, bool ceil_mode"
_library.define(f"max_pool2d(Tensor x, {_window}) -> (Tensor, Tensor)")
_library.define(f"max_pool2d_backward(Tensor grad, Tensor codes, SymInt[] size, {_window}) -> Tensor")
_library.define(f"avg_pool2d(Tensor x, {_window}, bool include_pad) -> Tensor")
_library.define(f"avg_pool2d_backward(Tensor grad, SymInt[] size, {_window}, bool include_pad) -> Tensor")


def max_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
) -> Tensor:
    r"""``F.max_pool2d``, to the bit in both passes, which saves one byte for each output in place of an index of eight.

    .. math:: y_{ij} = \max_{k, l} x_{i s + k, j s + l}

    Args:
        x: ``[N, C, H, W]``. Contiguous or channels_last, float32 or bfloat16 and windows of at most 255 values have the kernel;
            all else, and what is small, is given to ``F.max_pool2d``.
        kernel_size, stride, padding, ceil_mode: As there.

    Returns:
        As there. Among equal values the first of a window has the gradient.
    """
    kernel, strides, pad = _windows(kernel_size, stride, padding)
    if not _fits(x, kernel, strides, pad, ceil_mode) or kernel[0] * kernel[1] > 255:
        return F.max_pool2d(x, kernel_size, stride, padding, 1, ceil_mode)
    if torch.is_grad_enabled() and x.requires_grad:
        return _MaxPool.apply(x, kernel, strides, pad, ceil_mode)  # type: ignore[no-untyped-call, no-any-return]
    return torch.ops.snnrobust.max_pool2d.default(x, kernel, strides, pad, ceil_mode)[0]  # type: ignore[no-any-return]


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    r"""``F.avg_pool2d``, to the bit in both passes, on recycled memory.

    .. math:: y_{ij} = \frac{1}{K L} \sum_{k, l} x_{i s + k, j s + l}

    Args:
        x: ``[N, C, H, W]``. Contiguous or channels_last, float32 or bfloat16 have the kernel; all else, and what is
            small, is given to ``F.avg_pool2d``.
        kernel_size, stride, padding, ceil_mode, count_include_pad: As there.
    """
    kernel, strides, pad = _windows(kernel_size, stride, padding)
    if not _fits(x, kernel, strides, pad, ceil_mode):
        return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if torch.is_grad_enabled() and x.requires_grad:
        return _AvgPool.apply(x, kernel, strides, pad, ceil_mode, count_include_pad)  # type: ignore[no-untyped-call, no-any-return]
    return torch.ops.snnrobust.avg_pool2d.default(  # type: ignore[no-any-return]
        x, kernel, strides, pad, ceil_mode, count_include_pad
    )


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> Tensor:
        y, codes = torch.ops.snnrobust.max_pool2d.default(x, kernel, stride, padding, ceil_mode)
        ctx.save_for_backward(codes)
        ctx.size, ctx.window = x.shape, (kernel, stride, padding, ceil_mode)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        if grad.requires_grad:  # it is differentiated again
            grad_x = _torch_max_backward(grad, codes, ctx.size, *ctx.window)
        else:
            grad_x = torch.ops.snnrobust.max_pool2d_backward.default(grad, codes, ctx.size, *ctx.window)
        return grad_x, None, None, None, None


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool, include_pad: bool
    ) -> Tensor:
        ctx.size, ctx.window = x.shape, (kernel, stride, padding, ceil_mode, include_pad)
        ctx.planes = x.is_contiguous()
        return torch.ops.snnrobust.avg_pool2d.default(x, *ctx.window)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.contiguous(memory_format=_format(ctx.planes))
        if grad.requires_grad:
            grad_x = _torch_avg_backward(grad, ctx.size, *ctx.window)
        else:
            grad_x = torch.ops.snnrobust.avg_pool2d_backward.default(grad, ctx.size, *ctx.window)
        return grad_x, None, None, None, None, None


# ---- when, and on what ------------------------------------------------------------------------------------------


def _windows(kernel_size: int | Pair, stride: int | Pair | None, padding: int | Pair) -> tuple[Pair, Pair, Pair]:
    kernel = _pair(kernel_size)
    return kernel, kernel if stride is None else _pair(stride), _pair(padding)


def _fits(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> bool:
    """Whether there is a kernel. What is wrong with the arguments torch says better, and its compiler has pooling of its own."""
    return (
        x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and native.available()
        and x.numel() >= max(SMALLEST, 1)
        and len(kernel) == len(stride) == len(padding) == 2
        and min(stride) > 0
        and 0 <= padding[0] <= kernel[0] // 2
        and 0 <= padding[1] <= kernel[1] // 2
        and min(_output(x.shape, kernel, stride, padding, ceil_mode)) > 0
    )


def _format(planes: bool) -> torch.memory_format:
    return torch.contiguous_format if planes else torch.channels_last


def _output(size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> Pair:
    """Height and width. In ceil mode the last window may be cut, but starts in the input or its left padding."""
    result = []
    for n, k, s, p in zip(size[-2:], kernel, stride, padding, strict=True):
        room = n + 2 * p - k + (s - 1 if ceil_mode else 0)
        count = room // s + 1
        result.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
    return result[0], result[1]


def _like(x: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of another size in the layout of ``x``."""
    _, C, H, W = size
    planes = x.is_contiguous()
    strides = (C * H * W, H * W, W, 1) if planes else (C * H * W, 1, W * C, C)
    return buffers.empty(size, x.dtype if dtype is None else dtype, strides)


@functools.lru_cache(maxsize=512)
def _shape(size: tuple[int, ...], planes: bool, bf16: bool, *window: Any) -> Any:
    """The C struct ``Shape``."""
    N, C, H, W = size
    kernel, stride, padding, _, *include_pad = window
    outer = (N * C, 1) if planes else (N, C)
    numbers = [*outer, H, W, *_output(size, *window[:4]), *kernel, *stride, *padding, *(include_pad or [True]), bf16]
    return (ctypes.c_int64 * len(numbers))(*numbers)


@functools.cache
def _c(name: str, pointers: int) -> Any:
    return native.function(name, *[P] * pointers, I32, result=ctypes.c_int)


def _call(name: str, *arguments: Any) -> None:
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if _c(name, len(pointers))(*pointers, native.threads()):
        raise MemoryError("no memory for pooling: use smaller batches")


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _key(*window: Any) -> tuple[Any, ...]:
    return tuple(tuple(w) if isinstance(w, list) else w for w in window)


# ---- operators --------------------------------------------------------------------------------------------------


def _max(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    if not native.available():
        return _torch_max(x, *window)
    x = _dense(x)
    size = (*x.shape[:2], *_output(x.shape, *window))
    y, codes = _like(x, size), _like(x, size, torch.uint8)
    shape = _shape(tuple(x.shape), x.is_contiguous(), x.dtype == torch.bfloat16, *_key(*window))
    _call("max_pool_forward", shape, x, y, codes)
    return y, codes


def _max_backward(grad: Tensor, codes: Tensor, size: Sequence[int], *window: Any) -> Tensor:
    if not native.available():
        return _torch_max_backward(grad, codes, size, *window)
    planes = codes.is_contiguous()
    grad = grad.contiguous(memory_format=_format(planes))
    grad_x = _like(codes, size, grad.dtype)
    shape = _shape(tuple(size), planes, grad.dtype == torch.bfloat16, *_key(*window))
    _call("pool_backward", shape, grad, grad_x, codes)
    return grad_x


def _avg(x: Tensor, *window: Any) -> Tensor:
    if not native.available():
        return _torch_avg(x, *window)
    x = _dense(x)
    y = _like(x, (*x.shape[:2], *_output(x.shape, *window[:4])))
    shape = _shape(tuple(x.shape), x.is_contiguous(), x.dtype == torch.bfloat16, *_key(*window))
    _call("avg_pool_forward", shape, x, y)
    return y


def _avg_backward(grad: Tensor, size: Sequence[int], *window: Any) -> Tensor:
    if not native.available():
        return _torch_avg_backward(grad, size, *window)
    grad = _dense(grad)
    grad_x = _like(grad, size)
    shape = _shape(tuple(size), grad.is_contiguous(), grad.dtype == torch.bfloat16, *_key(*window))
    _call("pool_backward", shape, grad, grad_x, None)
    return grad_x


def _meta(x: Tensor, size: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    format = _format(not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous())
    return torch.empty(size, dtype=x.dtype if dtype is None else dtype, device="meta", memory_format=format)


def _max_meta(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:2], *_output(x.shape, *window))
    return _meta(x, size), _meta(x, size, torch.uint8)


_library.impl("max_pool2d", _max, "CPU")
_library.impl("max_pool2d", _max_meta, "Meta")
_library.impl("max_pool2d_backward", _max_backward, "CPU")
_library.impl("max_pool2d_backward", lambda grad, codes, size, *_: _meta(codes, size, grad.dtype), "Meta")
_library.impl("avg_pool2d", _avg, "CPU")
_library.impl("avg_pool2d", lambda x, *window: _meta(x, (*x.shape[:2], *_output(x.shape, *window[:4]))), "Meta")
_library.impl("avg_pool2d_backward", _avg_backward, "CPU")
_library.impl("avg_pool2d_backward", lambda grad, size, *_: _meta(grad, size), "Meta")


# ---- the same in torch operations -------------------------------------------------------------------------------


def _corner(codes: Tensor, stride: Pair, padding: Pair) -> tuple[Tensor, Tensor]:
    """Row and column of each window's first value."""
    rows = torch.arange(codes.shape[2], device=codes.device)[:, None] * stride[0] - padding[0]
    columns = torch.arange(codes.shape[3], device=codes.device) * stride[1] - padding[1]
    return rows, columns


def _torch_max(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    y, indices = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode, return_indices=True)
    rows, columns = _corner(y, stride, padding)
    codes = (indices // x.shape[3] - rows) * kernel[1] + indices % x.shape[3] - columns
    return y, codes.to(torch.uint8)


def _torch_max_backward(
    grad: Tensor, codes: Tensor, size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> Tensor:
    rows, columns = _corner(codes, stride, padding)
    indices = (codes // kernel[1] + rows) * size[3] + codes % kernel[1] + columns
    x = _like(codes, size, grad.dtype)
    return aten.max_pool2d_with_indices_backward.default(  # type: ignore[no-any-return]
        grad, x, kernel, stride, padding, [1, 1], ceil_mode, indices
    )


def _torch_avg(x: Tensor, *window: Any) -> Tensor:
    return F.avg_pool2d(x, *window)


def _torch_avg_backward(grad: Tensor, size: Sequence[int], *window: Any) -> Tensor:
    return aten.avg_pool2d_backward.default(grad, _like(grad, size), *window, None)  # type: ignore[no-any-return]
