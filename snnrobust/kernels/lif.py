"""LIF over a whole sequence: the operators ``snnrobust::lif_forward`` and ``lif_backward``, compiled or in torch operations.

Both take ``x`` ``[T, B, *]``, or ``[B, *]`` and ``steps`` where all steps have the same input. Constants are numbers, or tensors
of one value or one for each channel. ``v`` and ``quiet`` are the state: float32 (float64 for such ``x``), of the shape of a step.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from snnrobust.kernels import native, triton_lif
from snnrobust.kernels.layout import aligned, channel_layout, new_like
from snnrobust.kernels.lif_fallback import backward as torch_backward
from snnrobust.kernels.lif_fallback import forward as torch_forward

__all__ = [
    "GIVEN",
    "LifStruct",
    "Saved",
    "lif_backward",
    "lif_forward",
    "plain",
    "run",
    "saves",
    "saving",
    "state_dtype",
]

GIVEN = 9
"""The kind of a surrogate whose slopes are given as a tensor."""

Saved = Literal["auto", "input", "potential"]
_saving: ContextVar[Saved] = ContextVar("saving", default="auto")


@contextmanager
def saving(what: Saved) -> Iterator[None]:
    """What neurons keep for the backward pass, inside this context: it changes memory and time, and no number.

    Args:
        what: ``"input"`` keeps nothing of their own and computes potentials again from the input; ``"potential"`` keeps them, a
            tensor in float32; ``"auto"`` keeps the input where a compiled kernel runs and the tensor is not small.
    """
    if what not in ("auto", "input", "potential"):
        raise ValueError(f"what must be 'auto', 'input' or 'potential', got {what!r}")
    token = _saving.set(what)
    try:
        yield
    finally:
        _saving.reset(token)


def saves(x: Tensor, steps: int, kind: int) -> bool:
    """Whether the potentials of this forward pass are to be kept."""
    if kind == GIVEN:  # they are what a surrogate of its own is evaluated at
        return True
    if torch.compiler.is_compiling():
        return False
    what = _saving.get()
    return what == "potential" or (what == "auto" and not _recomputes(x, steps))


def _recomputes(x: Tensor, steps: int) -> bool:
    """Whether a kernel computes potentials again: faster than they could be read, but where the caches hold them."""
    if compiled(x):
        return x.numel() * max(steps, 1) >= SMALL
    return x.is_cuda and triton_lif.takes(x) and (steps or x.shape[0]) <= triton_lif.UNROLLED


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Potentials are kept in float32 where the input has less."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def compiled(x: Tensor) -> bool:
    """Whether the compiled kernel takes ``x``."""
    return x.dtype in _DTYPES and x.is_cpu and native.available()


def plain(x: Tensor) -> bool:
    """Whether the operator on ``x`` is the compiled kernel and nothing else: the dispatcher, of 6 us, can be left out."""
    return not watched() and type(x) is Tensor and compiled(x)


def watched() -> bool:
    """Whether somebody traces, exports or counts the operations that run."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


SMALL = 1 << 17
"""Elements below which the caches hold the potentials, which then take less time to read than to compute again."""

_DTYPES = (torch.float32, torch.bfloat16)
_P, _I64, _I32, _F32 = native.P, native.I64, native.I32, native.F32


class LifStruct(ctypes.Structure):
    """``Lif`` of csrc/lif.h."""

    _fields_ = [
        *((name, _I64) for name in ("T", "M", "x_step", "C", "inner", "norm_step")),
        *((name, _I32) for name in ("bf16", "hard", "refractory", "detach", "kind", "stream", "threads")),
        *((name, _F32) for name in ("decay", "threshold", "a", "b")),
        *((name, _P) for name in (
            "decays", "thresholds", "mean", "scale", "bias", "x", "v0", "quiet0", "s", "h", "v_last", "quiet_last", "grad",
            "saved_h", "slope", "grad_v_last", "grad_x", "grad_v0", "grad_decay", "grad_threshold", "sums",
        )),
        ("unscaled", _I32),
    ]  # fmt: skip


