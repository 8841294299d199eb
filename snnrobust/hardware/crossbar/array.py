"""What a layer is on crossbars: one effective weight, or partial sums that are converted tile by tile."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snnrobust.hardware.backend import Array
from snnrobust.hardware.crossbar.converters import convert
from snnrobust.hardware.operation import Operation

__all__ = ["ConvertedArray", "CrossbarArray", "input_range"]

MOST_PATCHES = 1 << 22
"""Elements of patches at a time."""


def input_range(x: Tensor, dac_range: float | Literal["sample"]) -> Tensor:
    """The input that stands for the full read voltage: for each sample and step, ``[T, B, 1, ...]``, or one for all."""
    if dac_range != "sample":
        return torch.as_tensor(dac_range, dtype=x.dtype, device=x.device)
    return x.detach().abs().amax(tuple(range(2, x.dim())), keepdim=True)


class CrossbarArray(Array):
    """Its product is a plain one with the effective weight.

    Args:
        weight: Effective weight: conductances, faults, IR drop and output gain in it.
        programmed: The weight that the conductances were programmed from.
        operation: What the layer does with it.
    """

    programmed: Tensor

    def __init__(self, weight: Tensor, programmed: Tensor, operation: Operation) -> None:
        super().__init__(weight, operation)
        self.register_buffer("programmed", programmed.detach().clone())


class ConvertedArray(CrossbarArray):
    r"""Partial sums of each tile of rows go through an ADC before they are added.

    .. math:: y = \sum_r Q_b(x_r W_r;\; a \, r_x) + b

    with :math:`r_x` the input range and a the largest partial sum that the ADC reads for inputs within [-1, 1].

    Args:
        rows: Of a tile.
        adc_bits: b.
        adc_range: Where the ADC saturates, as a share of the largest possible partial sum,
            :math:`\max_{r, j} \sum_{i \in r} |W_{ij}|`.
        dac_range: As of :class:`~snnrobust.hardware.Crossbar`.
    """

    top: Tensor
    """a, a number."""

    def __init__(
        self, weight: Tensor, programmed: Tensor, operation: Operation, *, rows: int, adc_bits: int, adc_range: float,
        dac_range: float | Literal["sample"],
    ) -> None:  # fmt: skip
        super().__init__(weight, programmed, operation)
        self.rows, self.adc_bits, self.dac_range = rows, adc_bits, dac_range
        largest = self._tiles(self.weight).double().abs().sum(-2).amax()
        self.register_buffer("top", (adc_range * largest).to(weight.dtype))
        self.observed: Tensor | None = None
        """While ranges are calibrated: the largest partial sum so far; nothing is converted."""

    def _tiles(self, weight: Tensor) -> Tensor:
        """``[R, groups, rows, out / groups]``."""
        matrix = self.operation.matrix(weight)
        k = matrix.shape[-2]
        filled = F.pad(matrix, (0, 0, 0, -k % self.rows))
        tiles: Tensor = filled.unflatten(-2, (-1, self.rows)).movedim(1, 0)
        return tiles

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        tiles = self._tiles(self.weight)  # each time, since backends after this one may have changed the weight
        scale = input_range(x, self.dac_range)
        scale = scale.expand(x.shape[:2] + (1,) * (x.dim() - 2)).flatten(0, 1)
        folded = x.flatten(0, 1)
        size = self._chunk(folded)
        parts = [self._partial(p, tiles, s) for p, s in zip(folded.split(size), scale.split(size), strict=True)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        if bias is not None:
            y = y + (bias.view(-1, *(1,) * len(self.operation.kernel)) if self.operation.kernel else bias)
        result: Tensor = y.unflatten(0, x.shape[:2])
        return result

    def _chunk(self, x: Tensor) -> int:
        """Samples whose patches are built at a time."""
        window = 1
        for k in self.operation.kernel:
            window *= k
        return max(1, MOST_PATCHES // max(1, x[:1].numel() * window))

    def _partial(self, x: Tensor, tiles: Tensor, scale: Tensor) -> Tensor:
        patches = self.operation.patches(x)  # [N, groups, L, K]
        largest = self.top * scale.reshape(-1, 1, 1, 1)
        total: Tensor | None = None
        for part, tile in zip(patches.split(self.rows, -1), tiles, strict=True):
            y = self._read(part @ tile[:, : part.shape[-1]], largest, scale)
            total = y if total is None else total + y
        assert total is not None
        return self.operation.assemble(total, x)

    def _read(self, y: Tensor, largest: Tensor, scale: Tensor) -> Tensor:
        if self.observed is None:
            return convert(y, self.adc_bits, largest)
        s = scale.reshape(-1, 1, 1, 1)
        relative = torch.where(s > 0, y.detach() / torch.where(s > 0, s, 1.0), 0.0)
        self.observed = torch.maximum(self.observed, relative.abs().amax())
        return y
