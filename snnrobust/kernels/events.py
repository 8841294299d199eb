"""Convolution and linear layers driven by events: only nonzero inputs make products.

The result is the dense product for any finite weights, to the rounding of its sums; a sample's does not depend on the others'. An
infinite or NaN weight, of which a zero input makes NaN, is left to the dense product, as is whatever there is no kernel for.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnrobust.kernels import native
from snnrobust.kernels.buffers import empty

__all__ = ["PACKING", "event_conv2d", "event_linear"]

_DTYPES = (torch.float32, torch.bfloat16)
PACKING = 6
"""What bringing the weights into the kernel's order costs, in dense outputs of all channels: it pays where there are more."""


class _Events(ctypes.Structure):
    """``Events`` of csrc/events.h."""

    _fields_ = (
        *((name, native.I64) for name in ("N", "Ci", "H", "W", "Co", "Ho", "Wo")),
        *(
            (name, native.I64)
            for name in ("kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
        ),
        *((name, native.I64) for name in ("x_n", "x_c", "x_h", "x_w", "w_o", "w_c", "w_tap", "most")),
        *((name, ctypes.c_int32) for name in ("nchw", "bf16", "threads")),
        *((name, native.P) for name in ("x", "w", "bias", "y")),
        ("nonzero", native.I64),
    )


_DONE, _NO_MEMORY = 0, 1  # TOO_MANY and NOT_FINITE: the dense product takes over


@functools.cache
def _kernel() -> Callable[..., int]:
    return native.function("event_product", ctypes.POINTER(_Events), result=native.I32)


def event_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    most: float = 1.0,
) -> Tensor:
    r"""``F.conv2d`` with ``groups=1``, in time proportional to the number of nonzero inputs; its gradients are the dense ones.

    .. math:: y_{o,p} = b_o + \sum_{(c, q):\, x_{c, p + q} \ne 0} w_{o, c, q}\, x_{c, p + q}

    Args:
        x: ``[N, Ci, H, W]``, any values; float32 or bfloat16 (summed in float32), contiguous or channels_last. Else dense.
        weight, bias: ``[Co, Ci, kh, kw]`` and ``[Co]``.
        stride, padding, dilation: Two numbers each.
        most: Share of nonzero inputs above which the dense product is used, less where outputs are few; 1 is always event-driven.

    Returns:
        ``[N, Co, Ho, Wo]``, channels_last where ``x`` or ``weight`` is.
    """
    if _dense(x, weight, bias):
        return F.conv2d(x, weight, bias, list(stride), list(padding), list(dilation))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y: Tensor = _Conv2d.apply(x, weight, bias, list(stride), list(padding), list(dilation), most)  # type: ignore[no-untyped-call]
        return y
    return _conv2d(x, weight, bias, stride, padding, dilation, most)


