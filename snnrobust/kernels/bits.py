"""Spikes at one bit a value, for what the backward pass needs to be kept."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.kernels import buffers, native
from snnrobust.kernels.native import I32, I64, P

__all__ = ["pack", "packed_spikes", "unpack"]

SMALLEST = 4096
"""Values of the smallest tensor that :func:`packed_spikes` looks at."""

_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_ONES = {torch.float32: 0x3F800000, torch.bfloat16: 0x3F80}


def pack(x: Tensor) -> Tensor | None:
    """Bits of a tensor of spikes, or ``None`` as soon as a value is neither 0 nor 1.

    Args:
        x: float32 or bfloat16, of any layout. ``-0.0`` is no spike: it would come back as another value.

    Returns:
        uint8, one bit a value, in the order of memory where ``x`` is dense, else row by row. Of an axis that is expanded
        (stride 0) one value is kept.

    Raises:
        TypeError: ``x`` has another dtype.
    """
    if x.dtype not in _ONES:
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}: convert it, or keep it as it is")
    x = x.detach()
    if 0 in x.stride():
        x = x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
    if not _is_dense(x.shape, x.stride()):
        x = x.contiguous()
    numel = x.numel()
    if not native.available() or x.device.type != "cpu":
        return _torch_pack(x.as_strided((numel,), (1,)))
    bits = torch.empty((numel + 7) // 8, dtype=torch.uint8)
    found = _c_pack()(x.data_ptr(), bits.data_ptr(), numel, x.dtype == torch.bfloat16, native.threads())
    return bits if found else None


def unpack(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None) -> Tensor:
    """The tensor that :func:`pack` was given, with its strides.

    Args:
        bits: What it returned.
        shape, dtype, strides: Of that tensor; contiguous by default.
    """
    strides = torch.empty(shape, device="meta").stride() if strides is None else strides
    core = shape
    if 0 in strides:
        core = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
    dense = _is_dense(core, strides)
    if native.available() and bits.device.type == "cpu":
        x = buffers.empty(core, dtype, strides if dense else None)
        _c_unpack()(bits.data_ptr(), x.data_ptr(), x.numel(), dtype == torch.bfloat16, native.threads())
    else:
        x = _torch_unpack(bits, core, dtype, strides if dense else None)
    if not dense:
        x = torch.empty_strided(core, strides, dtype=dtype, device=x.device).copy_(x)
    return x if core is shape else x.expand(shape)


@contextmanager
def packed_spikes(smallest: int = SMALLEST) -> Iterator[None]:
    """Within it, what autograd saves is kept at one bit a value where it is spikes, and as it is otherwise.

    Gradients are the same to the bit. A packed tensor is a copy: what is done in place to the original later neither changes the
    gradient nor is an error. For all others it is the error that torch raises.

    On a GPU looking at a tensor waits for it.

    Args:
        smallest: Values of the smallest tensor that is looked at.
    """
    checks.count("smallest", smallest, low=0)
    packed: dict[int, tuple[weakref.ref[Tensor], int, weakref.ref[_Spikes]]] = {}

    def keep(x: Tensor) -> _Spikes | _Kept:
        # A leaf, such as a weight, lives on anyway.
        if x.dtype not in _ONES or x.numel() < smallest or type(x) is not Tensor or (x.is_leaf and x.requires_grad):
            return _Kept(x)
        if (found := packed.get(id(x))) is not None:
            of, version, spikes = found
            if of() is x and version == x._version and (old := spikes()) is not None:
                return old
        bits = pack(x)
        if bits is None:
            return _Kept(x)
        new = _Spikes(bits, x)
        key = id(x)
        packed[key] = (weakref.ref(x, lambda _: packed.pop(key, None)), x._version, weakref.ref(new))
        return new

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor()):
        yield


class _Spikes:
    __slots__ = ("__weakref__", "bits", "dtype", "shape", "strides")

    def __init__(self, bits: Tensor, x: Tensor) -> None:
        self.bits, self.shape, self.strides, self.dtype = bits, x.shape, x.stride(), x.dtype

    def tensor(self) -> Tensor:
        return unpack(self.bits, self.shape, self.dtype, self.strides)


class _Kept:
    """A tensor without its graph, which would hold itself; torch does not watch the versions of what hooks return."""

    __slots__ = ("version", "x")

    def __init__(self, x: Tensor) -> None:
        self.x, self.version = x.detach(), x._version

    def tensor(self) -> Tensor:
        if self.x._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{list(self.x.shape)} is at version {self.x._version}; expected version {self.version} instead"
            )
        return self.x


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether it fills its memory without holes or overlap, in any order of axes."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if size == 0:
            return True
        if stride != expected:
            return False
        expected *= size
    return True


@functools.cache
def _c_pack() -> Any:
    return native.function("bits_pack", P, P, I64, I32, I32, result=ctypes.c_int)


@functools.cache
def _c_unpack() -> Any:
    return native.function("bits_unpack", P, P, I64, I32, I32)


def _torch_pack(x: Tensor) -> Tensor | None:
    words = x.view(_INTEGERS[x.dtype])
    ones = words == _ONES[x.dtype]
    if not bool((ones | (words == 0)).all()):
        return None
    room = torch.zeros(-(-len(x) // 8) * 8, dtype=torch.uint8, device=x.device)
    room[: len(x)] = ones
    return (room.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(1, dtype=torch.uint8)


def _torch_unpack(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None) -> Tensor:
    if strides is None:
        x = torch.empty(torch.Size(shape), dtype=dtype, device=bits.device)
    else:
        x = torch.empty_strided(shape, strides, dtype=dtype, device=bits.device)
    values = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    x.as_strided((x.numel(),), (1,)).copy_(values.flatten()[: x.numel()])
    return x
