r"""Weights to conductances and back, and how a matrix is cut into tiles.

.. math:: G^\pm_{ij} = G_{min} + \max(\pm w_{ij}, 0) / s, \qquad s = w_{max} / (G_{max} - G_{min}), \qquad
    w = s \, (G^+ - G^-)

with :math:`G_{max} = 1 / R_{on}`, :math:`G_{min} = 1 / R_{off}` and :math:`w_{max} = \max |w|` of the layer, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Pairs", "Tiling", "conductances", "weights"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Differential pairs of one layer.

    Args:
        g: Conductances in siemens, float64 ``[2, *]``: the array of the positive and that of the negative parts.
        scale: s, weight per siemens.
    """

    g: Tensor
    scale: float


def conductances(w: Tensor, r_on: float, r_off: float) -> Pairs:
    """``w`` of any shape as differential pairs ``[2, *w.shape]``; a layer of zeros has all cells at :math:`G_{min}`.

    Raises:
        ValueError: ``w`` is empty, or contains NaN or infinity.
    """
    if w.numel() == 0:
        raise ValueError(f"the weight has no elements, shape {tuple(w.shape)}: there is nothing to program")
    exact = w.detach().double()
    if not exact.isfinite().all():
        bad = int((~exact.isfinite()).sum())
        raise ValueError(
            f"the weight contains NaN or infinity ({bad} of {exact.numel()} elements): no conductance stands for them; "
            "train again or load a sound checkpoint"
        )
    low, high = 1 / r_off, 1 / r_on
    largest = float(exact.abs().amax())
    scale = largest / (high - low)
    share = exact / largest if largest > 0 else exact  # not w / scale: of subnormal weights the scale may underflow
    both = torch.stack([share, -share]).clamp_min_(0.0).mul_(high - low).add_(low)
    return Pairs(both.clamp_(low, high), scale)


def weights(g: Tensor, scale: float) -> Tensor:
    """What pairs ``[2, *]`` stand for, float64: :math:`s (G^+ - G^-)`."""
    return (g[0] - g[1]) * scale


@dataclass(frozen=True)
class Tiling:
    """A matrix ``[*, inputs, outputs]`` on tiles of ``rows`` x ``columns``; its last tiles are filled up.

    The used cells of a tile are those of its first rows (word lines) and first columns: near the drivers, far from the sense
    amplifiers.
    """

    inputs: int
    outputs: int
    rows: int
    columns: int

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along the inputs, tiles along the outputs."""
        return -(-self.inputs // self.rows), -(-self.outputs // self.columns)

    def cut(self, matrix: Tensor, fill: float) -> Tensor:
        """``[*, inputs, outputs] -> [*, R, C, rows, columns]``, cells that hold no weight at ``fill``."""
        r, c = self.grid
        pad = (0, c * self.columns - self.outputs, 0, r * self.rows - self.inputs)
        whole = F.pad(matrix, pad, value=fill)
        tiles: Tensor = whole.unflatten(-1, (c, self.columns)).unflatten(-3, (r, self.rows)).transpose(-3, -2)
        return tiles

    def join(self, tiles: Tensor) -> Tensor:
        """The inverse of :meth:`cut`; what is in the other cells is dropped."""
        whole = tiles.transpose(-3, -2).flatten(-2, -1).flatten(-3, -2)
        matrix: Tensor = whole[..., : self.inputs, : self.outputs]
        return matrix

    def used(self, device: torch.device | None = None) -> Tensor:
        """Of each tile, how many rows and columns hold weights: int64 ``[R, C, 2]``."""
        r, c = self.grid
        rows = (self.inputs - torch.arange(r, device=device) * self.rows).clamp_max(self.rows)
        columns = (self.outputs - torch.arange(c, device=device) * self.columns).clamp_max(self.columns)
        return torch.stack([rows[:, None].expand(r, c), columns[None].expand(r, c)], -1)
