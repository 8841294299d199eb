"""What one operation costs. Energies are in pJ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from snnrobust import checks

__all__ = ["CMOS45", "FLOAT", "Costs", "PrecisionScalable"]

FLOAT = 32
"""Bits of a value that is not quantized: a floating point number. Fewer bits are an integer."""


class Costs(Protocol):
    """Energy of single operations in pJ, for any numbers of bits from 1 to 32."""

    def multiply(self, weight: int, value: int) -> float:
        """Of a number of ``weight`` bits and one of ``value`` bits."""

    def add(self, *bits: int) -> float:
        """Of two numbers, given the bits of their factors: a float addition if all are floats, else in the accumulator."""

    def weight_access(self, bits: int) -> float:
        """Reading one weight."""

    def value_access(self, bits: int) -> float:
        """Reading or writing one input of a layer."""

    def membrane_access(self, bits: int) -> float:
        """Reading or writing one number of a neuron's state."""


@dataclass(frozen=True)
class CMOS45:
    r"""Arithmetic and memory at 45 nm and 0.9 V.

    .. math:: E_{MAC} = E_\times + E_+, \qquad E_{AC} = E_+, \qquad
        E_\times(w, x) = E_\times^{int32} \, w x / 32^2

    The last holds for integers: an array multiplier has :math:`w x` cells. It is our model between the published points; at
    8 x 8 bits it gives 0.19 pJ. Integers are added in an accumulator. If one factor is a float (32 bits), the product is a
    float product.

    Args:
        float_multiply, float_add: FP32, 3.7 and 0.9: a MAC is 4.6 pJ and an AC 0.9 pJ, the numbers most papers take.
        int_multiply, int_add: INT32, 3.1 and 0.1.
        int8_add: 0.03. Widely quoted, not verified by us; with ``int_add`` it is the line that gives the addition of
            ``accumulator`` bits.
        accumulator: Bits in which integer products and weights are summed.
        weights, values, membranes: A 32-bit word of each, read or written, 5.0: a load from a memory of 8 kB. Fewer bits cost
            their share of a word. Larger memories cost more: 10, 20 and 100 pJ an access at 8 kB, 32 kB and 1 MB are the
            defaults of another library's model, 640 pJ for DRAM is widely quoted; we verified neither.

    Source of the FP32, INT32 and 8 kB numbers: Horowitz 2014, "Computing's energy problem (and what we can do about it)", as
    tabulated in a later article (PMC8934428).
    """

    float_multiply: float = 3.7
    float_add: float = 0.9
    int_multiply: float = 3.1
    int_add: float = 0.1
    int8_add: float = 0.03
    accumulator: int = 32
    weights: float = 5.0
    values: float = 5.0
    membranes: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "accumulator":
                checks.number(field.name, getattr(self, field.name), 0.0)
        if self.int8_add > self.int_add:
            raise ValueError(f"int8_add must be at most int_add, got {self.int8_add:g} and {self.int_add:g}")
        _bits("accumulator", self.accumulator)

    def multiply(self, weight: int, value: int) -> float:
        if FLOAT in (weight, value):
            return self.float_multiply
        return self.int_multiply * weight * value / FLOAT**2

    def add(self, *bits: int) -> float:
        if bits and FLOAT in bits:
            return self.float_add
        slope = (self.int_add - self.int8_add) / (FLOAT - 8)
        return max(0.0, self.int8_add + slope * (self.accumulator - 8))

    def weight_access(self, bits: int) -> float:
        return self.weights * bits / FLOAT

    def value_access(self, bits: int) -> float:
        return self.values * bits / FLOAT

    def membrane_access(self, bits: int) -> float:
        return self.membranes * bits / FLOAT


@dataclass(frozen=True)
class PrecisionScalable:
    r"""A multiply-accumulate unit that scales with the precision, at 45 nm.

    .. math:: E_{MAC}(k) = m \, k / 32 + a, \qquad E_{AC} = a, \qquad E_{mem}(k) = e \, k

    with k the larger number of bits of weight and input. This form, with m = 3.1, a = 0.1 and e = 2.5, is the one that we
    remember of the group that published QUANOS (2004.11233); we have not verified the form or the numbers, so they are
    parameters. That an accumulate costs ``a`` alone is our reading.

    Args:
        multiply_32: m, the multiplication at 32 bits.
        accumulate: a.
        memory: e, an access, for each bit.
    """

    multiply_32: float = 3.1
    accumulate: float = 0.1
    memory: float = 2.5

    def __post_init__(self) -> None:
        for field in fields(self):
            checks.number(field.name, getattr(self, field.name), 0.0)

    def multiply(self, weight: int, value: int) -> float:
        return self.multiply_32 * max(weight, value) / FLOAT

    def add(self, *bits: int) -> float:
        return self.accumulate

    def weight_access(self, bits: int) -> float:
        return self.memory * bits

    def value_access(self, bits: int) -> float:
        return self.memory * bits

    def membrane_access(self, bits: int) -> float:
        return self.memory * bits


def _bits(name: str, value: int) -> int:
    """``value`` if it is a number of bits from 1 to 32."""
    if checks.count(name, value, hint="an unquantized value has 32") > FLOAT:
        raise ValueError(
            f"{name} must be a number of bits from 1 to {FLOAT}, got {value}: an unquantized value has {FLOAT}"
        )
    return value
