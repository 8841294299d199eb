"""What only moving the memory takes: the limit of neurons, which read x and write s, then read x and a gradient and write one."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

from benchmarks.harness import Run
from snnrobust.kernels import native

__all__ = ["LIMITS", "copy_and_add", "huge"]

LIMITS = ("memory limit, torch", "memory limit, C", "memory limit, C, past the caches")

_HUGE = 2**21


def copy_and_add(x: Tensor, grad: Tensor) -> dict[str, Run | str]:
    """Copy ``x`` to s and ``grad + x / 2`` to its gradient, in buffers that exist already, on huge pages where there are any."""
    s, grad_x = huge(x), huge(x)

    def by_torch() -> None:
        s.copy_(x)
        torch.add(grad, x, alpha=0.5, out=grad_x)

    if not native.available():
        reason = f"no compiled kernels: {native.status()}"
        return {LIMITS[0]: by_torch, LIMITS[1]: reason, LIMITS[2]: reason}
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    copy = native.function("stream_copy", pointer, pointer, size, number, number)
    triad = native.function("stream_triad", pointer, pointer, pointer, size, number, number)

    def by_c(around: int) -> Run:
        def move() -> None:
            copy(x.data_ptr(), s.data_ptr(), x.numel(), around, native.threads())
            triad(x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.numel(), around, native.threads())

        return move

    return {LIMITS[0]: by_torch, LIMITS[1]: by_c(0), LIMITS[2]: by_c(1)}


def huge(x: Tensor) -> Tensor:
    """An empty tensor like the contiguous ``x``, whose pages are huge where the system allows it, and there already."""
    block = mmap.mmap(-1, x.numel() * x.element_size() + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    bytes_ = torch.frombuffer(block, dtype=torch.uint8)
    begin = -bytes_.data_ptr() % _HUGE
    made = bytes_[begin : begin + x.numel() * x.element_size()].view(x.dtype).view(x.shape)
    return made.zero_()
