"""A crossbar tile as a binary tree of blocks: joined upwards to its drivers and senses, and solved on the way down."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnrobust.hardware.crossbar.nodal_ports import (
    SMALL,
    Join,
    Ports,
    Step,
    innermost,
    join,
    lift,
    split_form,
    split_voltages,
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

    @property
    def order(self) -> tuple[list[int], list[int]]:
        """``[rows, columns]`` as ``[blocks, 2, 2, ..., blocks, 2, 2, ...]``, and these axes with the first join's outermost."""
        (a, b), (i, j) = self.grid, self.doublings
        rows, columns = list(range(i, 0, -1)), list(range(i + 1 + j, i + 1, -1))  # axes, lowest bit first
        order = [(columns if each.across else rows).pop(0) for each in self.doubled()]
        return [a, *[2] * i, b, *[2] * j], [*order, 0, i + 1]

    @lru_cache(256)  # noqa: B019 - a plan is a tuple of four numbers
    def doubled(self) -> list[Join]:
        """The doublings: always of the shorter side, while there are."""
        joins = []
        i = j = 0
        while (i, j) != self.doublings:
            ports = Ports(1 << j, 1 << i, 1 << j, 1 << i)
            across = j < self.doublings[1] and (j <= i or i == self.doublings[0])
            joins.append(Join(across, ports, ports))
            i, j = (i, j + 1) if across else (i + 1, j)
        return joins

    def boxes(self) -> list[Box]:
        """Single blocks of the grid."""
        return [Box(i, i + 1, j, j + 1) for i in range(self.grid[0]) for j in range(self.grid[1])]

    @lru_cache(256)  # noqa: B019
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

    def inside(self, box: Box) -> slice:
        """Which of a block's ports are wires that go on."""
        stop = sum(self.block) - (0 if box.right < self.grid[1] else self.block.right)
        return slice(0 if box.top else self.block.top, stop)

    def bytes(self, keep: bool) -> int:
        """Estimate of what a tile needs at most at a time, float64."""
        rows, columns = self.padded
        most, kept = 16 * rows * columns * 3, 9 * rows * columns
        for each in self.doubled():
            p, cells = sum(each.ports), (each.first.left * each.first.top) * 2
            count = rows * columns // cells
            most = max(most, count * p * p * 6)
            kept += count * p * (each.first.right if each.across else each.first.bottom)
        p = rows + 2 * columns if self.grid != (1, 1) else 0
        most = max(most, 6 * p * p)
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

    Rows are padded on top and columns on the right, with open cells, which changes nothing. Here cells are in the order of
    their joins: the first joins the first half of all cells with the second half, and so on; tiles come last.
    """

    def __init__(self, G: Tensor, wires: Conductors, plan: Plan) -> None:
        self.plan, self.tiles = plan, len(G)
        rows, columns = plan.padded
        self.extra, self.used = rows - G.shape[1], G.shape[2]
        left, right = G.new_full((columns,), 2 * wires.row), G.new_full((columns,), 2 * wires.row)
        left[0], right[-1] = wires.driver, 0.0
        top, bottom = G.new_full((rows, 1), 2 * wires.column), G.new_full((rows, 1), 2 * wires.column)
        top[0], bottom[-1] = 0.0, wires.sense
        self.left, self.right, self.top, self.bottom = (
            self._ordered(x.expand(1, rows, columns)) for x in (left, right, top, bottom)
        )
        self.g = self.ordered(G)
        self.word, self.bit = self.left + self.right, self.top + self.bottom
        self.determinant = self.word * self.bit + self.g * (self.word + self.bit)

    def ordered(self, x: Tensor) -> Tensor:
        """``[B, M, N]`` to ``[cells, B]``."""
        columns = self.plan.padded[1]
        return self._ordered(torch.nn.functional.pad(x, (0, columns - self.used, self.extra, 0)))

    def _ordered(self, x: Tensor) -> Tensor:
        shape, order = self.plan.order
        return x.reshape(len(x), *shape).permute(*(1 + i for i in order), 0).reshape(-1, len(x))

    def tile(self, x: Tensor) -> Tensor:
        """``[cells, B]`` to ``[B, M, N]``."""
        shape, order = self.plan.order
        rows, columns = self.plan.padded
        back = [0] * len(order)
        for place, axis in enumerate(order):
            back[axis] = place
        x = x.reshape(*(shape[i] for i in order), -1).permute(-1, *back).reshape(-1, rows, columns)
        return x[:, self.extra :, : self.used]

    def conductances(self) -> Tensor:
        """Between top, left, bottom and right, ``[cells * B, 4, 4]``, the batch innermost in memory."""
        g, d = self.g, self.determinant
        a, c, gd = (self.word + g) / d, (self.bit + g) / d, g / d
        out = g.new_zeros(4, 4, *g.shape)
        for i, j, value in (
            (0, 1, self.top * self.left * gd),
            (0, 2, self.top * self.bottom * a),
            (0, 3, self.top * self.right * gd),
            (1, 2, self.left * self.bottom * gd),
            (1, 3, self.left * self.right * c),
            (2, 3, self.bottom * self.right * gd),
        ):
            out[i, j] = value
            out[j, i] = value
        return out.flatten(2).permute(2, 0, 1)

    def drops(self) -> Tensor:
        """Device voltage for unit voltages of the ports, ``[cells * B, 4, 1]``: also how its current parts among them."""
        w, b = self.word, self.bit
        out = torch.stack(
            [x / self.determinant for x in (-w * self.top, b * self.left, -w * self.bottom, b * self.right)]
        )
        return out.flatten(1)[:, None].permute(2, 0, 1)


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
        self.cells = Cells(G, wires, self.plan)
        self.steps: list[Step] = []
        total = len(self.plan.doubled()) + len(self.plan.gathered())

        def up(at: int, how: Join, a: Tensor, c: Tensor) -> Tensor:
            last = at == total - 1
            new, step = join(how, a, c, keep=keep or sources, sources=sources, last=last)
            self.steps.append(step)
            return new

        self.top = self._up(self.cells.conductances(), up)

    def transfer(self) -> Tensor:
        """Conductance from every driver to every sense, ``[B, M, N]``."""
        return self._corner(self.top)

    def form(self, x: Tensor) -> Tensor:
        r"""What devices see of pairs of excitations, ``[B, M, N]`` to ``[B, M, N]``.

        .. math:: \sum_{kl} x_{kl} \Delta v^k_{ij} \Delta w^l_{ij}

        where 1 V at driver k makes the device voltages :math:`\Delta v^k`, and 1 V at sense l makes :math:`\Delta w^l`.
        """
        p = sum(self.plan.padded)
        top = x.new_zeros(len(x), p, p)
        self._corner(top).copy_(x / 2)
        drops = self.cells.drops()
        cells = self._down(top + top.mT, lambda at, y, halves: split_form(self.steps[at], y, halves), square=True)
        return self._tile(((cells * drops.mT).sum(2) * drops[:, :, 0]).sum(1))

    def voltages(self, drive: Tensor, sense: Tensor) -> Tensor:
        """Device voltages ``[B, K, M, N]`` for driver voltages ``[B, M, K]`` and sense voltages ``[B, N, K]``."""
        column = self._column(drive, sense)
        cells = self._down(column, lambda at, y, halves: split_voltages(self.steps[at], y, None, halves), square=False)
        seen = (cells * self.cells.drops()).sum(1)
        return torch.stack([self._tile(seen[:, k]) for k in range(seen.shape[1])], 1)

    def solve(self, drive: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Device voltages and sense currents where a current source is parallel to every device.

        Args:
            drive: Driver voltages ``[B, M]``; senses are at zero.
            sources: ``[B, M, N]``, amperes from word line to bit line.

        Returns:
            ``[B, M, N]`` volts and ``[B, N]`` amperes.
        """
        j, drops = self.cells.ordered(sources), self.cells.drops()
        inner: list[Tensor] = []

        def up(at: int, how: Join, a: Tensor, c: Tensor) -> Tensor:
            new, nodes = lift(self.steps[at], a, c)
            inner.append(nodes)
            return new

        def down(at: int, v: Tensor, halves: tuple[Tensor, Tensor]) -> None:
            split_voltages(self.steps[at], v, inner[at], halves)

        top = self._up(drops * j.reshape(-1, 1, 1), up)[:, :, 0]
        column = self._column(drive.unsqueeze(-1), drive.new_zeros(len(drive), self.columns, 1))
        cells = self._down(column, down, square=False)
        own = (self.cells.word + self.cells.bit) / self.cells.determinant * j
        volts = (cells * drops).sum((1, 2)) - own.flatten()
        rows = self.plan.padded[0]
        currents = (self.transfer().mT @ drive.unsqueeze(-1))[:, :, 0] - top[:, rows : rows + self.columns]
        return self._tile(volts), currents

    def _corner(self, top: Tensor) -> Tensor:
        rows = self.plan.padded[0]
        return top[:, self.cells.extra : rows, rows : rows + self.columns]

    def _tile(self, x: Tensor) -> Tensor:
        return self.cells.tile(x.reshape(-1, self.cells.tiles))

    def _column(self, drive: Tensor, sense: Tensor) -> Tensor:
        rows, columns = self.plan.padded
        column = drive.new_zeros(len(drive), rows + columns, drive.shape[-1])
        column[:, self.cells.extra : rows] = drive
        column[:, rows : rows + self.columns] = sense
        return column

    def _up(self, x: Tensor, up: Callable[[int, Join, Tensor, Tensor], Tensor]) -> Tensor:
        """From cells ``[cells * B, 4, *]`` to the ports of the tiles ``[B, rows + columns, *]``."""
        at = 0
        for how in self.plan.doubled():
            half = len(x) // 2
            x = up(at, how, x[:half], x[half:])
            at += 1
            if _large(how):
                x = x.contiguous()
        x = x.reshape(*self.plan.grid, self.cells.tiles, *x.shape[1:])
        square = x.shape[-1] == x.shape[-2]
        parts = {}
        for box in self.plan.boxes():
            ports = self.plan.inside(box)
            part = x[box.top, box.left, :, ports]
            parts[box] = part[:, :, ports] if square else part
        for how, box, first, second in self.plan.gathered():
            parts[box] = up(at, how, parts.pop(first), parts.pop(second))
            at += 1
        (top,) = parts.values()
        return top

    def _down(
        self, top: Tensor, split: Callable[[int, Tensor, tuple[Tensor, Tensor]], None], *, square: bool
    ) -> Tensor:
        """The way back: from the ports of the tiles to cells ``[cells * B, 4, *]``."""
        at, tiles, (a, b) = len(self.steps), len(top), self.plan.grid
        width = (lambda p: p) if square else (lambda p: top.shape[-1])
        parts = {Box(0, a, 0, b): top}
        for how, box, first, second in reversed(self.plan.gathered()):
            at -= 1
            halves = [top.new_empty(tiles, sum(p), width(sum(p))) for p in (how.first, how.second)]
            split(at, parts.pop(box), (halves[0], halves[1]))
            parts[first], parts[second] = halves
        p = sum(self.plan.block)
        x = top.new_zeros(a, b, tiles, p, width(p))
        for box, part in parts.items():
            ports = self.plan.inside(box)
            x[box.top, box.left, :, ports, ports if square else slice(None)] = part
        x = x.flatten(0, 2)
        for how in reversed(self.plan.doubled()):
            at -= 1
            x = x if _large(how) else innermost(x)
            p, half = sum(how.first), len(x)
            y = _twice(x, p, width(p))
            split(at, x, (y[:half], y[half:]))
            x = y
        return x


def _twice(like: Tensor, rows: int, columns: int) -> Tensor:
    if like.stride(0) == 1:
        return like.new_empty(rows, columns, 2 * len(like)).permute(2, 0, 1)
    return like.new_empty(2 * len(like), rows, columns)


def _large(how: Join) -> bool:
    return (how.first.right if how.across else how.first.bottom) > SMALL
