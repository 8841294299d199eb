"""Products as a measured chip answers them: partial sums of bits, each looked up in a table of its converter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnrobust import checks, draws
from snnrobust.hardware.backend import Array, Backend, Drawn, Gradient
from snnrobust.hardware.bits import StoredWeights, bit_values, store
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.read_noise import plain
from snnrobust.hardware.tables import alias_table, checked_table, code_values, read_table, synthetic_table

__all__ = ["LookupArray", "LookupTable", "input_codes"]

CHUNK = 1 << 22
"""Partial sums that are looked up at a time."""


def input_codes(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Inputs as integers of ``bits`` bits, each row by itself: :math:`x \approx \Delta c`, :math:`\Delta = \max|x| / c_{max}`.

    A row with negative values has the codes of two's complement, :math:`c_{max} = 2^{b-1} - 1`; one without is unsigned,
    :math:`c_{max} = 2^b - 1`; and one with no values but 0 and another, as spikes are, needs one bit and is exact,
    :math:`c_{max} = 1`.

    Args:
        x: ``[N, *]``, a row for each sample and time step.
        bits: b, 1 to 8.

    Returns:
        Codes (int32, shape of ``x``), and for each row (``[N]``) the step, whether it is signed and whether it has one bit.

    Raises:
        ValueError: NaN or infinity; negative values in one bit.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    flat = x.flatten(1)
    largest = flat.abs().amax(1)
    if not torch.isfinite(largest).all():
        raise ValueError("x contains NaN or infinity, which has no code")
    signed = (flat < 0).any(1)
    if bits == 1 and signed.any():
        raise ValueError("input_bits=1 has no sign, but x is negative in places: use input_bits=2 or more, or spikes")
    single = ((flat == 0) | (flat == largest[:, None])).all(1)
    top = torch.where(single, 1, torch.where(signed, 2 ** (bits - 1) - 1, 2**bits - 1)).to(x.dtype)
    step = largest / top
    shape = (-1, *(1,) * (x.dim() - 1))
    safe, limit = torch.where(step > 0, step, 1.0).view(shape), top.view(shape)
    codes = (x / safe).round().clamp(-limit, limit).to(torch.int32)
    return codes, step, signed, single


class LookupArray(Array):
    r"""Weights in bit slices and sub-arrays, read through a table: see :class:`LookupTable`.

    Args:
        stored: The weight in words.
        operation: The layer's.
        table: P(code | partial sum), float64 ``[rows + 1, codes]``.
        values: The partial sum that each code stands for, ``[codes]``.
        input_bits: Of the inputs.
    """

    table: Tensor
    values: Tensor
    slices: Tensor
    threshold: Tensor
    alias: Tensor
    direct: Tensor
    step: Tensor

    def __init__(
        self,
        stored: StoredWeights,
        weight: Tensor,
        operation: Operation,
        table: Tensor,
        values: Tensor,
        input_bits: int,
    ) -> None:
        super().__init__(stored.values(weight.dtype), operation)
        rows = table.shape[0] - 1
        self.input_bits, self.weight_bits, self.rows = input_bits, stored.bits, rows
        words = operation.matrix(stored.words)  # [groups, K, out / groups]
        words = F.pad(words, (0, 0, 0, -words.shape[1] % rows)).unflatten(1, (-1, rows))
        bits = torch.stack([(words >> j) & 1 for j in range(stored.bits)])
        self.register_buffer("slices", bits.float())  # [bits, groups, tiles, rows, out / groups]
        self.register_buffer("step", stored.step)
        self.register_buffer("table", table.to(weight.device))
        self.register_buffer("values", values.to(weight.device, torch.promote_types(weight.dtype, torch.float32)))
        threshold, alias = alias_table(table)
        self.register_buffer("threshold", threshold.flatten().to(weight.device, torch.float32))
        self.register_buffer("alias", self.values[alias.to(weight.device)].flatten())
        self.register_buffer("direct", self.values.repeat(rows + 1))
        self.random = bool(((self.table > 0) & (self.table < 1)).any())

    @property
    def stochastic(self) -> bool:
        return self.random

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        key, ids = self._state((1, x.shape[1]), x.device) if self.random else (x, torch.arange(x.shape[1]))
        _, groups, positions, _ = self.operation.patches(x[:1, :1].flatten(0, 1)).shape
        lookups = len(x) * groups * positions * self.slices.shape[2] * self.slices.shape[4]  # a sample, a pair of bits
        samples = max(1, CHUNK // max(1, lookups))
        with torch.no_grad():
            parts = [
                self._looked_up(part, key, of, start)
                for part, of in zip(x.split(samples, 1), ids.split(samples), strict=True)
            ]
            y = torch.cat(parts, 1)
        if bias is not None:
            y = y + (bias if not self.operation.kernel else bias.view(-1, *(1,) * len(self.operation.kernel)))
        if x.requires_grad and torch.is_grad_enabled():
            ideal = super().product(x, None, start)
            y = y + (ideal - ideal.detach())  # zero, with the gradient of the ideal product
        return y

    def _looked_up(self, x: Tensor, key: Tensor, ids: Tensor, start: int) -> Tensor:
        time = x.shape[:2]
        x = x.flatten(0, 1)
        codes, step, signed, single = input_codes(x, self.input_bits)
        whole: Tensor | float = 0.0
        for i in range(self.input_bits):
            used = (step > 0) & ~single if i else step > 0  # an input of zeros is not read
            if i and not used.any():
                break
            bit = ((codes >> i) & 1).to(self.slices.dtype)
            place = torch.where(signed & (i == self.input_bits - 1), -(2.0**i), 2.0**i) * used
            whole = whole + place.double().view(-1, 1, 1, 1) * self._of_slice(bit, i, key, ids, time, start)
        scale = (step.double() * self.step).view(-1, 1, 1, 1)
        y: Tensor = self.operation.assemble((whole * scale).to(x.dtype), x).unflatten(0, time)
        return y

    def _of_slice(self, bit: Tensor, i: int, key: Tensor, ids: Tensor, time: torch.Size, start: int) -> Tensor:
        """One bit of the inputs with all bits of the weights, float64 ``[N, groups, L, out / groups]``."""
        patches = self.operation.patches(bit)  # [N, groups, L, K]
        n, groups, positions, k = patches.shape
        patches = F.pad(patches, (0, -k % self.rows)).unflatten(3, (-1, self.rows))
        inputs = patches.permute(1, 3, 0, 2, 4).flatten(2, 3)  # [groups, tiles, N L, rows]
        total = torch.zeros(n, groups, positions, self.slices.shape[-1], dtype=torch.float64, device=bit.device)
        for j, place in enumerate(bit_values(self.weight_bits).tolist()):
            partial = (inputs @ self.slices[j]).unflatten(2, (n, positions)).permute(2, 0, 1, 3, 4)
            u = None
            if self.random:
                word = (key + torch.tensor([i * self.weight_bits + j, 0], device=key.device)) & 0xFFFFFFFF
                u = draws.uniform(word, ids, (*time, *partial.shape[1:]), start).flatten(0, 1)
            total.add_(self._look_up(partial, u).sum(2), alpha=place)
        return total

    def _look_up(self, partial: Tensor, u: Tensor | None) -> Tensor:
        """The value of the code that the table gives for each partial sum."""
        codes = self.table.shape[1]
        if u is None:
            return self.values[self.table.argmax(1)].index_select(0, partial.flatten().int()).view(partial.shape)
        u = u * codes
        column = u.floor().clamp_(max=codes - 1)  # a product that rounds up to the next whole number
        place = torch.add(column, partial, alpha=codes).int().flatten()
        first = u.sub_(column).flatten() < self.threshold.index_select(0, place)
        return torch.where(first, self.direct.index_select(0, place), self.alias.index_select(0, place)).view(
            partial.shape
        )


class LookupTable(Backend):
    r"""A chip that answers each partial sum with a code of its converter, drawn from a measured table.

    .. math:: y_o = \Delta_x \Delta_w \sum_{i,j} s_i s_j \sum_{a} v\big(c_{ijao}\big) + b_o, \quad
        c_{ijao} \sim P\Big(\cdot \,\Big|\, \textstyle\sum_{k \in a} x_{ki} w_{kjo}\Big)

    where :math:`x_{ki}, w_{kjo} \in \{0, 1\}` are bits i and j of input k and of its weight, a runs over sub-arrays of ``rows``
    inputs, :math:`s_i = 2^i` (minus for the sign bit of two's complement), and v(c) is the partial sum that code c stands for.
    Every partial sum of every sample, time step and position is looked up by itself. Inputs are quantized at each step by
    :func:`input_codes`, where spikes take a single bit; weights symmetrically, as by ``quantization.uniform``. An input of
    zeros is not read. Biases are digital.

    The gradient is straight-through: that of the quantized weights' exact product. Lookups are a step function of the input
    and have none of their own.

    Args:
        table: A ``.npy``, ``.csv`` or ``.safetensors`` file, or nested lists: ``[rows + 1, codes]``, P(code | partial sum). None:
            a synthetic one, by the arguments below.
        rows: Inputs of a sub-array: default those of the table, or 64.
        input_bits: 1 to 8.
        weight_bits: 2 to 8.
        values: The partial sum that each code stands for; default evenly from 0 to ``rows``.
        codes, sigma, offset, nonlinearity: Of :func:`~snnrobust.hardware.tables.synthetic_table`.
        seed: Of the synthetic table; None makes another for each layer of each chip.

    Raises:
        ValueError, FileNotFoundError: a table that is none (see :func:`~snnrobust.hardware.tables.checked_table`); bits out of
            range; weights that are NaN; at the product, NaN or negative inputs in one bit.

    Source: Cherupally et al. 2022, Semicond. Sci. Technol. 37(3) 034001, who train with noise measured on RRAM chips. That
    paper's tables are not public, and its scheme of slices was not verified: this one is the textbook's.
    """

    drawn: Drawn | None = "step"
    gradient: Gradient = "straight-through"

    def __init__(
        self,
        table: str | Path | Sequence[Sequence[float]] | None = None,
        rows: int | None = None,
        input_bits: int = 4,
        weight_bits: int = 4,
        values: Sequence[float] | None = None,
        codes: int | None = None,
        sigma: float = 0.5,
        offset: float = 0.0,
        nonlinearity: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= checks.count("input_bits", input_bits) <= 8:
            raise ValueError(f"input_bits must be in 1..8, got {input_bits}")
        bit_values(checks.count("weight_bits", weight_bits, low=2, hint="one is the sign"))
        self.rows = None if rows is None else checks.count("rows", rows)
        self.input_bits, self.weight_bits, self.values = input_bits, weight_bits, values
        self.codes, self.sigma, self.offset, self.nonlinearity, self.seed = codes, sigma, offset, nonlinearity, seed
        self.table: Any = str(table) if isinstance(table, Path) else table
        self._table: Tensor | None = None
        if isinstance(table, str | Path):
            self._table = read_table(table, rows)
        elif table is not None:
            self._table = checked_table(table, rows)
        if table is not None and codes is not None:
            raise ValueError("codes belongs to a synthetic table: a given one has its own, leave it out")
        sample = self._synthetic(0 if seed is None else seed) if self._table is None else self._table
        code_values(sample.shape[1], sample.shape[0] - 1, values)

    @property
    def stochastic(self) -> bool:
        return False  # the arrays are

    def _synthetic(self, seed: int | Tensor) -> Tensor:
        rows = 64 if self.rows is None else self.rows
        return synthetic_table(rows, self.codes, self.sigma, self.offset, self.nonlinearity, seed)

    def program(self, array: Array) -> Array:
        weight = plain(array, self).weight
        stored = store(weight, self.weight_bits)
        table = self._table
        if table is None:
            table = self._synthetic(self.chip_key() if self.seed is None else self.seed)
        values = code_values(table.shape[1], table.shape[0] - 1, self.values)
        return LookupArray(stored, weight, array.operation, table, values, self.input_bits)

    def extra_repr(self) -> str:
        rows = self.rows or (64 if self._table is None else self._table.shape[0] - 1)
        return f"rows={rows}, input_bits={self.input_bits}, weight_bits={self.weight_bits}"