def event_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, most: float = 1.0) -> Tensor:
    r"""``F.linear`` in time proportional to the number of nonzero inputs; its gradients are the dense ones.

    .. math:: y_o = b_o + \sum_{i:\, x_i \ne 0} w_{o, i}\, x_i

    Args:
        x: ``[*, I]``, any values; float32 or bfloat16 (summed in float32). Else dense.
        weight, bias: ``[O, I]`` and ``[O]``.
        most: Share of nonzero inputs above which the dense product is used, less where rows are few; 1 is always event-driven.
    """
    if _dense(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y: Tensor = _Linear.apply(x, weight, bias, most)  # type: ignore[no-untyped-call]
        return y
    return _linear(x, weight, bias, most)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is left to torch: other devices and dtypes, and autocast, which chooses a dtype of its own."""
    return (
        x.device.type != "cpu"
        or x.dtype not in _DTYPES
        or any(t is not None and (t.dtype != x.dtype or t.device != x.device) for t in (weight, bias))
        or torch.is_autocast_enabled("cpu")
    )


# ---- operators ---------------------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("snnrobust", "FRAGMENT")
_LIBRARY.define(
    "event_conv2d(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, float most)"
    " -> Tensor"
)
_LIBRARY.define("event_linear(Tensor x, Tensor weight, Tensor? bias, float most) -> Tensor")


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, most: float
) -> Tensor:
    y: Tensor = torch.ops.snnrobust.event_conv2d(x, weight, bias, stride, padding, dilation, most)
    return y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, most: float) -> Tensor:
    y: Tensor = torch.ops.snnrobust.event_linear(x, weight, bias, most)
    return y


def _format(*tensors: Tensor) -> torch.memory_format:
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def _sizes(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[int]:
    spans = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return [x.shape[0], weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)]


def _conv2d_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    most: float,
) -> Tensor:
    form = _format(x, weight)
    y = None
    fits = x.dim() == weight.dim() == 4 and x.shape[1] == weight.shape[1] and _known(weight, bias)
    if fits and min(*stride, *dilation) > 0 and min(padding) >= 0:
        sizes = _sizes(x, weight, stride, padding, dilation)
        if min(*sizes, *x.shape, *weight.shape) > 0:
            y = _run(x, weight, bias, sizes, [*stride, *padding, *dilation], form, most)
    if y is None:
        y = F.conv2d(x, weight, bias, stride, padding, dilation).contiguous(memory_format=form)
    return y


def _linear_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, most: float) -> Tensor:
    y = None
    fits = x.dim() > 0 and weight.dim() == 2 and x.shape[-1] == weight.shape[1]
    if fits and _known(weight, bias) and x.numel() and weight.numel():
        rows, sizes = x.reshape(-1, x.shape[-1], 1, 1), [x.numel() // x.shape[-1], len(weight), 1, 1]
        y = _run(rows, weight[:, :, None, None], bias, sizes, [1, 1, 0, 0, 1, 1], torch.channels_last, most)
    if y is None:
        return F.linear(x, weight, bias).contiguous()
    return y.reshape(*x.shape[:-1], len(weight))


def _known(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel may read them; what is wrong is left to torch, which says so."""
    return weight.numel() < 2**31 and (bias is None or bias.shape == weight.shape[:1])


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: list[int],
    geometry: list[int],
    form: torch.memory_format,
    most: float,
) -> Tensor | None:
    """The product, or None where the dense one is to be taken."""
    outputs = sizes[0] * sizes[2] * sizes[3]
    limit = x.numel() if most >= 1 else int(most * (1 - PACKING / outputs) * x.numel())
    if not native.available() or limit < 0:
        return None
    channels, last = x.shape[1], x.shape[1] > 1 and x.stride(1) == 1
    if not last and x.shape[3] > 1 and x.stride(3) != 1:
        x = x.contiguous()
    x_n, x_c, x_h, x_w = x.stride()
    x_c = x_c if channels > 1 else 0  # the stride of an axis of length one means nothing
    taps = weight.shape[2] * weight.shape[3]
    if channels * (taps + x.shape[3]) >= 2**31:  # what a row of the lists can count
        return None
    if weight.is_contiguous():
        w_c, w_tap = taps, 1
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        w_c, w_tap = 1, channels
    bias = None if bias is None else bias.contiguous()
    _, C, H, W = sizes
    y = empty(sizes, x.dtype, None if form is torch.contiguous_format else (C * H * W, 1, W * C, C))
    call = _Events(
        *(len(x), *x.shape[1:], *sizes[1:], *weight.shape[2:], *geometry),
        *(x_n, x_c, x_h, x_w, channels * taps, w_c, w_tap, limit),
        *(form is torch.contiguous_format, x.dtype == torch.bfloat16, native.threads()),
        *(x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()),
    )
    result = _kernel()(call)
    if result == _NO_MEMORY:
        raise MemoryError("no memory for the lists of an event-driven product")
    return y if result == _DONE else None


def _conv2d_meta(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    most: float,
) -> Tensor:
    sizes = _sizes(x, weight, stride, padding, dilation)
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=_format(x, weight))


def _linear_meta(x: Tensor, weight: Tensor, bias: Tensor | None, most: float) -> Tensor:
    return x.new_empty([*x.shape[:-1], weight.shape[0]])


_LIBRARY.impl("event_conv2d", _conv2d_cpu, "CPU")
_LIBRARY.impl("event_conv2d", _conv2d_meta, "Meta")
_LIBRARY.impl("event_linear", _linear_cpu, "CPU")
_LIBRARY.impl("event_linear", _linear_meta, "Meta")


# ---- gradients ---------------------------------------------------------------------------------------------------


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, most: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.bias = (stride, padding, dilation), None if bias is None else list(bias.shape)
        return _conv2d(x, weight, bias, stride, padding, dilation, most)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias, *ctx.geometry, False, [0, 0], 1, wanted
        )
        return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None, None, None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, most: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias, most)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if of_x else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
            None,
        )
