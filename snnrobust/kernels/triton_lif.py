"""``snnrobust::lif_forward`` and ``lif_backward`` on a GPU, in Triton. Importing this module does not import Triton."""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from snnrobust.kernels.layout import aligned, channel_layout, new_like

__all__ = ["UNROLLED", "available", "backward", "code", "forward", "on", "takes"]

UNROLLED = 32
"""Up to so many steps, potentials that were not kept are computed again in registers; above, in scratch memory."""

GIVEN = 9
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK, _BLOCK_UNROLLED = 512, 256
_APART = {"enable_fp_fusion": False}
"""No fused multiply-add: a spike that is one on the CPU is one here."""


@functools.cache
def available() -> bool:
    """Whether Triton 3.3 or newer is installed; it comes with PyTorch 2.7. Older ones do not compile tuples."""
    try:
        version: str = importlib.import_module("triton").__version__
    except ImportError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 3)


def takes(x: Tensor) -> bool:
    """Whether these kernels take ``x``, once it is on a GPU."""
    return x.dtype in _DTYPES and available()


def code() -> Any:
    """The Triton programs."""
    from snnrobust.kernels import triton_code

    return triton_code


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's. (Triton's interpreter takes tensors on the CPU.)"""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _values(value: Tensor | None, C: int) -> Tensor | None:
    if value is None:
        return None
    value = value.detach().to(torch.float32)
    return value.reshape(-1).expand(C).contiguous()


def _step_of(x: Tensor, steps: int) -> Tensor:
    return x if steps else x[0]


def _state(tensor: Tensor | None, one: Tensor) -> Tensor | None:
    return None if tensor is None else aligned(tensor, one)


def forward(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    """As :func:`snnrobust.kernels.lif.lif_forward`, to the bit; float32, bfloat16 or float16, with the state in float32."""
    x, C, inner = channel_layout(x, 2 - (steps > 0))
    one = _step_of(x, steps)
    s = new_like(x, steps)
    h = new_like(x, steps, torch.float32) if keep_h else None
    last = [torch.empty_like(one, dtype=torch.float32) for _ in range((1 + timed) * keep_state)]
    v_last, quiet_last = (*last, None, None)[:2]
    _launch_forward(
        x, steps, C, inner, v0, quiet0, decay, threshold, decays, thresholds, hard, refractory,
        s=s, h=h, v_last=v_last, quiet_last=quiet_last,
    )  # fmt: skip
    return [s, *([] if h is None else [h]), *last]


def _launch_forward(
    x: Tensor, steps: int, C: int, inner: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, *,
    s: Tensor | None = None, h: Tensor | None = None, quiets: Tensor | None = None,
    v_last: Tensor | None = None, quiet_last: Tensor | None = None,
) -> None:  # fmt: skip
    one = _step_of(x, steps)
    T, M = steps or x.shape[0], one.numel()
    if M == 0:
        return
    with on(x):
        code().lif_forward[-(-M // _BLOCK),](
            x, s, h, quiets, _state(v0, one), _state(quiet0, one), v_last, quiet_last, _values(decays, C), _values(thresholds, C),
            float(decay), float(threshold), float(refractory), T, M, M, C, inner,
            HARD=hard, REFRACTORY=refractory > 0, SHOWN=steps > 0, BLOCK=_BLOCK, **_APART,
        )  # fmt: skip


def backward(
    grad: Tensor, x: Tensor | None, steps: int, h: Tensor | None, slope: Tensor | None, grad_v: Tensor | None,
    v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float, decays: Tensor | None, thresholds: Tensor | None,
    hard: bool, refractory: int, timed: bool, detach: bool, kind: int, a: float, b: float,
    of_v0: bool, of_decay: bool, of_threshold: bool,
) -> list[Tensor]:  # fmt: skip
    """As :func:`snnrobust.kernels.lif.lif_backward`, to rounding.

    Potentials that were not kept are computed again: in registers up to :data:`UNROLLED` steps, so that only ``x``, ``grad`` and
    ``grad_x`` are moved; else by a second kernel in front of the first.
    """
    source = x
    if source is None:
        assert h is not None
        source = h[0] if steps else h
    source, C, inner = channel_layout(source, 2 - (steps > 0))
    one, T = _step_of(source, steps), steps or source.shape[0]
    M = one.numel()
    whole = source.expand(steps, *source.shape) if steps else source
    grad = aligned(grad, whole, grad.dtype)
    grad_x = torch.empty_like(source, dtype=grad.dtype)
    maps = [torch.empty_like(one, dtype=torch.float32) if asked else None for asked in (of_v0, of_decay, of_threshold)]
    out = [grad_x, *(value for value in maps if value is not None)]
    if M == 0:
        return out
    betas, thetas = _values(decays, C), _values(thresholds, C)
    v0, quiet0, grad_v = (_state(tensor, one) for tensor in (v0, quiet0, grad_v))
    rule = {"HARD": hard, "DETACH": detach, "REFRACTORY": refractory > 0, "KIND": kind, "SHOWN": steps > 0}
    numbers = float(decay), float(threshold), float(refractory), float(a), float(b)
    if h is None and slope is None and T <= UNROLLED:
        with on(grad):
            code().lif_backward_again[-(-M // _BLOCK_UNROLLED),](
                grad, source, v0, quiet0, grad_v, grad_x, *maps, betas, thetas, *numbers, M, 0 if steps else M, C, inner,
                T=T, **rule, BLOCK=_BLOCK_UNROLLED, **_APART,
            )  # fmt: skip
        return out
    kept = None if h is None else aligned(h, whole)
    quiets = None
    if kept is None or timed:
        assert x is not None
        scratch = new_like(source, steps, torch.float32) if kept is None else None
        quiets = new_like(source, steps, torch.float32) if timed else None
        _launch_forward(
            source, steps, C, inner, v0, quiet0, decay, threshold, decays, thresholds, hard, refractory, h=scratch, quiets=quiets
        )  # fmt: skip
        kept = scratch if kept is None else kept
    with on(grad):
        code().lif_backward[-(-M // _BLOCK),](
            grad, kept, quiets, None if slope is None else aligned(slope, whole), grad_v, v0, grad_x, *maps, betas, thetas,
            *numbers, T, M, C, inner, **rule, BLOCK=_BLOCK, **_APART,
        )  # fmt: skip
    return out
