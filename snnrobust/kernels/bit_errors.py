r"""Independent bit errors, drawn by the gaps between them: C code on the CPU, torch operations elsewhere, the same bits.

Bit b of each word goes wrong with probability p_b, independently. Between two errors lie

.. math:: G = \lfloor \log u / \log(1 - p) \rfloor, \quad P(G \ge g) = (1 - p)^g

good bits, so what is drawn are errors and not bits. The geometric distribution has no memory: each run of 2^14 words begins anew,
with the draws of sample ``id`` at step 8 run + b, two words of Philox a gap (u has 52 bits).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import ceil, log1p, sqrt

import torch
from torch import Tensor

from snnrobust.kernels import native
from snnrobust.kernels.native import I32, I64, P
from snnrobust.kernels.philox import philox

__all__ = ["bit_errors"]

RUN = 1 << 14
_MASK = 0xFFFFFFFF
_CHUNK = 1 << 16  # gaps that are drawn together


def bit_errors(words: Tensor, rates: Sequence[float], key: Tensor, id: int = 0) -> Tensor:
    """``words`` ``uint8``, any shape, with errors; a new tensor.

    Args:
        rates: The probability of each bit, the least significant first, at most 8; bits beyond have none.
        key: Two 32-bit words, int64 ``[2]``.
        id: Tells apart what is drawn from one key, 63 bits.
    """
    if len(rates) > 8 or not all(0 <= p <= 1 for p in rates):
        raise ValueError(f"rates must be at most 8 probabilities, got {list(rates)}")
    if words.dtype != torch.uint8:
        raise TypeError(f"words must be uint8, got {words.dtype}")
    if key.shape != (2,):
        raise ValueError(f"key must be two words, got the shape {tuple(key.shape)}")
    return _op(words, rates, key, id)  # type: ignore[no-any-return]


def _inverse(p: float) -> float:
    """1 / log(1 - p), in float64; 1 where there are no errors."""
    if p == 0:
        return 1.0
    return -0.0 if p == 1 else max(1 / log1p(-p), -1e300)


@functools.cache
def _compiled() -> Callable[..., None]:
    return native.function("bit_errors", P, I64, P, I32, P, P, I64, I32)


def _cpu(words: Tensor, rates: Sequence[float], key: Tensor, id: int) -> Tensor:
    if not native.available():
        return _in_torch(words, rates, key, id)
    words, key = words.contiguous(), key.to("cpu", torch.int64).contiguous()
    out = torch.empty_like(words)
    inverse = torch.tensor([_inverse(p) for p in rates], dtype=torch.float64)
    _compiled()(
        key.data_ptr(), id, inverse.data_ptr(), len(rates), words.data_ptr(), out.data_ptr(), words.numel(), native.threads()
    )  # fmt: skip
    return out


# --- in torch operations: the same operations on floats, in the same order, as csrc/bit_errors.c --------------


def _in_torch(words: Tensor, rates: Sequence[float], key: Tensor, id: int) -> Tensor:
    flat, device = words.reshape(-1).clone(), words.device
    ends = (flat.numel() - torch.arange(0, flat.numel(), RUN, device=device)).clamp(max=RUN)
    for bit, p in enumerate(rates):
        if p == 0:
            continue
        # enough for nearly all runs at once; what a run still lacks is drawn after that
        size = 16 * ceil((min(RUN, len(flat)) * p + 4 * sqrt(RUN * p) + 16) / 16)
        for runs in torch.arange(len(ends), device=device).split(max(1, _CHUNK // size)):
            place, first = torch.full_like(runs, -1), 0
            while len(runs):
                gaps = _gaps(key.to(device), 8 * runs + bit, first, size, id, _inverse(p))
                places = place[:, None] + (gaps + 1).cumsum(1)
                index = (RUN * runs[:, None] + places)[places < ends[runs, None]]
                flat[index] ^= 1 << bit  # the places of one bit are distinct
                left = places[:, -1] < ends[runs]
                runs, place, first = runs[left], places[left, -1], first + size
    return flat.view(words.shape)


def _gaps(key: Tensor, step: Tensor, first: int, size: int, id: int, inverse: float) -> Tensor:
    """Gaps number ``first`` to ``first + size`` of each step, ``[steps, size]``."""
    block = torch.arange(first // 2, (first + size) // 2, device=step.device)[None]
    low, high = (torch.tensor([word], device=step.device) for word in (id & _MASK, (id >> 32) & _MASK))
    lanes = torch.stack(philox(key, (block, step[:, None], low, high)), -1).flatten(1)
    v = (lanes[:, 0::2] << 20) | (lanes[:, 1::2] >> 12)
    u = (v.double() + 0.5) * 2.0**-52
    length = _logarithm(u) * inverse
    return torch.where(length < RUN, length, float(RUN)).to(torch.int64)


def _logarithm(x: Tensor) -> Tensor:
    r""":math:`k \log 2 + 2 \operatorname{artanh} s`, s = (m - 1) / (m + 1), by its series: libraries differ in the last bit."""
    shifted = x.view(torch.int64) + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    m = ((shifted & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).view(torch.float64)
    k = ((shifted >> 52) - 1023).double()
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    r = torch.full_like(z, 1 / 17)
    for n in (15, 13, 11, 9, 7, 5, 3, 1):
        r = r * z + 1 / n
    return k * 0.6931471805599453 + 2.0 * s * r


_LIBRARY = torch.library.Library("snnrobust", "FRAGMENT")
_LIBRARY.define("bit_errors(Tensor words, float[] rates, Tensor key, int id) -> Tensor")
_LIBRARY.impl("bit_errors", _in_torch, "CompositeExplicitAutograd")
_LIBRARY.impl("bit_errors", _cpu, "CPU")
_LIBRARY.impl("bit_errors", lambda words, rates, key, id: torch.empty_like(words), "Meta")
_op = torch.ops.snnrobust.bit_errors.default
