"""Recycled memory for large tensors.

The C library maps a large block afresh for each tensor and unmaps it when the tensor dies, so that every page is faulted in and
zeroed again at each call; that costs more than any kernel. Here blocks of huge pages go back to a pool when the last tensor on
them dies, views, numpy arrays and autograd graphs included.

``SNNROBUST_BUFFERS`` is ``off``, or the limit of :func:`limit_memory` in MiB.
"""

from __future__ import annotations

import atexit
import itertools
import math
import mmap
import os
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnrobust import checks

__all__ = ["Memory", "Pool", "empty", "empty_like", "limit_memory", "memory", "release_memory"]

PAGE = 2 << 20
"""A huge page."""
SMALLEST = PAGE
"""Bytes of the smallest pooled tensor: from 2 MB on glibc faults where several tensors die together (6 to 12 times as slow)."""


def size_class(nbytes: int) -> int:
    """``nbytes`` rounded up to one of eight sizes to each power of two (at most 12.5 % more), and to whole huge pages."""
    step = max(PAGE, 1 << max((nbytes - 1).bit_length() - 4, 0))
    return -(-nbytes // step) * step


class _Block:
    """Huge pages of this process alone: after a fork neither side sees what the other writes."""

    __slots__ = ("bytes", "size", "time")

    def __init__(self, size: int) -> None:
        room = (
            size + PAGE
        )  # so that a whole page can start at a multiple of its size; what is never touched takes no memory
        pages = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        everything: np.ndarray[Any, np.dtype[np.uint8]] = np.frombuffer(pages, dtype=np.uint8)
        start = -everything.ctypes.data % PAGE
        self.bytes = everything[start : start + size]
        self.size = size
        self.time = 0


class _Lease(weakref.ref[Any]):
    """Watches the array that the tensors on a block share."""

    __slots__ = ("block",)
    block: _Block


@dataclass(frozen=True)
class Memory:
    """Bytes of pooled blocks, and how often one was found.

    Attributes:
        held: Of all blocks.
        idle: Of those that no tensor lies on; at most ``limit``.
        limit: Set by :func:`limit_memory`.
        hits, misses: Pooled tensors on a recycled and on a new block. (Several threads may lose a count.)
    """

    held: int
    idle: int
    limit: int
    hits: int
    misses: int


class Pool:
    """Blocks for tensors of ``smallest`` bytes and more, of which at most ``limit`` bytes lie idle.

    A block comes back in a finalizer, which may run at any point of any thread, inside of this class too. So there is no lock:
    each step that changes something is one atomic operation on a dict or a deque.
    """

    def __init__(self, limit: int, smallest: int = SMALLEST) -> None:
        self.limit = limit
        self.smallest = smallest
        self.hits = self.misses = 0
        self._idle: dict[int, deque[_Block]] = {}  # by size; the oldest block of a size first
        self._leases: dict[int, _Lease] = {}
        self._clock = itertools.count()
        self._returned: Callable[[Any], None] = self._take_back

    def bytes(self, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An array of unknown contents; its block comes back when it dies."""
        size = size_class(nbytes)
        try:
            block = self._idle[size].pop()
            self.hits += 1
        except (KeyError, IndexError):
            block = self._map(size)
            self.misses += 1
        array = block.bytes[:nbytes]
        lease = _Lease(array, self._returned)
        lease.block = block
        self._leases[id(lease)] = lease
        return array

    def release(self) -> None:
        """Unmap all idle blocks."""
        for blocks in list(self._idle.values()):
            blocks.clear()

    def memory(self) -> Memory:
        idle = self._idle_bytes()
        held = idle + sum(lease.block.size for lease in list(self._leases.values()))
        return Memory(held, idle, self.limit, self.hits, self.misses)

    def trim(self) -> None:
        """Unmap the oldest idle blocks down to the limit."""
        while self._idle_bytes() > self.limit:
            try:
                oldest = min((d for d in list(self._idle.values()) if d), key=lambda blocks: blocks[0].time)
                oldest.popleft()
            except (IndexError, ValueError):  # another thread was faster
                continue

    def forget(self) -> None:
        """Let blocks in use die with their tensors."""
        self._leases.clear()
        self.release()

    def _map(self, size: int) -> _Block:
        try:
            return _Block(size)
        except (OSError, MemoryError):
            self.release()
            return _Block(size)

    def _take_back(self, lease: _Lease) -> None:
        block = lease.block
        del self._leases[id(lease)]
        if block.size > self.limit:
            return
        block.time = next(self._clock)
        blocks = self._idle.get(block.size)
        if blocks is None:
            blocks = self._idle.setdefault(block.size, deque())
        blocks.append(block)
        self.trim()

    def _idle_bytes(self) -> int:
        return sum([size * len(self._idle[size]) for size in list(self._idle)])


def _machine() -> int:
    """Bytes of memory that this process may have."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            most = min(most, int(Path(file).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return most


def _make(setting: str) -> Pool | None:
    if setting == "off" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    if setting.isdecimal() and len(setting) < 10:
        return Pool(int(setting) << 20)
    if setting:
        warnings.warn(
            f"SNNROBUST_BUFFERS must be off or a number of MiB, got {setting!r:.80}: the default holds", stacklevel=2
        )
    return Pool(min(_machine() // 4, 4 << 30))


_pool = _make(os.environ.get("SNNROBUST_BUFFERS", ""))
if _pool is not None:
    os.register_at_fork(after_in_child=_pool.release)  # to write to idle blocks there would copy them first
    atexit.register(_pool.forget)  # no finalizer runs while the interpreter is taken apart


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, strides: Sequence[int] | None = None) -> Tensor:
    """``torch.empty`` on the CPU; on recycled memory where that is large.

    It is a tensor like any other, but its storage cannot be resized (``out=`` of a fitting shape and in-place operations work).

    Args:
        shape: Its shape.
        dtype: Its type.
        strides: Of a dense tensor, such as a channels_last one; contiguous by default.
    """
    pool = _pool
    if pool is not None:
        numel = math.prod(shape)
        nbytes = numel * dtype.itemsize
        if nbytes >= pool.smallest:
            try:
                array = pool.bytes(nbytes)
            except (OSError, MemoryError):  # torch may find some, or say that there is none
                pass
            else:
                # Changed in place: a view would not let autograd functions return it and users change it.
                return torch.frombuffer(array, dtype=dtype, count=numel).as_strided_(
                    shape, _contiguous(shape) if strides is None else strides
                )
    if strides is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.empty_like``, which keeps the strides of a dense tensor; on recycled memory where ``x`` is large and on the CPU."""
    dtype = x.dtype if dtype is None else dtype
    pool = _pool
    if pool is None or x.numel() * dtype.itemsize < pool.smallest or x.device.type != "cpu":
        return torch.empty_like(x, dtype=dtype)
    if x.is_contiguous():
        return empty(x.shape, dtype, x.stride())
    return empty(x.shape, dtype, torch.empty_like(x, device="meta").stride())


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return strides


def memory() -> Memory:
    """What the pool of large tensors holds now."""
    return Memory(0, 0, 0, 0, 0) if _pool is None else _pool.memory()


def release_memory() -> None:
    """Give all idle memory of the pool back to the system."""
    if _pool is not None:
        _pool.release()


def limit_memory(nbytes: int) -> None:
    """Keep at most so many bytes idle. By default 4 GiB, or a quarter of the machine's memory where that is less.

    Raises:
        ValueError: ``nbytes`` is negative.
    """
    checks.count("nbytes", nbytes, 0)
    if _pool is not None:
        _pool.limit = nbytes
        _pool.trim()
