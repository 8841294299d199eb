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
from snnrobust.hardware.crossbar.nodal_tree import Conductors, Plan, Tree

__all__ = ["Wires", "device_voltages", "effective_conductance", "effective_conductance_update"]

CHUNK = 24 << 20
"""Tiles are solved in chunks of about this many bytes of working memory."""


@dataclass(frozen=True)
class Wires:
    r"""Resistances of the wires of a tile, in ohms, all above zero.

    The defaults, those of :class:`~snnrobust.hardware.Crossbar`, are round numbers and no published device: give your own.

    Args:
        driver: Between the source of a word line and its node in the first column.
        row: Of a word line, between neighbouring cells.
        column: Of a bit line, between neighbouring cells.
        sense: Between the node of a bit line in the last row and virtual ground.
    """

    driver: float = 10.0
    row: float = 1.0
    column: float = 1.0
    sense: float = 10.0

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

    Gradient: exact, by the adjoint: :math:`\partial \tilde G_{kl} / \partial G_{ij} = -\Delta v^k_{ij} \Delta w^l_{ij}`, where
    :math:`\Delta v^k_{ij}` is the voltage at device ij (word line minus bit line) for 1 V at driver k and
    :math:`\Delta w^l_{ij}` that for 1 V at the end of sense l. It cannot be differentiated again.

    Raises:
        ValueError: ``G`` negative, not finite, or without rows and columns.
        MemoryError: A tile that needs more than the memory there is; nothing was computed.
    """
    rows, columns = check(G, wires).shape[-2:]
    refuse_large(rows, columns, Plan.of(rows, columns).bytes(G.requires_grad))
    flat = G.reshape(-1, rows, columns)
    out: Tensor = _Effective.apply(flat, wires.conductors, progress)  # type: ignore[no-untyped-call]
    return out.reshape(G.shape)


def device_voltages(G: Tensor, wires: Wires) -> tuple[Tensor, Tensor]:
    """Voltages at the devices for unit excitations, which say what a change of a device does.

    Args:
        G: Conductances ``[..., M, N]`` in siemens.
        wires: Resistances of the wires.

    Returns:
        ``[..., M, M, N]``, entry k for 1 V at driver k alone, and ``[..., N, M, N]``, entry l for 1 V at the end of sense
        l in place of virtual ground; word line minus bit line, dtype of ``G``. Together ``(M + N) M N`` numbers a tile.
    """
    rows, columns = check(G, wires).shape[-2:]
    one = Plan.of(rows, columns).bytes(True) + 8 * 10 * (rows + columns) * rows * columns
    flat = G.detach().reshape(-1, rows, columns)
    refuse_large(rows, columns, one + 8 * flat.numel() * (rows + columns))
    v = G.new_empty(len(flat), rows, rows, columns)
    w = G.new_empty(len(flat), columns, rows, columns)
    unit = torch.eye(rows + columns, dtype=torch.float64, device=G.device)
    for i, tile in enumerate(flat):
        tree = Tree(tile[None].double(), wires.conductors, keep=True)
        both = tree.voltages(unit[None, :rows], unit[None, rows:])[0]
        v[i], w[i] = both[:rows], both[rows:]
    batch = G.shape[:-2]
    return v.reshape(*batch, *v.shape[1:]), w.reshape(*batch, *w.shape[1:])


def effective_conductance_update(voltages: tuple[Tensor, Tensor], dG: Tensor) -> Tensor:
    r"""First-order change of the effective conductances for a change of the devices, for many changes of one tile.

    .. math:: d\tilde G_{kl} = -\sum_{ij} \Delta v^k_{ij} \Delta w^l_{ij} \, dG_{ij}

    It takes ``M N`` times ``M N`` multiplications, which is no less than solving again takes: compare before you use it.

    Args:
        voltages: Of the tile, from :func:`device_voltages`.
        dG: Changes ``[..., M, N]`` in siemens; leading dimensions are those of the tiles, or more in front of them.

    Returns:
        ``[..., M, N]``, to be added to the effective conductances.
    """
    v, w = voltages
    if dG.shape[-2:] != v.shape[-2:] or v.shape[-3] != v.shape[-2] or w.shape[-3] != w.shape[-1]:
        raise ValueError(
            f"dG must be [..., M, N] as the tile of the voltages is, got {tuple(dG.shape)} beside "
            f"{tuple(v.shape)} and {tuple(w.shape)}"
        )
    return -((v * dG.unsqueeze(-3)).flatten(-2) @ w.flatten(-2).mT)


def check(G: Tensor, wires: Wires) -> Tensor:
    """``G``, if it is ``[..., M, N]`` siemens."""
    if not isinstance(G, Tensor) or G.dim() < 2:
        shown = tuple(G.shape) if isinstance(G, Tensor) else type(G).__name__
        raise ValueError(f"G must be a tensor [..., M, N] of conductances in siemens, got {shown}")
    checks.within("G", G, 0.0, float("inf"))
    if not isinstance(wires, Wires):
        raise TypeError(f"wires must be Wires(driver=..., row=..., column=..., sense=...) in ohms, got {wires!r}")
    return G


def chunks(G: Tensor, keep: bool) -> Iterator[slice]:
    """Of tiles ``[B, M, N]``, some at a time."""
    size = max(1, CHUNK // Plan.of(G.shape[1], G.shape[2]).bytes(keep))
    for start in range(0, len(G), size):
        yield slice(start, min(start + size, len(G)))


def refuse_large(rows: int, columns: int, needed: int) -> None:
    """Raise before an attempt that memory does not suffice for."""
    there = _memory()
    if needed > there:
        raise MemoryError(
            f"a tile of {rows} x {columns} needs about {needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB are free: "
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


class _Effective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, wires: Conductors, progress: Callable[[int, int], None] | None) -> Tensor:
        ctx.save_for_backward(G)
        ctx.wires = wires
        out = torch.empty_like(G)
        for chunk in chunks(G, keep=False):
            out[chunk] = Tree(G[chunk].double(), wires).transfer().to(G.dtype)
            if progress is not None:
                progress(chunk.stop, len(G))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (G,) = ctx.saved_tensors
        out = torch.empty_like(G)
        for chunk in chunks(G, keep=True):
            tree = Tree(G[chunk].double(), ctx.wires, keep=True)
            out[chunk] = -tree.form(g[chunk].double()).to(G.dtype)
        return out, None, None