@functools.cache
def _compiled(name: str) -> Callable[..., int]:
    return native.function(name, ctypes.POINTER(LifStruct), result=_I32)


def run(name: str, arguments: LifStruct) -> None:
    if _compiled(name)(arguments):
        raise MemoryError(f"no memory for the scratch of {name}")


STREAM_BYTES = 1 << 23
"""Outputs of this size and more go past the cache."""


def start(
    x: Tensor, steps: int, hard: bool, refractory: int, decay: float, threshold: float
) -> tuple[Tensor, LifStruct]:
    """``x`` as a kernel takes it, and what it is told of its shape."""
    x, C, inner = channel_layout(x, 2 - (steps > 0))
    T = steps or x.shape[0]
    M = x.numel() if steps else x.numel() // max(T, 1)
    bf16 = x.dtype == torch.bfloat16
    stream = T * M * (2 if bf16 else 4) >= STREAM_BYTES
    k = LifStruct(
        T, M, 0 if steps else M, C, inner, 0, bf16, hard, refractory, 0, 0, stream, native.threads(), decay, threshold
    )
    k.x = x.data_ptr()
    return x, k


def per_channel(k: LifStruct, name: str, value: Tensor) -> Tensor:
    """Sets constants along the channels; what is returned has to be kept alive until the kernel has run."""
    value = value.detach().to(torch.float32).resolve_neg()
    value = value.expand(k.C).contiguous() if value.numel() == 1 else value.contiguous()
    setattr(k, name, value.data_ptr())
    return value


