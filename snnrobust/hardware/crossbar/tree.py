"""A crossbar tile as a binary tree of blocks: joined upwards to its drivers and senses, and solved on the way down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snnrobust.hardware.crossbar.ports import (
    SMALL,
    Join,
    Ports,
    Step,
    innermost,
    join,
    lift,
    split_form,
    split_voltages,
    zeros,
)

__all__ = ["Conductors", "Plan", "Tree"]

WASTE = 1.25
"""A side is padded to a multiple of a power of two: the largest that lengthens it by no more than this factor."""


class Conductors(NamedTuple):
    """Conductances of the wires, in siemens; ``row`` and ``column`` are of a segment between two cells."""

    driver: float
    row: float
    column: float
    sense: float


class Box(NamedTuple):
    """Blocks of a grid: rows ``top`` to ``bottom``, columns ``left`` to ``right``."""

    top: int
    bottom: int
    left: int
    right: int


class Plan(NamedTuple):
    """Cells are doubled to blocks ``doublings`` times a side; a ``grid`` of these blocks is then joined one by one."""

    grid: tuple[int, int]
    doublings: tuple[int, int]

    @classmethod
    def of(cls, rows: int, columns: int) -> Plan:
        (a, i), (b, j) = _side(rows), _side(columns)
        return cls((a, b), (i, j))

    @property
    def padded(self) -> tuple[int, int]:
        return self.grid[0] << self.doublings[0], self.grid[1] << self.doublings[1]

    @property
    def block(self) -> Ports:
        i, j = self.doublings
        return Ports(1 << j, 1 << i, 1 << j, 1 << i)

    def doubled(self) -> Iterator[Join]:
        """The doublings: always of the shorter side, while there are."""
        i = j = 0
        while (i, j) != self.doublings:
            ports = Ports(1 << j, 1 << i, 1 << j, 1 << i)
            across = j < self.doublings[1] and (j <= i or i == self.doublings[0])
            yield Join(across, ports, ports)
            i, j = (i, j + 1) if across else (i + 1, j)

    def boxes(self) -> list[Box]:
        """Single blocks of the grid."""
        return [Box(i, i + 1, j, j + 1) for i in range(self.grid[0]) for j in range(self.grid[1])]

    def gathered(self) -> list[tuple[Join, Box, Box, Box]]:
        """The joins of the grid: how, what comes out, and of which two."""
        return self._gather(Box(0, self.grid[0], 0, self.grid[1]))

    def _gather(self, box: Box) -> list[tuple[Join, Box, Box, Box]]:
        height, width = (box.bottom - box.top) * self.block.left, (box.right - box.left) * self.block.top
        if box.bottom - box.top == box.right - box.left == 1:
            return []
        across = box.right - box.left > 1 and (width >= height or box.bottom - box.top == 1)
        if across:
            cut = (box.left + box.right) // 2
            first, second = box._replace(right=cut), box._replace(left=cut)
        else:
            cut = (box.top + box.bottom) // 2
            first, second = box._replace(bottom=cut), box._replace(top=cut)
        how = Join(across, self._ports(first), self._ports(second))
        return [*self._gather(first), *self._gather(second), (how, box, first, second)]

    def _ports(self, box: Box) -> Ports:
        """The top of the uppermost blocks and the right of the rightmost end nowhere: no ports."""
        height, width = (box.bottom - box.top) * self.block.left, (box.right - box.left) * self.block.top
        return Ports(width if box.top else 0, height, width, height if box.right < self.grid[1] else 0)

    def bytes(self, keep: bool) -> int:
        """Estimate of what a tile needs at most at a time, float64."""
        rows, columns = self.padded
        most, kept = 16 * rows * columns * 3, 9 * rows * columns
        for each in self.doubled():
            p, cells = sum(each.ports), (each.first.left * each.first.top) * 2
            count = rows * columns // cells
            most = max(most, count * p * p * 5)
            kept += count * p * (each.first.right if each.across else each.first.bottom)
        p = rows + 2 * columns if self.grid != (1, 1) else 0
        most = max(most, 5 * p * p)
        kept += 2 * (rows + columns) * min(rows, columns) * 2
        return 8 * (most + (kept if keep else 0))


def _side(n: int) -> tuple[int, int]:
    for k in reversed(range(n.bit_length())):
        count = -(-n >> k)
        if (count > 1 or k == 0) and (count << k) <= WASTE * n:
            return count, k
    raise AssertionError("one cell by itself wastes nothing")


class Cells:
    """Single cells: a device from a word-line node u to a bit-line node b, each with half a segment on either side.

    Rows are padded on top and columns on the right, with open cells, which changes nothing.
    """

    def __init__(self, G: Tensor, wires: Conductors, padded: tuple[int, int]) -> None:
        rows, columns = padded
        self.extra = rows - G.shape[-2]
        self.kept = G.shape[-1]
        g = torch.nn.functional.pad(G, (0, columns - self.kept, self.extra, 0))
        left, right = g.new_full((columns,), 2 * wires.row), g.new_full((columns,), 2 * wires.row)
        left[0], right[-1] = wires.driver, 0.0
        top, bottom = g.new_full((rows, 1), 2 * wires.column), g.new_full((rows, 1), 2 * wires.column)
        top[0], bottom[-1] = 0.0, wires.sense
        self.g, self.left, self.right, self.top, self.bottom = g, left, right, top, bottom
        self.word, self.bit = left + right, top + bottom
        self.determinant = self.word * self.bit + g * (self.word + self.bit)

    def conductances(self) -> Tensor:
        """Between top, left, bottom and right, ``[B, rows, columns, 4, 4]``, the batch innermost in memory."""
        g, d = self.g, self.determinant
        a, c = (self.word + g) / d, (self.bit + g) / d
        gd = g / d
        cells = zeros(_batch_last(g), 4, 4)
        for i, j, value in (
            (0, 1, self.top * self.left * gd),
            (0, 2, self.top * self.bottom * a),
            (0, 3, self.top * self.right * gd),
            (1, 2, self.left * self.bottom * gd),
            (1, 3, self.left * self.right * c),
            (2, 3, self.bottom * self.right * gd),
        ):
            cells[..., i, j] = value
            cells[..., j, i] = value
        return cells

    def drops(self) -> Tensor:
        """Voltage of a device for unit voltages of the four ports, ``[B, rows, columns, 4]``; as much is its current's share."""
        d = self.determinant
        out = zeros(_batch_last(d), 4, 1)[..., 0]
        for i, value in enumerate(
            (
                -self.word * self.top / d,
                self.bit * self.left / d,
                -self.word * self.bottom / d,
                self.bit * self.right / d,
            )
        ):
            out[..., i] = value
        return out

    def crop(self, x: Tensor) -> Tensor:
        return x[..., self.extra :, : self.kept]


