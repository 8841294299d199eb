"""LIF over a whole sequence: the operators ``snnrobust::lif_forward`` and ``lif_backward``, compiled or in torch operations.

Both take ``x`` ``[T, B, *]``, or ``[B, *]`` and ``steps`` where all steps have the same input. Constants are numbers, or tensors of
one value or one for each channel. ``v`` and ``quiet`` are the state: float32 (float64 for such ``x``), in the shape of one step.
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

from snnrobust.kernels import native
from snnrobust.kernels.layout import aligned, channel_layout, new_like
from snnrobust.kernels.lif_fallback import backward as torch_backward
from snnrobust.kernels.lif_fallback import forward as torch_forward

__all__ = ["GIVEN", "LifStruct", "Saved", "lif_backward", "lif_forward", "run", "saves", "saving", "state_dtype"]

GIVEN = 9
"""The kind of a surrogate whose slopes are given as a tensor."""

Saved = Literal["auto", "input", "potential"]
_saving: ContextVar[Saved] = ContextVar("saving", default="auto")


@contextmanager
def saving(what: Saved) -> Iterator[None]:
    """What neurons keep for the backward pass, inside this context: it changes memory and time, and no number.

    Args:
        what: ``"input"`` keeps nothing of their own and computes potentials again from the input; ``"potential"`` keeps them, a
            tensor in float32; ``"auto"`` keeps the input where a compiled kernel runs.
    """
    if what not in ("auto", "input", "potential"):
        raise ValueError(f"what must be 'auto', 'input' or 'potential', got {what!r}")
    token = _saving.set(what)
    try:
        yield
    finally:
        _saving.reset(token)


def saves(x: Tensor, kind: int) -> bool:
    """Whether the potentials of this forward pass are to be kept."""
    if kind == GIVEN:  # they are what a surrogate of its own is evaluated at
        return True
    if torch.compiler.is_compiling():
        return False
    what = _saving.get()
    return what == "potential" or (what == "auto" and not compiled(x))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Potentials are kept in float32 where the input has less."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def compiled(x: Tensor) -> bool:
    """Whether the compiled kernel takes ``x``."""
    return x.dtype in _DTYPES and x.device.type == "cpu" and native.available()


_DTYPES = (torch.float32, torch.bfloat16)
_P, _I64, _I32, _F32 = native.P, native.I64, native.I32, native.F32


class LifStruct(ctypes.Structure):
    """``Lif`` of csrc/lif.h."""

    _fields_ = [  # noqa: RUF012
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


STREAM_BYTES = 1 << 24
"""Outputs of this size and more go past the cache."""


def _start(x: Tensor, steps: int) -> tuple[Tensor, LifStruct]:
    """``x`` as a kernel takes it, and what it is told of its shape."""
    x, C, inner = channel_layout(x, 2 - (steps > 0))
    T = steps or x.shape[0]
    M = x.numel() if steps else x.numel() // max(T, 1)
    k = LifStruct(T, M, 0 if steps else M, C, inner, 0, x.dtype == torch.bfloat16)
    k.x = x.data_ptr()
    k.stream = T * M * x.element_size() >= STREAM_BYTES
    k.threads = native.threads()
    return x, k


def _constants(
    k: LifStruct, decay: float, threshold: float, decays: Tensor | None, thresholds: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Sets them; what is returned has to be kept alive until the kernel has run."""
    k.decay, k.threshold = decay, threshold
    kept: list[Tensor | None] = []
    for name, value in (("decays", decays), ("thresholds", thresholds)):
        if value is not None:
            value = value.detach().to(torch.float32).contiguous()
            if value.numel() == 1 and k.C != 1:
                value = value.expand(k.C).contiguous()
            setattr(k, name, value.data_ptr())
        kept.append(value)
    return kept[0], kept[1]


def _given(k: LifStruct, like: Tensor, steps: int, **tensors: Tensor | None) -> list[Tensor]:
    """Sets pointers to float32 tensors of the layout of one step of ``like``; returns what has to be kept alive."""
    kept = []
    one = like if steps else like[0]
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor = aligned(tensor, one)
            setattr(k, name, tensor.data_ptr())
            kept.append(tensor)
    return kept


def lif_forward(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    """``[s]``, then the potentials if they are kept, then the last ``v`` and, if ``timed``, ``quiet`` if the state is."""
    if not compiled(x):
        return torch_forward(
            x, steps, v0, quiet0, decay, threshold, decays, thresholds, hard, refractory, keep_h, keep_state, timed
        )
    x, k = _start(x, steps)
    kept = [*_constants(k, decay, threshold, decays, thresholds), *_given(k, x, steps, v0=v0, quiet0=quiet0)]
    k.hard, k.refractory = hard, refractory
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
    x, k = _start(x, steps)
    kept = [
        *_constants(k, decay, threshold, decays, thresholds),
        *_given(k, x, steps, v0=v0, quiet0=quiet0, grad_v_last=grad_v),
    ]
    k.bf16 = grad.dtype == torch.bfloat16
    k.hard, k.refractory, k.detach, k.kind, k.a, k.b = hard, refractory, detach, kind, a, b
    whole = x.expand(steps, *x.shape) if steps else x
    grad = aligned(grad, whole, grad.dtype)
    k.grad = grad.data_ptr()
    for name, tensor in (("saved_h", h), ("slope", slope)):
        if tensor is not None:
            tensor = aligned(tensor, whole)
            setattr(k, name, tensor.data_ptr())
            kept.append(tensor)
    out = [new_like(x, 0, grad.dtype)]
    k.grad_x = out[0].data_ptr()
    one = x if steps else x[0]
    for name, asked in (("grad_v0", of_v0), ("grad_decay", of_decay), ("grad_threshold", of_threshold)):
        if asked:
            out.append(torch.empty_like(one, dtype=torch.float32))
            setattr(k, name, out[-1].data_ptr())
    if k.M:
        run("lif_backward", k)
    del kept
    return out


def _forward_shapes(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    whole, one = (x.expand(steps, *x.shape), x) if steps else (x, x[0])
    state = state_dtype(x.dtype)
    out = [torch.empty_like(whole, memory_format=torch.contiguous_format) if steps else torch.empty_like(x)]
    out += [torch.empty_like(out[0], dtype=state)] * keep_h
    return out + [torch.empty_like(one, dtype=state) for _ in range((1 + timed) * keep_state)]


def _backward_shapes(grad: Tensor, x: Tensor | None, steps: int, h: Tensor | None, *rest: Any) -> list[Tensor]:
    if x is None:
        assert h is not None
        x = h[0] if steps else h
    one = x if steps else x[0]
    maps = [torch.empty_like(one, dtype=state_dtype(grad.dtype)) for asked in rest[-3:] if asked]
    return [torch.empty_like(x, dtype=grad.dtype), *maps]


_LIBRARY = torch.library.Library("snnrobust", "FRAGMENT")
_NEURON = (
    "Tensor? v0, Tensor? quiet0, float decay, float threshold, Tensor? decays, Tensor? thresholds, bool hard, int refractory"
)
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
_LIBRARY.impl("lif_forward", torch_forward, "CUDA")
_LIBRARY.impl("lif_backward", torch_backward, "CUDA")
_LIBRARY.impl("lif_forward", _forward_shapes, "Meta")
_LIBRARY.impl("lif_backward", _backward_shapes, "Meta")
