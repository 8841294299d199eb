"""How a tensor ``[T, B, C, *]`` lies in memory, as kernels need to know it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["aligned", "channel_layout", "new_like"]


def channel_layout(x: Tensor, axis: int) -> tuple[Tensor, int, int]:
    """``x`` as it is, if contiguous or channels last, else contiguous; and C and ``inner``, so that its element i in memory
    is of channel ``i // inner % C``. The channel axis is ``axis``; an ``x`` without one counts as one channel."""
    if x.dim() <= axis:
        x = x.contiguous()
        return x, 1, max(x.numel(), 1)
    C = x.shape[axis]
    if x.is_contiguous():
        inner = x[(0,) * (axis + 1)].numel() if x.numel() else 1
        return x, C, inner
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


def aligned(tensor: Tensor, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``tensor`` in the layout of ``like`` (dense, but for a first axis that may be expanded) and in ``dtype``; a view where it can be."""
    stride = like.stride()
    if like.dim() and like.shape[0] > 1 and stride[0] == 0:
        stride = (like[0].numel(), *stride[1:])
    if tensor.dtype == dtype and tensor.stride() == stride:
        return tensor
    return torch.empty_strided(like.shape, stride, dtype=dtype, device=like.device).copy_(tensor)


def new_like(x: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of the layout of ``x``, or of ``steps`` of it."""
    dtype = x.dtype if dtype is None else dtype
    shape, stride = x.shape, x.stride()
    if steps:
        shape, stride = (steps, *shape), (x.numel(), *stride)
    return torch.empty_strided(shape, stride, dtype=dtype, device=x.device)