def of_layout(k: LifStruct, name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Sets a float32 tensor of the layout of ``like``; what is returned has to be kept alive until the kernel has run."""
    tensor = aligned(tensor, like)
    setattr(k, name, tensor.data_ptr())
    return tensor


def lif_forward(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    """``[s]``, then the potentials if they are kept, then the last ``v`` and, if ``timed``, ``quiet`` if the state is."""
    if not compiled(x):
        return torch_forward(
            x, steps, v0, quiet0, decay, threshold, decays, thresholds, hard, refractory, keep_h, keep_state, timed
        )
    x, k = start(x, steps, hard, refractory, decay, threshold)
    kept = [per_channel(k, n, p) for n, p in (("decays", decays), ("thresholds", thresholds)) if p is not None]
    if v0 is not None or quiet0 is not None:
        one = x if steps else x[0]
        kept += [of_layout(k, n, p, one) for n, p in (("v0", v0), ("quiet0", quiet0)) if p is not None]
    out = [new_like(x, steps)]
    k.s = out[0].data_ptr()
    if keep_h:
        out.append(new_like(x, steps, torch.float32))
        k.h = out[1].data_ptr()
    if keep_state:
        one = x if steps else x[0]
        for name in ("v_last", "quiet_last") if timed else ("v_last",):
            out.append(torch.empty_like(one, dtype=torch.float32))
            setattr(k, name, out[-1].data_ptr())
    if k.M:
        run("lif_forward", k)
    del kept
    return out


def lif_backward(
    grad: Tensor, x: Tensor | None, steps: int, h: Tensor | None, slope: Tensor | None, grad_v: Tensor | None,
    v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float, decays: Tensor | None, thresholds: Tensor | None,
    hard: bool, refractory: int, timed: bool, detach: bool, kind: int, a: float, b: float,
    of_v0: bool, of_decay: bool, of_threshold: bool,
) -> list[Tensor]:  # fmt: skip
    """``[grad_x]``, then what is asked for of the gradients of ``v0``, decay and threshold, each in the shape of one step.

    Potentials are ``h``, or computed again from ``x``, which is not needed with ``h`` unless ``timed``.
    """
    if not compiled(grad):
        return torch_backward(
            grad, x, steps, h, slope, grad_v, v0, quiet0, decay, threshold, decays, thresholds,
            hard, refractory, timed, detach, kind, a, b, of_v0, of_decay, of_threshold,
        )  # fmt: skip
    if x is None:
        assert h is not None
        x = h[0] if steps else h
    x, k = start(x, steps, hard, refractory, decay, threshold)
    k.bf16, k.detach, k.kind, k.a, k.b = grad.dtype == torch.bfloat16, detach, kind, a, b
    whole = x.expand(steps, *x.shape) if steps else x
    grad = aligned(grad, whole, grad.dtype)
    k.grad = grad.data_ptr()
    kept = [per_channel(k, n, p) for n, p in (("decays", decays), ("thresholds", thresholds)) if p is not None]
    kept += [of_layout(k, n, p, whole) for n, p in (("saved_h", h), ("slope", slope)) if p is not None]
    out = [new_like(x, 0, grad.dtype)]
    k.grad_x = out[0].data_ptr()
    if of_v0 or of_decay or of_threshold or v0 is not None or quiet0 is not None or grad_v is not None:
        one = x if steps else x[0]
        state = (("v0", v0), ("quiet0", quiet0), ("grad_v_last", grad_v))
        kept += [of_layout(k, n, p, one) for n, p in state if p is not None]
        for name, asked in (("grad_v0", of_v0), ("grad_decay", of_decay), ("grad_threshold", of_threshold)):
            if asked:
                out.append(torch.empty_like(one, dtype=torch.float32))
                setattr(k, name, out[-1].data_ptr())
    if k.M:
        run("lif_backward", k)
    del kept
    return out


def _gpu_forward(x: Tensor, *rest: Any) -> list[Tensor]:
    return (triton_lif.forward if triton_lif.takes(x) else torch_forward)(x, *rest)


def _gpu_backward(grad: Tensor, *rest: Any) -> list[Tensor]:
    return (triton_lif.backward if triton_lif.takes(grad) else torch_backward)(grad, *rest)


def _forward_shapes(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    x, _, _ = channel_layout(x, 2 - (steps > 0))
    one = x if steps else x[0]
    out = [new_like(x, steps)] + [new_like(x, steps, state_dtype(x.dtype))] * keep_h
    return out + [
        torch.empty_like(one, dtype=d) for d in (state_dtype(x.dtype), torch.float32)[: (1 + timed) * keep_state]
    ]


def _backward_shapes(grad: Tensor, x: Tensor | None, steps: int, h: Tensor | None, *rest: Any) -> list[Tensor]:
    if x is None:
        assert h is not None
        x = h[0] if steps else h
    x, _, _ = channel_layout(x, 2 - (steps > 0))
    one = x if steps else x[0]
    maps = [torch.empty_like(one, dtype=state_dtype(grad.dtype)) for asked in rest[-3:] if asked]
    return [torch.empty_like(x, dtype=grad.dtype), *maps]


_LIBRARY = torch.library.Library("snnrobust", "FRAGMENT")
_STATE = "Tensor? v0, Tensor? quiet0"
_NEURON = f"{_STATE}, float decay, float threshold, Tensor? decays, Tensor? thresholds, bool hard, int refractory"
_LIBRARY.define(
    f"lif_forward(Tensor x, int steps, {_NEURON}, bool keep_h, bool keep_state, bool timed) -> Tensor[]",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_LIBRARY.define(
    f"lif_backward(Tensor grad, Tensor? x, int steps, Tensor? h, Tensor? slope, Tensor? grad_v, {_NEURON}, bool timed, "
    "bool detach, int kind, float a, float b, bool of_v0, bool of_decay, bool of_threshold) -> Tensor[]",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_LIBRARY.impl("lif_forward", lif_forward, "CPU")
_LIBRARY.impl("lif_backward", lif_backward, "CPU")
_LIBRARY.impl("lif_forward", _gpu_forward, "CUDA")
_LIBRARY.impl("lif_backward", _gpu_backward, "CUDA")
_LIBRARY.impl("lif_forward", _forward_shapes, "Meta")
_LIBRARY.impl("lif_backward", _backward_shapes, "Meta")
