"""Philox4x32-10 and what is drawn from it: C code on the CPU, torch operations elsewhere, the same bits.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Element ``e`` of sample ``i`` at step ``t`` takes word
``e % 4`` of the counter ``(e // 4, t, i mod 2**32, i >> 32)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from snnrobust.kernels import native
from snnrobust.kernels.buffers import empty
from snnrobust.kernels.native import I32, I64, P

__all__ = ["bernoulli", "normal", "philox", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_CHUNK = 1 << 14  # blocks a chunk: its temporaries stay in the second-level cache


# --- called by others -----------------------------------------------------------------------------------------


def uniform(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """Uniform float32 in [0, 1) with 24 random bits, shape ``[T, B, *]``."""
    if (
        torch.compiler.is_compiling()
    ):  # in torch operations the batch stays a symbol, and an exported program needs no kernel
        return _uniform(key, sample_ids, shape, start)
    return _uniform_op(key, sample_ids, shape, start)  # type: ignore[no-any-return]


def normal(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """Standard normal float32 (Box-Muller, 32 random bits a coordinate), shape ``[T, B, *]``."""
    if torch.compiler.is_compiling():
        return _normal(key, sample_ids, shape, start)
    return _normal_op(key, sample_ids, shape, start)  # type: ignore[no-any-return]


def bernoulli(
    key: Tensor,
    sample_ids: Tensor,
    p: Tensor,
    steps: int,
    start: int = 0,
    signed: bool = False,
    value: Tensor | None = None,
) -> Tensor:
    r"""Spikes :math:`s_t = [u_t < p]`, or :math:`\mathrm{sign}(p) [u_t < |p|]`, of the draws :math:`u` of :func:`uniform`.

    The declared gradient is straight-through to ``value``, :math:`\partial s_t := \partial v` (Bengio et al. 2013).

    Args:
        p: ``[B, *]``, floating; NaN never fires.
        steps, start: The time steps ``start`` to ``start + steps``.
        value: ``[B, *]``, default ``p``.

    Returns:
        ``[steps, B, *]`` in the dtype of ``p``.
    """
    value = p if value is None else value
    if torch.compiler.is_compiling() or (value.requires_grad and torch.is_grad_enabled()):
        other = None if value is p else p  # the compiler takes no tensor twice
        return _StraightThrough.apply(value, other, key, sample_ids, steps, start, signed)  # type: ignore[no-any-return, no-untyped-call]
    return _bernoulli_op(key, sample_ids, p.detach(), steps, start, signed)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, p: Tensor | None, key: Tensor, sample_ids: Tensor, steps: int, start: int, signed: bool
    ) -> Tensor:
        p = value if p is None else p
        if torch.compiler.is_compiling():
            return _bernoulli(key, sample_ids, p, steps, start, signed)
        return _bernoulli_op(key, sample_ids, p.detach(), steps, start, signed)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.sum(0), None, None, None, None, None, None


# --- the generator in torch operations ------------------------------------------------------------------------


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words for a 128-bit ``counter`` (four int64 tensors of 32-bit words, broadcast)
    and a 64-bit ``key`` (int64 ``[2]``, two 32-bit words)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key[0], key[1]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps modulo 2**64: the bits are right
        c0 = (p1 >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _blocks(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Philox words for rows (t, b) of blocks of four elements, a slice of rows at a time."""
    steps, batch, elements = shape[0], shape[1], prod(shape[2:])
    blocks = -(-elements // 4)
    device = sample_ids.device
    step = torch.arange(start, start + steps, device=device).repeat_interleave(batch)[:, None]
    low, high = sample_ids & _MASK, (sample_ids >> 32) & _MASK
    low, high = low.repeat(steps)[:, None], high.repeat(steps)[:, None]
    block = torch.arange(blocks, device=device)[None]
    if torch.compiler.is_compiling():  # one chunk, so that the batch stays a symbol
        yield slice(None), list(philox(key, (block, step, low, high)))
        return
    rows = max(1, _CHUNK // max(blocks, 1))  # one row may be longer than a chunk: rows are not split
    for first in range(0, steps * batch, rows):
        part = slice(first, min(first + rows, steps * batch))
        yield part, list(philox(key, (block, step[part], low[part], high[part])))


def _fill(shape: Sequence[int], device: torch.device, parts: Iterator[tuple[slice, list[Tensor]]]) -> Tensor:
    elements = prod(shape[2:])
    blocks = -(-elements // 4)
    if torch.compiler.is_compiling():
        ((_, lanes),) = parts
        return torch.stack(lanes, -1).flatten(1)[:, :elements].reshape(tuple(shape))
    out = torch.empty(shape[0] * shape[1], blocks * 4, dtype=torch.float32, device=device)
    for part, lanes in parts:
        torch.stack(lanes, -1, out=out[part].unflatten(1, (blocks, 4)))
    return out[:, :elements].reshape(tuple(shape))


# --- draws in torch operations: the same operations on floats, in the same order, as csrc/philox.c ------------


def _uniform(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    parts = (
        (part, [(w >> 8).to(torch.float32).mul_(2.0**-24) for w in words])
        for part, words in _blocks(key, sample_ids, shape, start)
    )
    return _fill(shape, sample_ids.device, parts)


def _normal(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    parts = (
        (part, [z for pair in (words[:2], words[2:]) for z in _box_muller(*pair)])
        for part, words in _blocks(key, sample_ids, shape, start)
    )
    return _fill(shape, sample_ids.device, parts)


def _bernoulli(key: Tensor, sample_ids: Tensor, p: Tensor, steps: int, start: int, signed: bool) -> Tensor:
    u = uniform(key, sample_ids, (steps, *p.shape), start)
    if signed:
        return (p.sign().to(torch.int8) * (u < p.abs())).to(p.dtype)
    return (u < p).to(p.dtype)


def _box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal numbers of two 32-bit words. Functions of libraries differ in the last bit: these are polynomials (minimax)."""
    r = _radius(radius)
    cosine, sine = _turn(angle)
    return r * cosine, r * sine


def _radius(w: Tensor) -> Tensor:
    r""":math:`\sqrt{-2 \log u}`, :math:`u = (w + 1/2) / 2^{32} = 2^k (1 + f)` with :math:`1 + f \in [\sqrt{1/2}, \sqrt 2)`."""
    near = w >= 0xB504F334  # u above sqrt(1/2): k = 0, and f = u - 1 without rounding 1 + f
    x = torch.where(near, w ^ _MASK, w).to(torch.float32).add_(0.5)
    shifted = x.view(torch.int32) + (0x3F800000 - 0x3F3504F3)
    mantissa = (shifted & 0x7FFFFF).add_(0x3F3504F3).view(torch.float32)
    k = (shifted >> 23).sub_(127 + 32).to(torch.float32).masked_fill_(near, 0.0)
    f = torch.where(near, x * -(2.0**-32), mantissa - 1.0)
    s = f / (f + 2.0)
    z, half = s * s, f * f * 0.5
    tail = z * 0.299634248 + 0.399735093
    tail = (tail * z + 0.666668177) * z  # log(1 + f) = f - f^2/2 + s (f^2/2 + tail), s = f / (2 + f)
    log = ((tail + half) * s + k * 1.42860677e-06 - half + f) + k * 0.693145752
    return _sqrt(log * -2.0)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, also where the CPU's vector library is not: float64 has twice the digits."""
    return x.double().sqrt_().to(torch.float32) if x.device.type == "cpu" else x.sqrt()


def _turn(w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Cosine and sine of :math:`2 \pi w / 2^{32} = \pi / 2 (q + x)`, :math:`x \in [-1/2, 1/2)`."""
    quarter = (w + 0x20000000) >> 30
    x = (w - (quarter << 30)).to(torch.float32).mul_(2.0**-30)
    z = x * x
    s = ((z * -0.00468931627 + 0.0797135457) * z - 0.645966709) * z
    s = (s + 1.57079637) * x
    c = (z * 0.000893554359 - 0.0208552498) * z + 0.253668517
    c = (c * z - 1.23370051) * z + 1.0
    odd = (quarter & 1).bool()
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    cosine = torch.where(((quarter + 1) & 2).bool(), -cosine, cosine)
    return cosine, torch.where((quarter & 2).bool(), -sine, sine)


# --- the C code -----------------------------------------------------------------------------------------------


@functools.cache
def _compiled(name: str) -> Callable[..., None]:
    if name == "philox_bernoulli":
        return native.function(name, P, P, I64, I64, I64, I64, P, P, I32, I32, I32)
    return native.function(name, P, P, I64, I64, I64, I64, P, I32)


def _checked(key: Tensor, sample_ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """As the C code reads them."""
    if key.shape != (2,) or sample_ids.shape != (batch,):
        raise ValueError(
            f"key must be two words and sample_ids {batch}, one a sample: "
            f"got the shapes {tuple(key.shape)} and {tuple(sample_ids.shape)}"
        )
    return key.to(torch.int64).contiguous(), sample_ids.to(torch.int64).contiguous()


def _drawn(name: str, key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    out = empty(shape)
    _compiled(name)(
        key.data_ptr(),
        sample_ids.data_ptr(),
        shape[0],
        shape[1],
        prod(shape[2:]),
        start,
        out.data_ptr(),
        native.threads(),
    )
    return out


def _uniform_cpu(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    key, sample_ids = _checked(key, sample_ids, shape[1])
    if native.available():
        return _drawn("philox_uniform", key, sample_ids, shape, start)
    return _uniform(key, sample_ids, shape, start)


def _normal_cpu(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    key, sample_ids = _checked(key, sample_ids, shape[1])
    if native.available():
        return _drawn("philox_normal", key, sample_ids, shape, start)
    return _normal(key, sample_ids, shape, start)


def _bernoulli_cpu(key: Tensor, sample_ids: Tensor, p: Tensor, steps: int, start: int, signed: bool) -> Tensor:
    batch, *rest = p.shape
    key, sample_ids = _checked(key, sample_ids, batch)
    bf16 = p.dtype == torch.bfloat16
    if not (native.available() and (bf16 or p.dtype == torch.float32)):
        return _bernoulli(key, sample_ids, p, steps, start, signed)
    p = p.contiguous()
    out = empty((steps, batch, *rest), p.dtype)
    _compiled("philox_bernoulli")(
        key.data_ptr(), sample_ids.data_ptr(), steps, batch, prod(rest), start, p.data_ptr(), out.data_ptr(),
        bf16, signed, native.threads(),
    )  # fmt: skip
    return out


def _empty(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Tensor:
    return sample_ids.new_empty(shape, dtype=torch.float32)


def _empty_like(key: Tensor, sample_ids: Tensor, p: Tensor, steps: int, start: int, signed: bool) -> Tensor:
    return p.new_empty((steps, *p.shape))


_OPS = torch.library.Library("snnrobust", "FRAGMENT")
for _name, _arguments, _cpu, _elsewhere, _shape in (
    ("philox_uniform", "SymInt[] shape, SymInt start", _uniform_cpu, _uniform, _empty),
    ("philox_normal", "SymInt[] shape, SymInt start", _normal_cpu, _normal, _empty),
    ("philox_bernoulli", "Tensor p, SymInt steps, SymInt start, bool signed", _bernoulli_cpu, _bernoulli, _empty_like),
):
    _OPS.define(f"{_name}(Tensor key, Tensor sample_ids, {_arguments}) -> Tensor")
    _OPS.impl(_name, _elsewhere, "CompositeExplicitAutograd")
    _OPS.impl(_name, _cpu, "CPU")
    _OPS.impl(_name, _shape, "Meta")
_uniform_op = torch.ops.snnrobust.philox_uniform.default
_normal_op = torch.ops.snnrobust.philox_normal.default
_bernoulli_op = torch.ops.snnrobust.philox_bernoulli.default
