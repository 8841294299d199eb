"""Which values a quantized number can take, on a unit scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnrobust import checks

__all__ = ["LEVELS", "Binary", "Integer", "LevelSet", "Levels", "PowerOfTwo", "Ternary"]

LEVELS: dict[str, type[Levels]] = {}
MOST_BITS = 16


class Levels(ABC):
    """A finite set of values. Subclasses are frozen dataclasses of plain values and register themselves by name.

    Attributes:
        bits: Of a stored code.
        low, high: The smallest and the largest value.
        margin: How far beyond them a value is still rounded and not cut off: half a step of integers.
    """

    margin: ClassVar[float] = 0.0
    bits: int
    low: float
    high: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.free_name(LEVELS, cls)
        LEVELS[cls.__name__] = cls

    @abstractmethod
    def nearest(self, u: Tensor) -> Tensor:
        """The value nearest to each element of ``u``, of the same shape and dtype; NaN stays NaN. Without gradient."""

    @abstractmethod
    def values(self) -> Tensor:
        """All values, float64, ascending."""

    def describe(self) -> dict[str, Any]:
        """The name and the arguments, as JSON has them."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        return {"type": type(self).__name__, **arguments}


@dataclass(frozen=True)
class Integer(Levels):
    r"""Integers of k bits: :math:`-(2^{k-1} - 1) \dots 2^{k-1} - 1`, symmetric, or :math:`0 \dots 2^k - 1` without sign.

    Ties round to even.

    Args:
        bits: k, 2 to 16 with a sign, else 1 to 16.
    """

    margin: ClassVar[float] = 0.5
    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        checks.boolean("signed", self.signed)
        checked_bits(self.bits, 2 if self.signed else 1, "a sign and at least one more" if self.signed else "")

    @property
    def low(self) -> float:  # type: ignore[override]
        return -self.high if self.signed else 0.0

    @property
    def high(self) -> float:  # type: ignore[override]
        return float(2 ** (self.bits - self.signed) - 1)

    def nearest(self, u: Tensor) -> Tensor:
        return u.round().clamp_(self.low, self.high)

    def values(self) -> Tensor:
        return torch.arange(self.low, self.high + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Ternary(Levels):
    """-1, 0 and 1. Ties go to 0, as they round to even."""

    bits: int = field(default=2, init=False)
    low: float = field(default=-1.0, init=False)
    high: float = field(default=1.0, init=False)

    def nearest(self, u: Tensor) -> Tensor:
        return u.round().clamp_(-1.0, 1.0)

    def values(self) -> Tensor:
        return torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Binary(Levels):
    """-1 and 1; 0 goes to 1."""

    bits: int = field(default=1, init=False)
    low: float = field(default=-1.0, init=False)
    high: float = field(default=1.0, init=False)

    def nearest(self, u: Tensor) -> Tensor:
        q = torch.ones_like(u)
        return q.masked_fill_(u < 0, -1.0).masked_fill_(u.isnan(), math.nan)

    def values(self) -> Tensor:
        return torch.tensor([-1.0, 1.0], dtype=torch.float64)


class _Listed(Levels):
    """Levels whose nearest is found between the midpoints of their list; a tie goes to the level nearer to zero."""

    def nearest(self, u: Tensor) -> Tensor:
        values = self.values()
        middles = (values[:-1] + values[1:]) / 2
        # What is compared has the precision of u: midpoints are exact in float64 alone.
        exact = u.detach().to(torch.float64).contiguous()  # as torch.bucketize wants it
        above = torch.bucketize(exact, middles.to(u.device), right=True)  # a tie goes up
        below = torch.bucketize(exact, middles.to(u.device), right=False)  # a tie goes down
        index = torch.where(exact < 0, above, below)
        q: Tensor = values.to(u.device)[index].to(u.dtype)
        return q.masked_fill_(u.isnan(), math.nan)


@dataclass(frozen=True)
class PowerOfTwo(_Listed):
    r""":math:`0, \pm 1, \pm 2^{-1}, \dots, \pm 2^{-(2^{k-1} - 2)}`: products are shifts. Nearest in distance, not in exponent.

    Args:
        bits: k, 2 to 8: a sign, and :math:`2^{k-1}` magnitudes with zero.
    """

    bits: int
    low: float = field(default=-1.0, init=False)
    high: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not 2 <= checks.integer("bits", self.bits) <= 8:
            raise ValueError(
                f"bits must be in 2..8 for powers of two, got {self.bits}: a sign and one more; levels of 9 are 0 in float32"
            )

    def values(self) -> Tensor:
        magnitudes = torch.pow(2.0, -torch.arange(2 ** (self.bits - 1) - 1, dtype=torch.float64))
        return torch.cat([-magnitudes, torch.zeros(1, dtype=torch.float64), magnitudes.flip(0)])


@dataclass(frozen=True)
class LevelSet(_Listed):
    """Any values, such as the weights that pairs of programmable conductances give.

    Args:
        levels: At least two, finite, none twice, one above 0. If they are on both sides of 0, the scale of min-max is that at
            which the side with the smaller end still reaches the largest magnitude.
    """

    levels: Sequence[float]

    def __post_init__(self) -> None:
        if isinstance(self.levels, str) or not isinstance(self.levels, Sequence | Tensor):
            raise TypeError(f"levels must be a list of numbers such as [0, 0.5, 1], got {self.levels!r:.80}")
        if len(self.levels) > 2**MOST_BITS:
            raise ValueError(f"levels must be at most 2^{MOST_BITS}, got {len(self.levels)}")
        if isinstance(self.levels, Tensor):
            object.__setattr__(self, "levels", self.levels.flatten().tolist())
        values = tuple(checks.number(f"levels[{i}]", v) for i, v in enumerate(self.levels))
        if len(values) < 2:
            raise ValueError(f"levels must hold at least two values, got {list(values)}")
        values = tuple(sorted(values))
        twice = [a for a, b in pairwise(values) if a == b]
        if twice:
            raise ValueError(f"levels must differ, but {twice[0]:g} is given twice: remove one")
        if values[-1] <= 0:
            raise ValueError(
                f"levels must hold one above 0, by which they are scaled, got {values[0]:g} to {values[-1]:g}: negate"
            )
        object.__setattr__(self, "levels", values)

    @property
    def bits(self) -> int:  # type: ignore[override]
        return math.ceil(math.log2(len(self.levels)))

    @property
    def low(self) -> float:  # type: ignore[override]
        return self.levels[0]

    @property
    def high(self) -> float:  # type: ignore[override]
        return self.levels[-1]

    def values(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)


def checked_bits(bits: int, low: int = 1, why: str = "") -> int:
    """``bits`` if it is in ``low``..16."""
    if not low <= checks.integer("bits", bits) <= MOST_BITS:
        raise ValueError(f"bits must be in {low}..{MOST_BITS}, got {bits}" + (f": {why}" if why else ""))
    return bits


def with_bits(levels: Levels, bits: int) -> Levels:
    """Levels of the same kind with another number of bits; of ternary and binary ones, integers."""
    if isinstance(levels, Integer):
        if bits == 1 and levels.signed:
            return Binary()
        return Integer(bits, levels.signed)
    if isinstance(levels, PowerOfTwo):
        return PowerOfTwo(bits)
    if isinstance(levels, LevelSet):
        raise ValueError("a LevelSet has the bits of its levels: give the layer a quantizer of its own")
    return Binary() if bits == 1 else Integer(bits)


LEVELS.pop(_Listed.__name__)  # a base of two, no set
