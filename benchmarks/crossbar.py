"""The effective conductance of crossbar tiles: ours beside SuperLU and beside a block-tridiagonal solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.targets import Target
from snnrobust.hardware.crossbar import Wires, effective_conductance

__all__ = ["block_tridiagonal", "cases", "superlu"]

SUPERLU, SYMMETRIC, BLOCKS = "scipy SuperLU", "scipy SuperLU, symmetric mode", "torch, block-tridiagonal"
SIZES = {16: None, 32: None, 64: 2.0, 128: 2.5, 256: 2.5}
"""Side of a single tile, and how many times as fast as SuperLU it is to be solved."""
MANY = ((16, 256), (64, 32))
WANTED_OF_MANY = 2.5
WANTED_OF_GRADIENT = 1.5
WIRES = Wires(driver=1000.0, row=5.0, column=10.0, sense=1000.0)
PRECISION = 1e-9

MEMORY_OF_BLOCKS = 16
"""Tiles at a time."""


def cases(tiny: bool = False) -> Iterator[Case]:
    for size, wanted in ({4: 1.0} if tiny else SIZES).items():
        yield _tile(size, wanted)
    for size, count in ((4, 3),) if tiny else MANY:
        yield _tiles(size, count)
        yield _gradient(size, count)


def _draw(count: int, size: int) -> Tensor:
    """Devices of 20 to 200 kiloohm."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, size, size, generator=generator, dtype=torch.float64) * 0.9 + 0.1) / 20e3


def _tile(size: int, wanted: float | None) -> Case:
    G = _draw(1, size)
    calls: dict[str, Run | str | None] = {
        OURS: lambda: effective_conductance(G, WIRES),
        SUPERLU: lambda: superlu(G, WIRES),
        SYMMETRIC: lambda: superlu(G, WIRES, symmetric=True),
        BLOCKS: lambda: block_tridiagonal(G, WIRES),
    }
    _check(calls)
    return Case(
        f"Effective conductance, one tile of {size} x {size}",
        calls,
        reference=SUPERLU,
        targets=(Target(f"a tile of {size} x {size}", OURS, (SUPERLU, SYMMETRIC), wanted),) if wanted else (),
        remarks=(
            "float64, equal to 1e-9 (checked). SuperLU: assembly with arrays, factorisation, a right-hand side a bit line.",
        ),
        figure="tile",
        at=dict.fromkeys(calls, size),
    )


def _tiles(size: int, count: int) -> Case:
    G = _draw(count, size)
    calls: dict[str, Run | str | None] = {
        OURS: lambda: effective_conductance(G, WIRES),
        SYMMETRIC: lambda: superlu(G, WIRES, symmetric=True),
        BLOCKS: lambda: block_tridiagonal(G, WIRES),
    }
    _check(calls)
    return Case(
        f"Effective conductance, {count} tiles of {size} x {size}",
        calls,
        reference=SYMMETRIC,
        unit="ms a tile",
        scale=1e3 / count,
        targets=(Target(f"{count} tiles of {size} x {size}", OURS, SYMMETRIC, WANTED_OF_MANY),),
        remarks=("SuperLU takes one tile at a time.",),
    )