def _batch_last(x: Tensor) -> Tensor:
    return innermost(x[..., None, None])


class Tree:
    """The network of ``[B, M, N]`` tiles, reduced to its drivers (left ports) and senses (bottom ports).

    Args:
        G: Conductances of the devices, siemens, float64.
        wires: The wires.
        keep: Keep what the ways down need.
        sources: Keep what :meth:`solve` needs too.
    """

    def __init__(self, G: Tensor, wires: Conductors, *, keep: bool = False, sources: bool = False) -> None:
        self.rows, self.columns = G.shape[-2:]
        self.plan = Plan.of(self.rows, self.columns)
        self.cells = Cells(G, wires, self.plan.padded)
        self.steps: list[Step] = []
        total = sum(1 for _ in self.plan.doubled()) + len(self.plan.gathered())

        def up(at: int, how: Join, a: Tensor, c: Tensor) -> Tensor:
            last = at == total - 1
            new, step = join(how, a, c, keep=keep or sources, sources=sources, last=last)
            self.steps.append(step)
            return new

        self.top = self._up(self.cells.conductances(), up)

    def transfer(self) -> Tensor:
        """Conductance from every driver to every sense, ``[B, M, N]``."""
        rows = self.plan.padded[0]
        return self.top[:, self.cells.extra : rows, rows : rows + self.columns]

    def form(self, x: Tensor) -> Tensor:
        r"""What devices see of pairs of excitations, ``[B, M, N]`` to ``[B, M, N]``.

        .. math:: \sum_{kl} x_{kl} \Delta v^k_{ij} \Delta w^l_{ij}

        where 1 V at driver k makes the device voltages :math:`\Delta v^k`, and 1 V at sense l makes :math:`\Delta w^l`.
        """
        rows, columns = self.plan.padded
        top = x.new_zeros(len(x), rows + columns, rows + columns)
        top[:, self.cells.extra : rows, rows : rows + self.columns] = x / 2
        top = top + top.mT
        drops = self.cells.drops()
        cells = self._down(top, lambda at, step, y: split_form(step, y), square=True)
        return self.cells.crop(((cells * drops.unsqueeze(-2)).sum(-1) * drops).sum(-1))

    def voltages(self, drive: Tensor, sense: Tensor) -> Tensor:
        """Device voltages ``[B, M, N, K]`` for driver voltages ``[B, M, K]`` and sense voltages ``[B, N, K]``."""
        cells = self._down(self._column(drive, sense), lambda at, step, y: split_voltages(step, y), square=False)
        return self.cells.crop((cells * self.cells.drops().unsqueeze(-1)).sum(-2).movedim(-1, 1)).movedim(1, -1)

    def solve(self, drive: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Device voltages and sense currents where a current source is parallel to every device.

        Args:
            drive: Driver voltages ``[B, M]``; senses are at zero.
            sources: ``[B, M, N]``, amperes from word line to bit line.

        Returns:
            ``[B, M, N]`` volts and ``[B, N]`` amperes.
        """
        extra, (rows, columns) = self.cells.extra, self.plan.padded
        j = torch.nn.functional.pad(sources, (0, columns - self.columns, extra, 0))
        drops = self.cells.drops()
        inner: list[Tensor] = []

        def up(at: int, how: Join, a: Tensor, c: Tensor) -> Tensor:
            new, nodes = lift(self.steps[at], a, c)
            inner.append(nodes)
            return new

        top = self._up((drops * j.unsqueeze(-1)).unsqueeze(-1), up)[..., 0]
        v = self._column(drive.unsqueeze(-1), drive.new_zeros(len(drive), self.columns, 1))
        cells = self._down(v, lambda at, step, y: split_voltages(step, y, inner[at]), square=False)[..., 0]
        volts = (cells * drops).sum(-1) - (self.cells.word + self.cells.bit) / self.cells.determinant * j
        currents = (self.transfer().mT @ drive.unsqueeze(-1))[..., 0] - top[:, rows : rows + self.columns]
        return self.cells.crop(volts), currents

    def _column(self, drive: Tensor, sense: Tensor) -> Tensor:
        rows, columns = self.plan.padded
        column = drive.new_zeros(len(drive), rows + columns, drive.shape[-1])
        column[:, self.cells.extra : rows] = drive
        column[:, rows : rows + self.columns] = sense
        return column

    def _up(self, x: Tensor, up: Callable[[int, Join, Tensor, Tensor], Tensor]) -> Tensor:
        """From cells ``[B, rows, columns, 4, *]`` to the ports of the tile ``[B, rows + columns, *]``."""
        at = 0
        for how in self.plan.doubled():
            a, c = (x[:, :, 0::2], x[:, :, 1::2]) if how.across else (x[:, 0::2], x[:, 1::2])
            x = up(at, how, a, c)
            at += 1
            if _large(how):
                x = x.contiguous()
        parts = {}
        for box in self.plan.boxes():
            part = x[:, box.top, box.left]
            lead, keep = self.plan.block.top if box.top == 0 else 0, sum(self.plan.block)
            keep -= self.plan.block.right if box.right == self.plan.grid[1] else 0
            part = part[:, lead:keep]
            parts[box] = part[..., lead:keep] if x.shape[-1] == x.shape[-2] else part
        for how, box, first, second in self.plan.gathered():
            parts[box] = up(at, how, parts.pop(first), parts.pop(second))
            at += 1
        (top,) = parts.values()
        return top

    def _down(
        self, top: Tensor, split: Callable[[int, Step, Tensor], tuple[Tensor, Tensor]], *, square: bool
    ) -> Tensor:
        """The way back: from the ports of the tile to cells ``[B, rows, columns, 4, *]``."""
        at = len(self.steps)
        (a, b), p = self.plan.grid, sum(self.plan.block)
        parts = {Box(0, a, 0, b): top}
        for _, box, first, second in reversed(self.plan.gathered()):
            at -= 1
            parts[first], parts[second] = split(at, self.steps[at], parts.pop(box))
        x = top.new_zeros(len(top), a, b, p, p if square else top.shape[-1])
        for box, part in parts.items():
            lead = self.plan.block.top if box.top == 0 else 0
            block = x[:, box.top, box.left, lead : lead + part.shape[1]]
            block[..., lead : lead + part.shape[1]] = part if square else 0
            if not square:
                block.copy_(part)
        for how in reversed(list(self.plan.doubled())):
            at -= 1
            x = x if _large(how) else innermost(x)
            a_, c_ = split(at, self.steps[at], x)
            axis = 2 if how.across else 1
            x = torch.stack((a_, c_), axis + 1).flatten(axis, axis + 1)
        return x


def _large(how: Join) -> bool:
    return (how.first.right if how.across else how.first.bottom) > SMALL
