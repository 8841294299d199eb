"""Undervolted hybrid 8T-6T SRAM: bit errors in some of the bits of stored weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import log10

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import Array, Backend, Drawn
from snnrobust.hardware.bits import StoredWeights, store, width
from snnrobust.kernels.bit_errors import bit_errors

__all__ = ["SRAM", "StoredArray", "TransientArray", "bit_error_rate", "six_t_positions"]

VERIFIED = (0.83, 1e-2)
"""Voltage over V_min, and the bit error rate there: the one point of the default law that has a source."""

Table = Sequence[Sequence[float]]


def bit_error_rate(
    voltage: float,
    table: Table | None = None,
    *,
    v_min: float = 1.0,
    at_v_min: float = 1e-6,
    extrapolate: bool = False,
) -> float:
    r"""The probability that a bit of a 6T cell is read wrong.

    .. math:: \mathrm{BER}(V) = \min(1/2,\; 10^{a + b V / V_\min}) \;\text{for}\; V < V_\min

    and 0 from V_min on. The law is exponential, and 1 % at 0.83 V_min (a 14 nm array of 512 x 64; Chandramoorthy et al. 2019,
    as quoted in "NeuralFuse"). Its second point, ``at_v_min`` at V_min, is an assumption: sources say only "about none". Rates at
    other voltages than 0.83 V_min follow from it, and are no published numbers. Measurements belong into ``table``.

    Args:
        voltage: V, in the unit of ``v_min`` and ``table``; with the default ``v_min`` a fraction of V_min.
        table: ``[[V, BER], ...]``, in place of the law: between its points the logarithm of the rate is linear in V, and where
            the higher voltage has no errors the rate itself.
        v_min: The lowest voltage without errors.
        at_v_min: The rate that the law tends to at V_min.
        extrapolate: Go on beyond ``table``, on the line of its outermost two points.
    """
    checks.boolean("extrapolate", extrapolate)
    if checks.number("voltage", voltage) <= 0:
        raise ValueError(f"voltage must be above 0, got {voltage}")
    if checks.number("v_min", v_min) <= 0:
        raise ValueError(f"v_min must be above 0, got {v_min}")
    if not 0 < checks.number("at_v_min", at_v_min) <= VERIFIED[1]:
        raise ValueError(f"at_v_min must be above 0 and at most {VERIFIED[1]}, the rate at 0.83 v_min, got {at_v_min}")
    if table is not None:
        return _from_table(voltage, _points(table), extrapolate)
    if voltage >= v_min:
        return 0.0
    slope = (log10(at_v_min) - log10(VERIFIED[1])) / (1 - VERIFIED[0])
    return float(min(0.5, 10 ** (log10(VERIFIED[1]) + slope * (voltage / v_min - VERIFIED[0]))))


def _points(table: Table) -> list[tuple[float, float]]:
    """Of a table, by rising voltage."""
    try:
        points = sorted((float(v), float(ber)) for v, ber in table)
    except (TypeError, ValueError):
        raise TypeError(f"table must be pairs such as [[0.8, 1e-2], [0.9, 1e-4]], got {table!r}") from None
    if len(points) < 2:
        raise ValueError(f"table must have at least two points, got {len(points)}")
    for (v, ber), (after, lower) in pairwise(points):
        if not (0 < v < after and 0.5 >= ber >= lower >= 0):
            raise ValueError(
                "table must have different voltages above 0 and rates in 0..0.5 that do not rise with the voltage, "
                f"got [{v}, {ber}] and [{after}, {lower}]"
            )
    return points


def _from_table(voltage: float, points: list[tuple[float, float]], extrapolate: bool) -> float:
    low, high = points[0][0], points[-1][0]
    if not (low <= voltage <= high or extrapolate):
        raise ValueError(
            f"voltage must lie in the table, {low}..{high}, got {voltage}: measure there, or pass extrapolate=True"
        )
    at = next((i for i in range(1, len(points)) if voltage <= points[i][0]), len(points) - 1)
    (v0, ber0), (v1, ber1) = points[at - 1], points[at]
    share = (voltage - v0) / (v1 - v0)
    if ber0 == 0:
        return 0.0
    if ber1 == 0:
        return min(0.5, max(0.0, ber0 * (1 - share)))
    return float(min(0.5, 10 ** (log10(ber0) + share * (log10(ber1) - log10(ber0)))))


def six_t_positions(bits: int, six_t_bits: Sequence[int] | None = None, ratio: str | None = None) -> tuple[int, ...]:
    """Which bits of a word of ``bits`` lie in 6T cells, 0 the least significant.

    Args:
        six_t_bits: They themselves.
        ratio: ``"p:q"`` or ``"p/q"``: the p most significant bits lie in 8T cells, the q others in 6T cells.
    """
    width(bits)
    if six_t_bits is not None and ratio is not None:
        raise ValueError(f"give six_t_bits or ratio, not both, got {list(six_t_bits)} and {ratio!r}")
    if ratio is not None:
        found = re.fullmatch(r"(\d+)[:/](\d+)", ratio) if isinstance(ratio, str) else None
        if found is None or int(found[1]) + int(found[2]) != bits:
            raise ValueError(
                f"ratio must be 'p:q', the 8T and 6T cells of a word of {bits} bits, such as '{bits - 2}:2', got {ratio!r}"
            )
        return tuple(range(int(found[2])))
    if six_t_bits is None:
        return tuple(range(bits))
    positions = tuple(six_t_bits) if isinstance(six_t_bits, Sequence) else (None,)
    if not all(type(b) is int and 0 <= b < bits for b in positions) or len(set(positions)) < len(positions):
        raise ValueError(f"six_t_bits must be different bits in 0..{bits - 1}, got {six_t_bits!r}")
    return tuple(sorted(positions))


class StoredArray(Array):
    """Weights as words of memory.

    Attributes:
        words: As they were written, ``uint8``, shape of the weight; :mod:`snnrobust.hardware.bits`.
        faults: Bits that are read wrong on this chip, likewise.
        largest: The weight of the largest code, float64; of each slice, with an ``axis``.
        weight: What the words stand for when they are read.
    """

    words: Tensor
    faults: Tensor
    largest: Tensor

    def __init__(self, array: Array, written: StoredWeights, faults: Tensor) -> None:
        super().__init__(array.weight, array.operation)
        self.bits = written.bits
        self.register_buffer("words", written.words)
        self.register_buffer("faults", faults)
        self.register_buffer("largest", written.largest)
        self.weight = self.stored.values(array.weight.dtype)

    @property
    def stored(self) -> StoredWeights:
        """Words as this chip reads them, and their step: what there is to export."""
        return StoredWeights(self.words ^ self.faults, self.largest, self.bits)


class TransientArray(StoredArray):
    """A :class:`StoredArray` some of whose bits are read wrong, others in each forward pass."""

    reads_weight = False

    def __init__(self, array: Array, written: StoredWeights, rates: Sequence[float]) -> None:
        super().__init__(array, written, torch.zeros_like(written.words))
        self.rates = tuple(rates)

    @property
    def stochastic(self) -> bool:
        return any(self.rates)

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        key, _ = self._state(x.shape, None)
        y: Tensor = self.operation(x.flatten(0, 1), self.read(key), bias).unflatten(0, x.shape[:2])
        return y

    def read(self, key: Tensor) -> Tensor:
        """The weight that the forward pass of ``key`` meets."""
        if not any(self.rates):
            return self.weight
        words = bit_errors(self.words, self.rates, key)
        wrong = (words != self.words).flatten().nonzero()[:, 0]
        weight = self.weight.clone(memory_format=torch.contiguous_format)
        weight.view(-1)[wrong] = StoredWeights(words, self.largest, self.bits).at(wrong).to(weight.dtype)
        return weight


class SRAM(Backend):
    r"""Weights as words of an undervolted hybrid SRAM: bits in 6T cells are read wrong, bits in 8T cells are not.

    .. math:: \tilde c = c \oplus m, \quad P(m_b = 1) = \mathrm{BER}(V)\,[b \in \text{6T}], \quad \tilde w = \tilde c \, \Delta

    independently for each bit, 0 to 1 as often as 1 to 0. Weights are quantized as :func:`~snnrobust.hardware.bits.store` does;
    biases and activations keep their precision. The gradient by the input is exact for the weights that are read.

    Args:
        voltage, table, v_min, at_v_min, extrapolate: Of :func:`bit_error_rate`.
        six_t_bits: Bits in 6T cells, 0 the least significant; default all.
        ratio: In its place: ``"5:3"`` has the 5 most significant bits in 8T cells and 3 in 6T cells. (That the significant bits
            are the protected ones is from memory of the paper, not verified.)
        bits: Of a word, 2 to 8.
        drawn: ``"chip"``, a fault map for the life of the chip; or ``"inference"``, another map in each forward pass.
        axis: A step for each slice of the weight along it (0: each output channel); default one for the layer.

    A map of ``"inference"`` holds for a whole forward pass: for all its time steps and all samples of its batch, since an array
    has one content at a time. It depends on the key of the pass and on no sample id, so it is the same for any batch size.
    Passes of EOT and of a judge have keys of their own, and so do all passes without a key.

    Source: Moitra and Panda 2020, "Exposing the Robustness and Vulnerability of Hybrid 8T-6T SRAM Memory Architectures to
    Adversarial Attacks in Deep Neural Networks" (arXiv:2011.13392). Its table of bit error rates could not be read; see
    :func:`bit_error_rate` for what stands in its place.
    """

    def __init__(
        self,
        voltage: float,
        six_t_bits: Sequence[int] | None = None,
        ratio: str | None = None,
        bits: int = 8,
        drawn: Drawn = "chip",
        table: Table | None = None,
        axis: int | None = None,
        v_min: float = 1.0,
        at_v_min: float = 1e-6,
        extrapolate: bool = False,
    ) -> None:
        super().__init__()
        if table is not None and (v_min, at_v_min) != (1.0, 1e-6):
            raise ValueError("v_min and at_v_min belong to the default law: leave them out where a table is given")
        if extrapolate and table is None:
            raise ValueError("extrapolate goes beyond a table, and there is none: the default law holds everywhere")
        self.ber = bit_error_rate(voltage, table, v_min=v_min, at_v_min=at_v_min, extrapolate=extrapolate)
        self.positions = six_t_positions(bits, six_t_bits, ratio)
        self.voltage, self.ratio, self.bits = float(voltage), ratio, bits
        self.six_t_bits = None if six_t_bits is None else list(six_t_bits)
        self.drawn: Drawn = checks.choice("drawn", drawn, ("chip", "inference"))  # type: ignore[assignment]
        self.table = None if table is None else [[float(v), float(ber)] for v, ber in table]
        self.axis = None if axis is None else checks.integer("axis", axis)
        self.v_min, self.at_v_min, self.extrapolate = float(v_min), float(at_v_min), extrapolate

    @property
    def rates(self) -> tuple[float, ...]:
        """The error rate of each bit of a word, the least significant first."""
        return tuple(self.ber if b in self.positions else 0.0 for b in range(self.bits))

    @property
    def stochastic(self) -> bool:
        return self.drawn == "inference" and any(self.rates)

    def program(self, array: Array) -> Array:
        if type(array) is not Array:
            raise TypeError(
                f"SRAM stores the weights themselves, got an array that is a {type(array).__name__}: put SRAM before the "
                "other memories of a Chain, or leave those out"
            )
        written = store(array.weight, self.bits, self.axis)
        if self.drawn == "inference":
            return TransientArray(array, written, self.rates)
        return StoredArray(array, written, bit_errors(torch.zeros_like(written.words), self.rates, self.chip_key()))

    def extra_repr(self) -> str:
        cells = ", ".join(map(str, self.positions)) or "none"
        return f"voltage={self.voltage:g}, ber={self.ber:.3g}, 6T bits: {cells} of {self.bits}, drawn={self.drawn!r}"
