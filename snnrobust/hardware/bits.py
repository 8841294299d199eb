r"""The bits of stored weights: integers of k bits in two's complement, and what flipping some of them does.

A word holds its bits in the low k of a ``uint8``, bit 0 the least significant, bit k - 1 the sign:

.. math:: c = -2^{k-1} b_{k-1} + \sum_{i < k-1} 2^i b_i, \qquad w = c \, \Delta, \quad \Delta = \max|w| / (2^{k-1} - 1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from snnrobust import checks

__all__ = ["StoredWeights", "bit_values", "flip_bits", "flip_deltas", "from_words", "store", "to_words"]

MOST_BITS = 8


def width(bits: int) -> int:
    """``bits`` if words of that many are known: 2 to 8."""
    if not 2 <= checks.count("bits", bits) <= MOST_BITS:
        raise ValueError(f"bits must be in 2..{MOST_BITS}, got {bits}: a sign bit and at least one more, in a byte")
    return bits


def bit_values(bits: int) -> Tensor:
    """What each bit counts, int64 ``[k]``: 1, 2, 4, ... and -2^(k-1) for the sign."""
    values = 1 << torch.arange(width(bits))
    values[-1] *= -1
    return values


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Integers in -2^(k-1)..2^(k-1) - 1 to words, ``uint8`` of the same shape."""
    half = 1 << (width(bits) - 1)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes must be integers, got {codes.dtype}")
    if codes.numel() and not (-half <= int(codes.min()) and int(codes.max()) < half):
        raise ValueError(
            f"codes of {bits} bits must lie in {-half}..{half - 1}, got {int(codes.min())}..{int(codes.max())}"
        )
    return (codes.to(torch.int16) & (2 * half - 1)).to(torch.uint8)


def from_words(words: Tensor, bits: int) -> Tensor:
    """Words to the integers that they stand for, ``int16`` of the same shape."""
    half = 1 << (width(bits) - 1)
    if words.dtype != torch.uint8:
        raise TypeError(f"words must be uint8, got {words.dtype}")
    return ((words.to(torch.int16) & (2 * half - 1)) ^ half) - half  # extends the sign


def flip_bits(words: Tensor, index: Tensor, bit: Tensor, bits: int) -> Tensor:
    """``words`` with bit ``bit[i]`` of the element ``index[i]`` flipped, for all i; a pair that is given twice is flipped back.

    Args:
        words: ``uint8``, any shape; it stays as it is.
        index: int64 ``[N]``, positions in ``words.flatten()``.
        bit: int64 ``[N]``, 0 the least significant.
        bits: k.
    """
    if words.dtype != torch.uint8:
        raise TypeError(f"words must be uint8, got {words.dtype}")
    for name, value, end in (("index", index, words.numel()), ("bit", bit, width(bits))):
        if value.dtype != torch.int64 or value.dim() != 1 or len(value) != len(index):
            raise TypeError(
                f"{name} must be int64 [N], one for each flip, got {value.dtype} of shape {tuple(value.shape)}"
            )
        if len(value) and not (int(value.min()) >= 0 and int(value.max()) < end):
            raise ValueError(f"{name} must lie in 0..{end - 1}, got {int(value.min())}..{int(value.max())}")
    flat = words.flatten().clone()
    pairs, times = torch.unique(index * bits + bit, return_counts=True)
    odd = pairs[times % 2 == 1].to(words.device)
    where = odd // bits
    # Different bits of one word: their sum is their exclusive or, so one pass does for several flips of an element.
    mask = torch.zeros(len(flat), dtype=torch.int16, device=words.device)
    mask.index_add_(0, where, (1 << (odd % bits)).to(torch.int16))
    return (flat ^ mask.to(torch.uint8)).view(words.shape)


def flip_deltas(words: Tensor, bits: int) -> Tensor:
    r"""By how much the integer changes when one bit is flipped, :math:`(1 - 2 b_i) v_i`: ``int16`` ``[*words.shape, k]``."""
    values = bit_values(bits).to(words.device, torch.int16)
    if words.dtype != torch.uint8:
        raise TypeError(f"words must be uint8, got {words.dtype}")
    is_set = (words[..., None] >> torch.arange(bits, device=words.device, dtype=torch.uint8)) & 1
    return (1 - 2 * is_set.to(torch.int16)) * values


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """A weight as memory holds it: words, and the largest magnitude, which fixes the step.

    Args:
        words: ``uint8``, shape of the weight.
        largest: float64, of the whole tensor or of each slice; broadcasts over ``words``.
        bits: k.
    """

    words: Tensor
    largest: Tensor
    bits: int

    @property
    def step(self) -> Tensor:
        r""":math:`\Delta`, float64, shape of ``largest``."""
        step: Tensor = self.largest / (2 ** (self.bits - 1) - 1)
        return step

    @property
    def codes(self) -> Tensor:
        """The integers, ``int16``."""
        return from_words(self.words, self.bits)

    def values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weights that the words stand for; the largest is to the bit what was stored."""
        exact: Tensor = self.codes.double() / (2 ** (self.bits - 1) - 1) * self.largest
        return exact.to(dtype)

    def at(self, index: Tensor) -> Tensor:
        """``values().flatten()[index]``, and no more computed than that."""
        codes = from_words(self.words.flatten()[index], self.bits).double()
        if self.largest.numel() == 1:
            largest = self.largest.reshape(())
        else:
            largest = self.largest.expand(self.words.shape)[torch.unravel_index(index, self.words.shape)]
        return codes.div_(2 ** (self.bits - 1) - 1).mul_(largest)

    def flip(self, index: Tensor, bit: Tensor) -> Self:
        """With bits flipped: :func:`flip_bits`. A sign bit can reach -2^(k-1), a step beyond what was quantized."""
        return replace(self, words=flip_bits(self.words, index, bit, self.bits))


def store(w: Tensor, bits: int = 8, axis: int | None = None) -> StoredWeights:
    """Symmetric quantization to nearest, ties to even; ``values()`` are those of ``quantization.uniform``.

    Args:
        w: Any shape, finite.
        bits: k, 2 to 8.
        axis: A step for each slice along it (0: for each output channel); default one for the whole tensor.
    """
    levels = 2 ** (width(bits) - 1) - 1
    if not isinstance(w, Tensor) or not w.is_floating_point() or w.numel() == 0:
        raise TypeError("w must be a floating tensor with at least one element")
    exact = w.detach().double()
    if not exact.isfinite().all():
        raise ValueError("w contains NaN or infinity: it cannot be quantized")
    if axis is None:
        largest = exact.abs().amax()
    else:
        if not -w.dim() <= checks.integer("axis", axis) < w.dim():
            raise ValueError(f"axis must be one of the {w.dim()} of w, got {axis}")
        others = [d for d in range(w.dim()) if d != axis % w.dim()]
        largest = exact.abs().amax(others, keepdim=True) if others else exact.abs()
    scale = largest / levels
    # a slice of zeros, or one whose step underflows, has no codes but zero
    codes = torch.where(scale > 0, exact / torch.where(scale > 0, scale, 1.0), 0.0).round_().clamp_(-levels, levels)
    return StoredWeights(to_words(codes.to(torch.int16), bits), torch.where(scale > 0, largest, 0.0), bits)
