"""A resistive crossbar as a backend."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from snnrobust import checks, draws
from snnrobust.hardware.backend import Array, Backend
from snnrobust.hardware.crossbar.array import ConvertedArray, CrossbarArray, input_range
from snnrobust.hardware.crossbar.converters import convert
from snnrobust.hardware.crossbar.devices import stick, vary
from snnrobust.hardware.crossbar.mapping import Tiling, conductances, weights
from snnrobust.hardware.crossbar.nodal import Wires
from snnrobust.hardware.crossbar.nonlinear import NonlinearArray
from snnrobust.hardware.crossbar.solve import demand_memory, demand_room, solve

__all__ = ["Crossbar", "least_squares_gain"]

MOST_BITS = 16


class Crossbar(Backend):
    r"""Weights as pairs of conductances on tiles of ``rows`` x ``columns``, read through resistive wires.

    .. math:: G^\pm_{ij} = G_{min} + \max(\pm w_{ij}, 0) \, (G_{max} - G_{min}) / w_{max}, \qquad
        y_j = s \sum_i v_i \, g \, (\hat G^+_{ij} - \hat G^-_{ij}) + b_j, \quad s = w_{max} / (G_{max} - G_{min})

    where :math:`w_{max}` is the largest magnitude of the layer, :math:`\hat G` the effective conductances of the tile after
    device variation, stuck cells and IR drop (:func:`~snnrobust.hardware.crossbar.nodal.effective_conductance`), and g the
    output gain. Devices are linear, so :math:`\hat G` does not depend on the input: it is solved once a chip, and a layer
    without ADC is one product with one effective weight at every batch and time step. Positive and negative parts lie on
    two arrays whose currents are subtracted before they are converted; biases are added digitally.

    Drawn: device variation and stuck cells, once for the ``chip``. Gradient with respect to the input: exact for the
    effective weight; through DAC and ADC straight-through, that of the clip, with their ranges held constant.

    Args:
        rows, columns: Of a tile; inputs drive the rows, outputs are sensed at the columns. Each group of a grouped
            convolution has tiles of its own.
        r_on, r_off: Resistance in ohm of the cells of the largest and the smallest conductance, :math:`1/G_{max} < 1/G_{min}`.
        r_driver, r_sense: Of each row's driver and each column's sense amplifier, ohm.
        r_row, r_column: Of a segment of wire between two cells, ohm.
        variation: Standard deviation of a device over its mean.
        distribution: Of the variation, ``"lognormal"`` or ``"gaussian"`` (clamped at zero); both keep the mean.
        stuck_on, stuck_off: Share of the cells that are stuck at ``r_on``, ``r_off``.
        dac_bits: Of the inputs, 2 to 16; None is an ideal driver.
        dac_range: The input that stands for the full read voltage: ``"sample"``, the largest magnitude of each sample at each
            step, or a number, beyond which a DAC saturates.
        adc_bits: Of the partial sums of each tile, 2 to 16; None is an ideal one.
        adc_range: Where the ADC saturates, as a share of the largest partial sum that inputs within their range can give in this
            layer; :func:`~snnrobust.hardware.calibrate_adc` finds what is needed.
        output_gain: ``"none"``; ``"tile"``: of each tile the gain that fits its effective weights to the programmed ones best in
            least squares; ``"column"``: one for each column of each tile. It acts before the ADC.
        padding: What the cells of a tile are that hold no weight: ``"off"``, devices at ``r_off`` (they vary and stick as the
            others, and their rows are at 0 V), or ``"open"``, disconnected.
        ir_drop: False leaves out the wires.
        nonlinearity: b in 1/V of devices with :math:`i = G \sinh(b v) / b`; None, the default, is linear. With wires each input
            of each tile is then solved by Newton's method, some 0.1 s for one of 64 x 64: for small layers and few images;
            products that would take more than ten minutes are refused. Backends after it cannot change the weight.
        read_voltage: What an input at the end of its range is driven with, volts; matters with ``nonlinearity`` only.
        cache: Keep solved tiles on disk (:mod:`snnrobust.hardware.crossbar.cache`).
        progress: Show a bar where solving takes long and a terminal is there.

    The defaults of the resistances are round numbers, not those of a published device.

    Raises:
        ValueError: ``r_on >= r_off``, a resistance that is not positive, shares outside of [0, 1], tiles larger than memory
            allows, weights with NaN.
    """

    def __init__(
        self,
        rows: int = 64,
        columns: int = 64,
        *,
        r_on: float = 20e3,
        r_off: float = 200e3,
        r_driver: float = 10.0,
        r_row: float = 1.0,
        r_column: float = 1.0,
        r_sense: float = 10.0,
        variation: float = 0.0,
        distribution: Literal["lognormal", "gaussian"] = "lognormal",
        stuck_on: float = 0.0,
        stuck_off: float = 0.0,
        dac_bits: int | None = None,
        dac_range: float | Literal["sample"] = "sample",
        adc_bits: int | None = None,
        adc_range: float = 1.0,
        output_gain: Literal["none", "tile", "column"] = "none",
        padding: Literal["off", "open"] = "off",
        ir_drop: bool = True,
        nonlinearity: float | None = None,
        read_voltage: float = 0.2,
        cache: bool = True,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.rows, self.columns = checks.count("rows", rows), checks.count("columns", columns)
        self.r_on, self.r_off = _ohm("r_on", r_on), _ohm("r_off", r_off)
        if self.r_on >= self.r_off:
            raise ValueError(
                f"r_on must be below r_off, got r_on={r_on:g} and r_off={r_off:g} ohm: on is the state of low resistance"
            )
        self.r_driver, self.r_sense = _ohm("r_driver", r_driver), _ohm("r_sense", r_sense)
        self.r_row, self.r_column = _ohm("r_row", r_row), _ohm("r_column", r_column)
        self.variation = checks.number("variation", variation, 0.0, 10.0)
        checks.choice("distribution", distribution, ("lognormal", "gaussian"))
        self.distribution = distribution
        self.stuck_on = checks.number("stuck_on", stuck_on, 0.0, 1.0)
        self.stuck_off = checks.number("stuck_off", stuck_off, 0.0, 1.0)
        if self.stuck_on + self.stuck_off > 1:
            raise ValueError(
                f"stuck_on + stuck_off must be at most 1, got {stuck_on:g} + {stuck_off:g}: shares of all cells"
            )
        self.dac_bits, self.adc_bits = _bits("dac_bits", dac_bits), _bits("adc_bits", adc_bits)
        if dac_range != "sample":
            hint = "or 'sample', the largest magnitude of each sample"
            dac_range = checks.number("dac_range", dac_range, 0.0, exclusive_low=True, hint=hint)
        self.dac_range: float | Literal["sample"] = dac_range
        self.adc_range = checks.number(
            "adc_range", adc_range, 0.0, 1.0, exclusive_low=True, hint="a share of full scale"
        )
        checks.choice("output_gain", output_gain, ("none", "tile", "column"))
        self.output_gain = output_gain
        checks.choice("padding", padding, ("off", "open"))
        self.padding = padding
        self.nonlinearity = nonlinearity
        if nonlinearity is not None:
            hint = "in 1/V; None for linear devices"
            self.nonlinearity = checks.number("nonlinearity", nonlinearity, 0.0, exclusive_low=True, hint=hint)
            if output_gain != "none":
                raise ValueError(
                    f"output_gain must be 'none' with nonlinearity, got {output_gain!r}: the gain would depend on the input"
                )
        self.read_voltage = checks.number("read_voltage", read_voltage, 0.0, exclusive_low=True, hint="in volts")
        self.ir_drop, self.cache = checks.boolean("ir_drop", ir_drop), checks.boolean("cache", cache)
        self.progress = checks.boolean("progress", progress)
        if self.variation or self.stuck_on or self.stuck_off:
            self.drawn = "chip"
        if self.dac_bits is not None or self.adc_bits is not None:
            self.gradient = "straight-through"
        if self.ir_drop and padding == "off":  # disconnected cells are not solved
            demand_memory(self.rows, self.columns)

    @property
    def wires(self) -> Wires:
        return Wires(driver=self.r_driver, row=self.r_row, column=self.r_column, sense=self.r_sense)

    def tiling(self, matrix: Tensor) -> Tiling:
        """How a matrix ``[groups, K, N]`` lies on tiles."""
        return Tiling(matrix.shape[-2], matrix.shape[-1], self.rows, self.columns)

    def tiles(self, matrix: Tensor) -> tuple[Tensor, float]:
        """The conductances of this chip for a weight matrix ``[groups, K, N]``.

        Returns:
            Siemens, float64 ``[2, groups, R, C, rows, columns]``, positive parts first, and the scale in weight per siemens.
        """
        low, high = 1 / self.r_off, 1 / self.r_on
        pairs, tiling = conductances(matrix, self.r_on, self.r_off), self.tiling(matrix)
        demand_room(2 * len(matrix) * prod(tiling.grid), self.rows, self.columns)
        g = tiling.cut(pairs.g, low if self.padding == "off" else 0.0)
        if self.drawn is not None:
            empty = g == 0
            # the identity of a draw is its tile's place on the chip
            n = g.shape[:-2].numel()
            key, ids = self.chip_key(g.device), torch.arange(n, device=g.device)
            shape = (1, n, self.rows, self.columns)
            if self.variation:
                g = vary(g, self.variation, self.distribution, draws.normal(key, ids, shape, 0).view(g.shape))
            if self.stuck_on or self.stuck_off:
                u = draws.uniform(key, ids, shape, 1).view(g.shape)  # another step: other bits than the variation has
                g = stick(g, self.stuck_on, self.stuck_off, low, high, u)
            g = g.masked_fill(empty, 0.0)
        return g, pairs.scale

    def effective(self, matrix: Tensor) -> Tensor:
        """The effective weight of this chip for a weight matrix, float64 ``[groups, K, N]``."""
        tiling = self.tiling(matrix)
        g, scale = self.tiles(matrix)
        if scale == 0:  # whatever the devices do, they stand for nothing
            return torch.zeros_like(matrix, dtype=torch.float64)
        if self.ir_drop:
            flat, used = g.flatten(0, 3), None
            if self.padding == "open":
                used = tiling.used().expand(*g.shape[:2], -1, -1, -1).reshape(-1, 2)
            solved = solve(flat, self.wires, used=used, cache=self.cache, progress=self.progress)
            g = solved.view(g.shape)
        real = weights(g, scale)  # [groups, R, C, rows, columns]
        if self.output_gain != "none":
            ideal = tiling.cut(matrix.double(), 0.0)
            held = tiling.cut(torch.ones_like(matrix), 0.0)
            real = real * least_squares_gain(real * held, ideal, self.output_gain)
        return tiling.join(real)

    def program(self, array: Array) -> Array:
        if isinstance(array, CrossbarArray):
            raise TypeError("the layer is on a crossbar already: a Chain takes one Crossbar")
        if type(array).product is not Array.product:
            raise TypeError(
                f"Crossbar programs plain weights, and a backend before it has made a {type(array).__name__} of the layer: "
                "put Crossbar first"
            )
        operation, programmed = array.operation, array.weight
        stored = operation.matrix(programmed)
        weight = operation.unmatrix(self.effective(stored), programmed.shape).to(programmed.dtype).contiguous()
        if self.nonlinearity is not None:
            g, scale = self.tiles(stored)
            return NonlinearArray(
                weight, programmed, operation, g=g, scale=scale, wires=self.wires if self.ir_drop else None, b=self.nonlinearity,
                volts=self.read_voltage, adc_bits=self.adc_bits, adc_range=self.adc_range, dac_range=self.dac_range,
            )  # fmt: skip
        if self.adc_bits is None:
            return CrossbarArray(weight, programmed, operation)
        return ConvertedArray(
            weight, programmed, operation,
            rows=self.rows, adc_bits=self.adc_bits, adc_range=self.adc_range, dac_range=self.dac_range,
        )  # fmt: skip

    def drive(self, x: Tensor) -> Tensor:
        if self.dac_bits is None:
            return x
        return convert(x, self.dac_bits, input_range(x.detach(), self.dac_range))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._said())

    def _said(self) -> Iterator[tuple[str, Any]]:
        yield from (("rows", self.rows), ("columns", self.columns))
        for name, default in (Crossbar.__init__.__kwdefaults__ or {}).items():
            value = getattr(self, name)
            if value != default:
                yield name, value


def least_squares_gain(real: Tensor, ideal: Tensor, output_gain: str) -> Tensor:
    r"""Output gains, :math:`g = \langle \hat w, w \rangle / \langle \hat w, \hat w \rangle`, of a tile or of each of its columns.

    What is closest to the ideal output for inputs that are white. Where :math:`\hat w` vanishes the gain is 1.

    Args:
        real: Effective weights, ``[*, rows, columns]``.
        ideal: Programmed weights, likewise.
        output_gain: ``"tile"`` or ``"column"``.
    """
    over = (-2, -1) if output_gain == "tile" else (-2,)
    above, below = (real * ideal).sum(over, keepdim=True), (real * real).sum(over, keepdim=True)
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 1.0)


def _ohm(name: str, value: float) -> float:
    hint = "in ohm; a part that is ideal takes a small one such as 1e-3, and ir_drop=False leaves out all wires"
    return checks.number(name, value, 0.0, exclusive_low=True, hint=hint)


def _bits(name: str, value: int | None) -> int | None:
    if value is not None and not 2 <= checks.count(name, value) <= MOST_BITS:
        raise ValueError(f"{name} must be in 2..{MOST_BITS} or None for an ideal converter, got {value}")
    return value
