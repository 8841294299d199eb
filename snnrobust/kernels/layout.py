"""How a tensor ``[T, B, C, *]`` lies in memory, as kernels need to know it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from snnrobust.kernels import native
from snnrobust.kernels.buffers import empty, empty_like

__all__ = ["aligned", "channel_layout", "for_convolution", "new_like"]


def channel_layout(x: Tensor, axis: int) -> tuple[Tensor, int, int]:
    """``x`` as it is, if contiguous or channels last, else contiguous; and C and ``inner``, so that its element i in memory
    is of channel ``i // inner % C``. The channel axis is ``axis``; an ``x`` without one counts as one channel."""
    x = x.resolve_neg()
    if x.dim() <= axis:
        x = x.contiguous()
        return x, 1, max(x.numel(), 1)
    C = x.shape[axis]
    if x.is_contiguous():
        return x, C, max(prod(x.shape[axis + 1 :]), 1)
    if _channels_last(x, axis):
        return x, C, 1
    return channel_layout(x.contiguous(), axis)


def _channels_last(x: Tensor, axis: int) -> bool:
    """Dense, with the channels innermost."""
    expected = 1
    order = (axis, *range(x.dim() - 1, axis, -1), *range(axis - 1, -1, -1))
    for dim in order:
        if x.shape[dim] != 1 and x.stride(dim) != expected:
            return False
        expected *= x.shape[dim]
    return x.numel() > 0


def for_convolution(x: Tensor) -> Tensor:
    """``x`` ``[N, C, H, W]`` with its channels innermost, said by its strides for one channel too, where kernels run."""
    if x.dim() != 4 or not x.is_cpu or not native.available():
        return x
    if x.shape[1] == 1 and x.is_contiguous():
        return x.view(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def aligned(tensor: Tensor, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``tensor`` in the layout of ``like`` (dense, but for a first axis that may be expanded) and ``dtype``, or itself."""
    stride = like.stride()
    if like.dim() and like.shape[0] > 1 and stride[0] == 0:
        stride = (like[0].numel(), *stride[1:])
    if tensor.dtype == dtype and tensor.stride() == stride and not tensor.is_neg():
        return tensor
    if not like.is_cpu:
        return torch.empty_strided(like.shape, stride, dtype=dtype, device=like.device).copy_(tensor)
    return empty(like.shape, dtype, stride).copy_(tensor)


def new_like(x: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of the layout of ``x``, or of ``steps`` of it."""
    if not steps:
        return empty_like(x, dtype)
    shape, stride, dtype = (steps, *x.shape), (x.numel(), *x.stride()), x.dtype if dtype is None else dtype
    return empty(shape, dtype, stride) if x.is_cpu else torch.empty_strided(shape, stride, dtype=dtype, device=x.device)
