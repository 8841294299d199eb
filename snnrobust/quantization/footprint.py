r"""Size of a pruned and quantized network, and what it takes of crossbars: counts, times costs that the user gives.

.. math:: \text{compression} = \frac{32 \, N}{\sum_l b_l \, n_l}

with N all weights, and of layer l :math:`n_l` the weights that are stored and :math:`b_l` the bits of one. Indices of sparse
weights are not counted: of a structure they are few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.hardware.crossbar.mapping import Tiling
from snnrobust.hardware.deploy import SYNAPTIC
from snnrobust.hardware.operation import Operation

__all__ = ["CrossbarCosts", "Footprint", "LayerFootprint", "footprint"]

FLOAT_BITS = 32


@dataclass(frozen=True)
class CrossbarCosts:
    """What one crossbar and one converter cost, in units of the user. **No published constant is verified here**: with the
    defaults of 1 only ratios of areas and powers mean something, and those only as far as crossbars and converters weigh alike.

    Args:
        area_crossbar, area_adc: Of one array, and of one analog-to-digital converter.
        power_crossbar, power_adc: Likewise.
        columns_per_adc: Columns that share a converter.
    """

    area_crossbar: float = 1.0
    area_adc: float = 1.0
    power_crossbar: float = 1.0
    power_adc: float = 1.0
    columns_per_adc: int = 8

    def __post_init__(self) -> None:
        for name in ("area_crossbar", "area_adc", "power_crossbar", "power_adc"):
            checks.number(name, getattr(self, name), 0.0)
        checks.count("columns_per_adc", self.columns_per_adc)


@dataclass(frozen=True)
class LayerFootprint:
    """Of one layer.

    Attributes:
        name: As in ``model.named_modules()``.
        weights, kept: All of them, and those that are stored.
        bits: Of one.
        crossbars: Arrays that hold a weight, of all tiles where they lie; both arrays of the pairs, all slices.
        all_crossbars: Arrays of the layer if none is left out.
        packed_crossbars: Arrays if rows and columns without a weight are taken out first, and the rest is moved together.
        adcs: Converters of the arrays that hold a weight, for their columns that hold one.
    """

    name: str
    weights: int
    kept: int
    bits: int
    crossbars: int
    all_crossbars: int
    packed_crossbars: int
    adcs: int


@dataclass(frozen=True)
class Footprint:
    """Of a network; see :func:`footprint`."""

    layers: tuple[LayerFootprint, ...]
    costs: CrossbarCosts

    def _sum(self, name: str) -> int:
        return sum(getattr(layer, name) for layer in self.layers)

    @property
    def weights(self) -> int:
        return self._sum("weights")

    @property
    def kept(self) -> int:
        return self._sum("kept")

    @property
    def bits(self) -> int:
        """Of all weights that are stored."""
        return sum(layer.bits * layer.kept for layer in self.layers)

    @property
    def crossbars(self) -> int:
        return self._sum("crossbars")

    @property
    def all_crossbars(self) -> int:
        return self._sum("all_crossbars")

    @property
    def packed_crossbars(self) -> int:
        return self._sum("packed_crossbars")

    @property
    def adcs(self) -> int:
        return self._sum("adcs")

    @property
    def area(self) -> float:
        return self.crossbars * self.costs.area_crossbar + self.adcs * self.costs.area_adc

    @property
    def power(self) -> float:
        """If all crossbars and converters work all the time."""
        return self.crossbars * self.costs.power_crossbar + self.adcs * self.costs.power_adc

    def compression(self, dense: Footprint | None = None) -> float:
        """Bits of ``dense`` in 32 bits a weight (default: of this network with all its weights) over the bits that are left.

        A network without any weight left has infinite compression.
        """
        whole = FLOAT_BITS * (self if dense is None else dense).weights
        return whole / self.bits if self.bits else math.inf

    def reduction(self, dense: Footprint) -> dict[str, float]:
        """Shares of ``dense`` that are saved: of crossbars, converters, area and power."""
        names = ("crossbars", "adcs", "area", "power")
        return {n: 1 - getattr(self, n) / getattr(dense, n) if getattr(dense, n) else 0.0 for n in names}

    def table(self) -> str:
        heading = ("layer", "weights", "kept", "bits", "crossbars", "of", "packed", "ADCs")
        rows = [
            (
                layer.name, *(f"{v:,}" for v in (layer.weights, layer.kept, layer.bits, layer.crossbars)),
                *(f"{v:,}" for v in (layer.all_crossbars, layer.packed_crossbars, layer.adcs)),
            )
            for layer in self.layers
        ]  # fmt: skip
        total = (self.weights, self.kept, "", self.crossbars, self.all_crossbars, self.packed_crossbars, self.adcs)
        rows.append(("all layers", *(f"{v:,}" if isinstance(v, int) else v for v in total)))
        widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (heading, *rows)
        ]
        return "\n".join([*lines, f"{self.compression():.2f} times smaller than 32 bits for each weight"])

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": self.weights, "kept": self.kept, "bits": self.bits, "compression": self.compression(),
            "crossbars": self.crossbars, "all_crossbars": self.all_crossbars, "packed_crossbars": self.packed_crossbars,
            "adcs": self.adcs, "area": self.area, "power": self.power, "costs": vars(self.costs),
            "layers": [vars(layer) for layer in self.layers],
        }  # fmt: skip


def footprint(
    model: nn.Module,
    *,
    bits: int | Mapping[str, int] = FLOAT_BITS,
    rows: int = 64,
    columns: int = 64,
    arrays: int = 2,
    device_bits: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    costs: CrossbarCosts = CrossbarCosts(),
) -> Footprint:
    """Weights, bits, crossbars and converters of ``model`` as it is: what is zero in it counts as pruned.

    Args:
        model: Its ``nn.Linear`` and ``nn.Conv1d/2d/3d`` layers are counted; biases and normalisation are not.
        masks: By the name of a parameter, False where a weight is not stored, as ``compress(...).masks``: a weight whose level
            happens to be zero is stored like any other. Default: what is zero is not stored.
        bits: Of a stored weight, 1 to 32: for all layers, or by layer (the others have 32).
        rows, columns: Of a crossbar.
        arrays: Arrays that hold one tile: 2 for differential pairs.
        device_bits: Bits of magnitude that one device holds; a weight of b bits then takes ``ceil((b - 1) / device_bits)``
            slices of each array. None: a device holds a whole magnitude, whatever its bits.
        costs: Of a crossbar and a converter.

    Raises:
        ValueError: the model has no such layer, ``bits`` names one that it has not or is outside 1..32.
    """
    checks.module("model", model)
    checks.count("rows", rows)
    checks.count("columns", columns)
    checks.count("arrays", arrays)
    if device_bits is not None:
        checks.count("device_bits", device_bits)
    if not isinstance(costs, CrossbarCosts):
        raise TypeError(f"costs must be CrossbarCosts(...), got {costs!r:.80}")
    known = {name: m for name, m in model.named_modules() if isinstance(m, SYNAPTIC)}
    if not known:
        raise ValueError("the model has no nn.Linear or nn.Conv layer: there is nothing to count")
    for name in bits if isinstance(bits, Mapping) else ():
        checks.choice("a layer in bits", name, known)
    layers = []
    for name, layer in known.items():
        own = bits.get(name, FLOAT_BITS) if isinstance(bits, Mapping) else bits
        if not 1 <= checks.integer("bits", own) <= FLOAT_BITS:
            raise ValueError(f"bits must be in 1..{FLOAT_BITS}, got {own}")
        slices = 1 if device_bits is None else max(1, -(-(own - 1) // device_bits))
        weight = layer.weight.detach()
        stored = weight != 0
        if masks is not None:
            stored = masks.get(f"{name}.weight", torch.ones_like(stored)).to(weight.device)
            if stored.shape != weight.shape or bool((weight[~stored] != 0).any()):
                raise ValueError(
                    f"the mask of {name}.weight has another shape, or leaves out what is not zero: it is of another model"
                )
        layers.append(
            _layer(name, Operation.of(layer).matrix(stored), own, rows, columns, arrays * slices, costs.columns_per_adc)
        )
    return Footprint(tuple(layers), costs)


def _layer(name: str, matrix: Tensor, bits: int, rows: int, columns: int, arrays: int, shared: int) -> LayerFootprint:
    """Of what is stored, bool ``[groups, K, out / groups]``."""
    tiling = Tiling(matrix.shape[-2], matrix.shape[-1], rows, columns)
    used = tiling.cut(matrix.to(torch.uint8), 0).bool()  # [groups, R, C, rows, columns]
    busy = used.any(-2).sum(-1)  # columns of each tile that hold a weight
    packed = sum(-(-int(one.any(1).sum()) // rows) * -(-int(one.any(0).sum()) // columns) for one in matrix.unbind(0))
    return LayerFootprint(
        name, matrix.numel(), int(matrix.sum()), bits,
        arrays * int((busy > 0).sum()), arrays * len(matrix) * math.prod(tiling.grid), arrays * packed,
        arrays * int(((busy + shared - 1) // shared).sum()),
    )  # fmt: skip
