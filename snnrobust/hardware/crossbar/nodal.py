"""Exact IR drop: a crossbar with resistive wires is, for linear devices, another matrix of conductances."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.hardware.crossbar.tree import Conductors, Plan, Tree

__all__ = ["Wires", "effective_conductance"]

CHUNK = 64 << 20
"""Tiles are solved in chunks of about this many bytes of working memory."""


@dataclass(frozen=True)
class Wires:
    r"""Resistances of the wires of a tile, in ohms, all above zero.

    The defaults are the setting of many papers on crossbars as they were remembered, not verified: give your own.

    Args:
        driver: Between the source of a word line and its node in the first column.
        row: Of a word line, between neighbouring cells.
        column: Of a bit line, between neighbouring cells.
        sense: Between the node of a bit line in the last row and virtual ground.
    """

    driver: float = 1000.0
    row: float = 5.0
    column: float = 10.0
    sense: float = 1000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = checks.number(
                field.name, getattr(self, field.name), 0.0, exclusive_low=True,
                hint="for wires without resistance leave them out, or give one much below that of the devices",
            )  # fmt: skip
            object.__setattr__(self, field.name, value)

    @property
    def conductors(self) -> Conductors:
        return Conductors(1 / self.driver, 1 / self.row, 1 / self.column, 1 / self.sense)


def effective_conductance(G: Tensor, wires: Wires, *, progress: Callable[[int, int], None] | None = None) -> Tensor:
    r"""What a tile with resistive wires computes: :math:`I = \tilde G^\top V`, exactly, for every V.

    Word line i is driven with :math:`V_i` through ``driver`` at column 0; bit line j ends at virtual ground through
    ``sense`` after the last row. Device ij joins their nodes at row i, column j.

    Args:
        G: Conductances ``[..., M, N]`` in siemens, at least 0; 0 is an open cell.
        wires: Resistances of the wires.
        progress: Called as ``progress(done, tiles)``.

    Returns:
        :math:`\tilde G`, shape and dtype of ``G``; solved in float64 and then rounded.

    Gradient: exact, by the adjoint: :math:`\partial \tilde G_{kl} / \partial G_{ij} = \Delta v^k_{ij} \Delta w^l_{ij}`, the
    voltages at device ij for 1 V at driver k and, in its stead, 1 V at sense l (up to the sign). It cannot be
    differentiated again.

    Raises:
        ValueError: ``G`` negative, not finite, or without rows and columns.
        MemoryError: A tile that needs more than the memory there is; nothing was computed.
    """
    if not isinstance(G, Tensor) or G.dim() < 2:
        raise ValueError(
            f"G must be a tensor [..., M, N], got {tuple(G.shape) if isinstance(G, Tensor) else type(G).__name__}"
        )
    checks.within("G", G, 0.0, float("inf"))
    if not isinstance(wires, Wires):
        raise TypeError(f"wires must be Wires(driver, row, column, sense), got {wires!r}")
    rows, columns = G.shape[-2:]
    _refuse_large(rows, columns, G.requires_grad)
    flat = G.reshape(-1, rows, columns)
    out: Tensor = _Effective.apply(flat, wires.conductors, progress)
    return out.reshape(G.shape)


class _Effective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, wires: Conductors, progress: Callable[[int, int], None] | None) -> Tensor:
        ctx.save_for_backward(G)
        ctx.wires = wires
        out = torch.empty_like(G)
        for chunk in _chunks(G, keep=False):
            out[chunk] = Tree(G[chunk].double(), wires).transfer().to(G.dtype)
            if progress is not None:
                progress(chunk.stop, len(G))
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (G,) = ctx.saved_tensors
        out = torch.empty_like(G)
        for chunk in _chunks(G, keep=True):
            tree = Tree(G[chunk].double(), ctx.wires, keep=True)
            out[chunk] = -tree.form(g[chunk].double()).to(G.dtype)
        return out, None, None


def _chunks(G: Tensor, keep: bool) -> Iterator[slice]:
    size = max(1, CHUNK // Plan.of(*G.shape[-2:]).bytes(keep))
    for start in range(0, len(G), size):
        yield slice(start, min(start + size, len(G)))


def _refuse_large(rows: int, columns: int, keep: bool) -> None:
    needed = Plan.of(rows, columns).bytes(keep)
    there = _memory()
    if needed > there:
        raise MemoryError(
            f"a tile of {rows} x {columns} needs about {needed / 2**30:.1f} GiB and there are {there / 2**30:.1f}: "
            "use smaller tiles"
        )


def _memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
