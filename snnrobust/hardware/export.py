"""The conductances of a chip as a file, for a programmer of devices or a circuit simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.hardware.backend import Backend, effects
from snnrobust.hardware.crossbar.array import CrossbarArray
from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.crossbar.mapping import Tiling, weights
from snnrobust.hardware.storage import build_backend, describe_backend
from snnrobust.hardware.synapses import DeployedLayer, WithoutTime

__all__ = ["ArrayConductances", "ChipConductances", "conductances", "export_conductances", "read_conductances"]

_KIND = "conductances"


@dataclass(frozen=True, eq=False)
class ArrayConductances:
    """One layer on its tiles.

    Args:
        g: Siemens, float64 ``[2, groups, R, C, rows, columns]``: positive parts, then negative; R tiles along the inputs, C along
            the outputs. Device variation and stuck cells are in it, wires are not.
        scale: Weight per siemens.
        inputs, outputs: Of the matrix of each group: cells beyond are padding.
        crossbar: What the layer is on.
    """

    g: Tensor
    scale: float
    inputs: int
    outputs: int
    crossbar: Crossbar

    def matrix(self) -> Tensor:
        """The weights that these conductances stand for without wires, float64 ``[groups, inputs, outputs]``."""
        tiling = Tiling(self.inputs, self.outputs, self.crossbar.rows, self.crossbar.columns)
        return tiling.join(weights(self.g, self.scale))


@dataclass(frozen=True, eq=False)
class ChipConductances:
    """Layers by name, and the seed of the chip where it is known."""

    layers: dict[str, ArrayConductances]
    seed: int | None


def conductances(chip: nn.Module) -> ChipConductances:
    """What the cells of ``chip`` are.

    Raises:
        ValueError: the chip has no layer on a :class:`~snnrobust.hardware.Crossbar`.
    """
    layers = {}
    for name, layer, crossbar in _on_crossbars(checks.module("chip", chip)):
        array = layer.array
        assert isinstance(array, CrossbarArray)
        parts = list(effects(layer.backend))
        for later in parts[parts.index(crossbar) + 1 :]:
            if type(later).program is not Backend.program:
                raise TypeError(
                    f"{name}: {type(later).__name__} changes the weights after the Crossbar, which no cell stores: put it first"
                )
        with torch.no_grad():
            matrix = array.operation.matrix(array.programmed)
            g, scale = crossbar.tiles(matrix)
        layers[name] = ArrayConductances(g, scale, matrix.shape[-2], matrix.shape[-1], crossbar)
    if not layers:
        raise ValueError("the chip has no layer on a Crossbar: use hardware.deploy(model, Crossbar(...), seed=...)")
    return ChipConductances(layers, getattr(getattr(chip, "_recipe", None), "seed", None))


def export_conductances(chip: nn.Module, path: str | Path) -> None:
    """Write :func:`conductances` to one safetensors file, atomically: a tensor ``<layer>`` for each layer, float64, and JSON
    ``{"seed": ..., "layers": {<layer>: {"scale", "inputs", "outputs", "crossbar"}}}`` in its header, with all resistances."""
    from snnrobust.models.checkpoint import write_tensors

    found = conductances(chip)
    about = {
        name: {"scale": a.scale, "inputs": a.inputs, "outputs": a.outputs, "crossbar": describe_backend(a.crossbar)}
        for name, a in found.layers.items()
    }
    write_tensors(Path(path), _KIND, {n: a.g for n, a in found.layers.items()}, {"seed": found.seed, "layers": about})


def read_conductances(path: str | Path) -> ChipConductances:
    """What :func:`export_conductances` wrote. No code of the file's author is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or of another kind, or its parts do not fit one another.
    """
    from snnrobust.models.checkpoint import read_tensors

    path = Path(path)
    tensors, content = read_tensors(path, _KIND)
    try:
        seed, about = content["seed"], content["layers"]
        if (
            not (seed is None or (isinstance(seed, int) and not isinstance(seed, bool)))
            or about.keys() != tensors.keys()
        ):
            raise ValueError("its header does not fit its tensors")
        layers = {name: _layer(name, about[name], g) for name, g in tensors.items()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return ChipConductances(layers, seed)


def _layer(name: str, about: dict[str, Any], g: Tensor) -> ArrayConductances:
    crossbar = build_backend(about["crossbar"])
    if not isinstance(crossbar, Crossbar):
        raise ValueError(f"{name} is on a {type(crossbar).__name__}, not on a Crossbar")
    inputs, outputs = checks.count("inputs", about["inputs"]), checks.count("outputs", about["outputs"])
    scale = checks.number("scale", about["scale"], 0.0)
    grid = Tiling(inputs, outputs, crossbar.rows, crossbar.columns).grid
    shape = (2, g.shape[1] if g.dim() == 6 else 1, *grid, crossbar.rows, crossbar.columns)
    if g.shape != shape or g.dtype != torch.float64:
        raise ValueError(f"{name} is {g.dtype} {list(g.shape)} and should be torch.float64 {list(shape)}")
    if prod(shape) and not (bool(g.isfinite().all()) and float(g.min()) >= 0):
        raise ValueError(f"{name} has conductances that are negative or not finite")
    return ArrayConductances(g, scale, inputs, outputs, crossbar)


def _on_crossbars(chip: nn.Module) -> Iterator[tuple[str, DeployedLayer, Crossbar]]:
    seats = {id(m.layer): name for name, m in chip.named_modules() if isinstance(m, WithoutTime)}
    for name, module in chip.named_modules():
        if isinstance(module, DeployedLayer) and isinstance(module.array, CrossbarArray):
            for effect in effects(module.backend):
                if isinstance(effect, Crossbar):
                    yield seats.get(id(module), name), module, effect
