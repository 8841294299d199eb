"""A layer on tiles whose devices are not linear: every input is a problem of its own."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snnrobust.hardware.crossbar.array import ConvertedArray, input_range
from snnrobust.hardware.crossbar.nodal import Wires
from snnrobust.hardware.crossbar.nodal_iv import nodal_currents
from snnrobust.hardware.crossbar.solve import work
from snnrobust.hardware.operation import Operation

__all__ = ["NonlinearArray"]

SECONDS = 3.3e-7
"""Of Newton's method for one input of one tile, over :func:`~snnrobust.hardware.crossbar.solve.work`; measured on one core."""
MOST_SECONDS = 600.0
"""Of one product."""
CHUNK_BYTES = 1 << 25


class NonlinearArray(ConvertedArray):
    r"""Currents of devices :math:`i = G \sinh(b v) / b`, tile by tile, each with its wires.

    .. math:: y = \frac{s \, r_x}{V} \sum_r (I^+_r - I^-_r)(V x_r / r_x)

    with s the weight per siemens, :math:`r_x` the input range and V the read voltage.

    Args:
        weight: What the array is for small voltages.
        programmed, operation, adc_bits, adc_range, dac_range: As of :class:`ConvertedArray`; ``adc_bits`` may be None.
        g: Conductances, float64 ``[2, groups, R, C, rows, columns]``.
        scale: Weight per siemens.
        wires: Of each tile; None for none.
        b: Non-linearity, 1/V.
        volts: V.
    """

    g: Tensor
    scale: Tensor
    made: Tensor

    def __init__(
        self, weight: Tensor, programmed: Tensor, operation: Operation, *, g: Tensor, scale: float, wires: Wires | None, b: float,
        volts: float, adc_bits: int | None, adc_range: float, dac_range: float | Literal["sample"],
    ) -> None:  # fmt: skip
        super().__init__(
            weight, programmed, operation, rows=g.shape[-2], adc_bits=adc_bits, adc_range=adc_range, dac_range=dac_range
        )
        self.wires, self.b, self.volts = wires, b, volts
        self.register_buffer("g", g.clone())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64, device=g.device))
        self.register_buffer("made", weight.detach().double().sum())

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        if not torch.equal(self.made, self.weight.double().sum()):
            raise RuntimeError(
                "a backend after Crossbar has changed the weight, which stands for no cells: with nonlinearity put it before"
            )
        return super().product(x, bias, start)

    def _range(self, x: Tensor) -> Tensor:
        return input_range(x, self.dac_range)  # its gradient is needed: twice the voltage is not twice the current

    def _partial(self, x: Tensor, tiles: Tensor, scale: Tensor) -> Tensor:
        patches = self.operation.patches(x).transpose(0, 1)  # [groups, N, L, K]
        groups, n, positions, inputs = patches.shape
        outputs = self.weight.shape[0] // groups
        scale = scale.reshape(1, -1, 1, 1)
        volts = patches.double() * torch.where(scale > 0, self.volts / torch.where(scale > 0, scale, 1.0), 0.0).double()
        _, _, r, _, rows, _ = self.g.shape
        volts = F.pad(volts.flatten(1, 2), (0, r * rows - inputs)).unflatten(-1, (r, rows)).transpose(1, 2)
        currents = self._currents(volts)  # [groups, R, N L, C columns]
        real = (currents[..., :outputs] * (self.scale / self.volts)).unflatten(2, (n, positions))
        total: Tensor | None = None
        for part in real.unbind(1):
            y = self._read(part.to(x.dtype) * scale, scale)
            total = y if total is None else total + y
        assert total is not None
        return self.operation.assemble(total.transpose(0, 1), x)

    def _currents(self, volts: Tensor) -> Tensor:
        """``[groups, R, P, rows] -> [groups, R, P, C columns]``: of the positive array, less those of the negative one."""
        if self.wires is None:
            g = (self.g[0] - self.g[1]).transpose(-3, -2).flatten(-2)  # [groups, R, rows, C columns]
            return torch.sinh(self.b * volts) / self.b @ g
        _, groups, r, c, rows, columns = self.g.shape
        each = 2 * groups * r * c
        seconds = SECONDS * each * volts.shape[2] * work(rows, columns)
        if seconds > MOST_SECONDS:
            raise ValueError(
                f"nonlinearity: {each * volts.shape[2]} problems of {rows} x {columns} take about {seconds / 60:.0f} minutes for "
                f"one product, and at most {MOST_SECONDS / 60:.0f} are allowed: use a smaller batch, a smaller layer or smaller "
                "tiles, or ir_drop=False"
            )
        size = max(1, CHUNK_BYTES // (8 * each * rows * columns))
        parts = []
        for part in volts.split(size, 2):
            i = nodal_currents(self.g, self.wires, part[:, :, None], self.b)  # [2, groups, R, C, P, columns]
            parts.append((i[0] - i[1]).transpose(-3, -2).flatten(-2))
        return torch.cat(parts, 2)
