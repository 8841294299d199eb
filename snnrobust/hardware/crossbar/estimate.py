"""What it takes to put a model on crossbars, before it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from snnrobust import checks
from snnrobust.hardware.crossbar import solve
from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.crossbar.mapping import Tiling
from snnrobust.hardware.deploy import synaptic
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.recurrent import products

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """Of a deployment.

    Args:
        layers: Tiles of each layer, both arrays of the pairs.
        cells: Devices on all tiles.
        used: Share of them that hold weights.
        seconds: Of solving, with as many threads as torch has now and nothing on disk; a probe is timed.
        megabytes: At the peak of the largest layer, and of the chip.
    """

    layers: dict[str, int]
    cells: int
    used: float
    seconds: float
    megabytes: float

    @property
    def tiles(self) -> int:
        return sum(self.layers.values())

    def __str__(self) -> str:
        return (
            f"{self.tiles} tiles for {len(self.layers)} layers, {100 * self.used:.0f} % of {self.cells} devices used: "
            f"about {self.seconds:.0f} s and {self.megabytes:.0f} MB"
        )


def estimate(model: nn.Module, crossbar: Crossbar) -> Estimate:
    """How many tiles ``deploy(model, crossbar, seed=...)`` fills, and about how long it takes.

    Raises:
        ValueError: the model has no synaptic layers.
        TypeError: ``crossbar`` is no :class:`~snnrobust.hardware.Crossbar`.
    """
    if not isinstance(crossbar, Crossbar):
        raise TypeError(f"crossbar must be a Crossbar, got {crossbar!r:.80}")
    layers, held, numbers, largest, seconds = {}, 0, 0, 0, 0.0
    for name, groups, inputs, outputs in _matrices(checks.module("model", model)):
        tiling = Tiling(inputs, outputs, crossbar.rows, crossbar.columns)
        layers[name] = 2 * groups * prod(tiling.grid)
        held += 2 * groups * inputs * outputs
        numbers += 2 * groups * inputs * outputs  # effective and programmed
        largest = max(largest, layers[name])
        if crossbar.ir_drop:
            seconds += _seconds(crossbar, tiling, 2 * groups)
    if not layers:
        raise ValueError("the model has no nn.Linear, nn.Conv or recurrent layer to put on crossbars")
    area = crossbar.rows * crossbar.columns
    cells = sum(layers.values()) * area
    solving = torch.get_num_threads() * max(solve.AT_A_TIME, solve.tile_bytes(crossbar.rows, crossbar.columns))
    peak = 4 * 8 * largest * area + 4 * numbers + (solving if crossbar.ir_drop else 0)
    return Estimate(layers, cells, held / cells, seconds, peak / 1e6)


def _seconds(crossbar: Crossbar, tiling: Tiling, arrays: int) -> float:
    if crossbar.padding == "off":
        return solve.seconds(arrays * prod(tiling.grid), crossbar.rows, crossbar.columns, crossbar.wires)
    sizes, counts = tiling.used().flatten(0, 1).unique(dim=0, return_counts=True)
    pairs = zip(sizes.tolist(), counts.tolist(), strict=True)
    return sum(solve.seconds(arrays * count, m, n, crossbar.wires) for (m, n), count in pairs)


def _matrices(model: nn.Module) -> Iterator[tuple[str, int, int, int]]:
    """Name, groups, inputs and outputs of each matrix."""
    for name, layer in synaptic(model).items():
        if isinstance(layer, nn.RNNBase):
            for part, product in products(layer).items():
                outputs, inputs = product.weight.shape
                yield f"{name}.{part}", 1, inputs, outputs
        else:
            weight, operation = layer.weight, Operation.of(layer)
            assert isinstance(weight, torch.Tensor)
            yield name, operation.groups, weight[0].numel(), len(weight) // operation.groups