def _gradient(size: int, count: int) -> Case:
    G = _draw(count, size).requires_grad_()
    x = torch.randn(G.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradient(of: Callable[[Tensor, Wires], Tensor]) -> Run:
        return lambda: torch.autograd.grad((of(G, WIRES) * x).sum(), G)[0]

    calls: dict[str, Run | str | None] = {OURS: gradient(effective_conductance), BLOCKS: gradient(block_tridiagonal)}
    _check(calls)
    return Case(
        f"Effective conductance and gradient, {count} tiles of {size} x {size}",
        calls,
        reference=BLOCKS,
        unit="ms a tile",
        scale=1e3 / count,
        targets=(Target(f"{count} tiles of {size} x {size}, gradient", OURS, BLOCKS, WANTED_OF_GRADIENT),),
        remarks=(
            f"{OURS} computes the adjoint, solving again; the block-tridiagonal solver is differentiated by autograd.",
        ),
    )


def _check(calls: dict[str, Run | str | None]) -> None:
    ours = calls[OURS]
    assert callable(ours)
    expected = ours()
    assert isinstance(expected, Tensor)
    for name, call in calls.items():
        if not callable(call):
            continue
        got = call()
        assert isinstance(got, Tensor)
        worst = float((got - expected).abs().max() / expected.abs().max())
        if not worst <= PRECISION:
            raise DisagreementError(f"{name} and {OURS} differ by {worst:.2g} of the largest entry")


def superlu(G: Tensor, wires: Wires, symmetric: bool = False) -> Tensor:
    """Nodal analysis with a sparse matrix: factorised once, solved for 1 A into every sense node (the adjoint)."""
    order = (
        {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        if symmetric
        else {}
    )
    M, N = G.shape[1:]
    word, bit = np.arange(M * N).reshape(M, N), M * N + np.arange(M * N).reshape(M, N)
    a = np.concatenate([word[:, :-1].ravel(), bit[:-1].ravel(), word.ravel()])
    c = np.concatenate([word[:, 1:].ravel(), bit[1:].ravel(), bit.ravel()])
    fixed = np.concatenate([np.full(M * (N - 1), 1 / wires.row), np.full((M - 1) * N, 1 / wires.column)])
    ends = np.concatenate([word[:, 0], bit[-1]])
    to_ends = np.concatenate([np.full(M, 1 / wires.driver), np.full(N, 1 / wires.sense)])
    right = np.zeros((2 * M * N, N))
    right[bit[-1], np.arange(N)] = 1 / wires.sense
    out = torch.empty_like(G)
    for k, tile in enumerate(G.detach().numpy()):
        g = np.concatenate([fixed, tile.ravel()])
        values = np.concatenate([g, g, -g, -g, to_ends])
        rows, columns = np.concatenate([a, c, a, c, ends]), np.concatenate([a, c, c, a, ends])
        matrix = sparse.coo_matrix((values, (rows, columns)), shape=(2 * M * N,) * 2).tocsc()
        out[k] = torch.from_numpy(splu(matrix, **order).solve(right)[word[:, 0]] / wires.driver)
    return out


def block_tridiagonal(G: Tensor, wires: Wires) -> Tensor:
    """Bit lines eliminated column by column, then a block-tridiagonal system with a block ``[M, M]`` a column."""
    return torch.cat([_blocks(tiles, wires) for tiles in G.split(MEMORY_OF_BLOCKS)])


def _blocks(G: Tensor, wires: Wires) -> Tensor:
    M, N = G.shape[1:]
    one = torch.eye(M, dtype=G.dtype)
    column = torch.full((M,), 2 / wires.column, dtype=G.dtype)
    column[0] -= 1 / wires.column
    column[-1] += 1 / wires.sense - 1 / wires.column
    steps = torch.full((M - 1,), 1 / wires.column, dtype=G.dtype)
    line = torch.diag(column) - torch.diag(steps, 1) - torch.diag(steps, -1)
    d = G.mT  # [B, N, M]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(line + torch.diag_embed(d)))
    h = d * inverse[..., -1] / wires.sense
    schur = torch.diag_embed(d) - d.unsqueeze(-1) * inverse * d.unsqueeze(-2)
    inverses: list[Tensor] = []
    for j in reversed(range(N)):
        along = (1 / wires.driver if j == 0 else 1 / wires.row) + (1 / wires.row if j < N - 1 else 0.0)
        p = schur[:, j] + along * one
        if inverses:
            p = p - inverses[-1] / wires.row**2
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(p)))
    out = []
    w = inverses.pop() / wires.driver
    for j in range(N):
        out.append((w.mT @ h[:, j].unsqueeze(-1))[..., 0])
        if inverses:
            w = inverses.pop() @ w / wires.row
    return torch.stack(out, -1)
