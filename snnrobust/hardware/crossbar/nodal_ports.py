"""Joining two blocks of a resistor network that are known at their ports only, and going back down."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Join", "Ports", "Step", "empty", "innermost", "join", "lift", "split_form", "split_voltages"]

SMALL = 4
"""Interfaces up to this many nodes are eliminated node by node, with the batch innermost; larger ones by Cholesky."""

PIVOT = 1e-4
"""Where a pivot of Cholesky is less than this part of its diagonal, digits were lost: node by node instead."""


class Ports(NamedTuple):
    """How many wires leave a block through its top, left, bottom and right. Ports are numbered in this order."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice, slice, slice]:
        a, b, c = self.top, self.top + self.left, self.top + self.left + self.bottom
        return slice(0, a), slice(a, b), slice(b, c), slice(c, c + self.right)


class Pieces(NamedTuple):
    """The ports of a block on an interface, and where its other ports go: ``(in the block, in the join)``."""

    interface: slice
    moved: tuple[tuple[slice, slice], tuple[slice, slice]]


class Join(NamedTuple):
    """Two blocks side by side (``across``), or the first over the second."""

    across: bool
    first: Ports
    second: Ports

    @property
    def ports(self) -> Ports:
        a, c = self.first, self.second
        if self.across:
            return Ports(a.top + c.top, a.left, a.bottom + c.bottom, c.right)
        return Ports(a.top, a.left + c.left, c.bottom, a.right + c.right)

    @property
    def pieces(self) -> tuple[Pieces, Pieces]:
        return _pieces(self)


@lru_cache(1024)
def _pieces(how: Join) -> tuple[Pieces, Pieces]:
    a, c = how.first, how.second
    (at, al, ab, ar), (ct, cl, cb, cr) = a.slices, c.slices
    _, left, bottom, right = how.ports.slices
    if how.across:  # in the join: top A, top C, left A, bottom A, bottom C, right C
        cut = bottom.start + a.bottom
        return (
            Pieces(ar, ((at, slice(0, a.top)), (slice(al.start, ab.stop), slice(left.start, cut)))),
            Pieces(cl, ((ct, slice(a.top, left.start)), (slice(cb.start, cr.stop), slice(cut, right.stop)))),
        )
    cut, middle = left.start + a.left, right.start + a.right  # top A, left A, left C, bottom C, right A, right C
    return (
        Pieces(ab, ((slice(0, al.stop), slice(0, cut)), (ar, slice(right.start, middle)))),
        Pieces(ct, ((slice(cl.start, cb.stop), slice(cut, right.start)), (cr, slice(middle, right.stop)))),
    )


class Step(NamedTuple):
    """A join that was done.

    Args:
        join: Of what.
        response: ``[B, m, p]``, voltages of the interface's nodes for unit voltages of the ports; None if not kept.
        impedance: ``[B, m, m]``, the same for unit currents into them, with the ports at zero; None if not kept.
    """

    join: Join
    response: Tensor | None
    impedance: Tensor | None


def join(
    how: Join, a: Tensor, c: Tensor, *, keep: bool, sources: bool = False, last: bool = False
) -> tuple[Tensor, Step]:
    r"""Star-mesh transformation: the nodes between two blocks go.

    .. math:: c_{xy} \leftarrow c_{xy} + \frac{c_{xk} c_{ky}}{\sum_z c_{kz}}

    where :math:`c_{xy} \ge 0` is the conductance between x and y. Nothing is subtracted, so nothing cancels, whatever the
    ratios of conductances. Diagonals mean nothing.

    Args:
        how: Which ports meet.
        a: First blocks, ``[B, p, p]``.
        c: Second blocks.
        keep: Keep the response, for the way down.
        sources: Keep the impedance too.
        last: Only conductances between left and bottom ports are asked for, and there are no others.
    """
    of_a, of_c = how.pieces
    p, m = sum(how.ports), of_a.interface.stop - of_a.interface.start
    w = empty(a, m, p)
    for block, piece in ((a, of_a), (c, of_c)):
        for source, target in piece.moved:
            w[:, :, target] = block[:, piece.interface, source]
    k = a[:, of_a.interface, of_a.interface] + c[:, of_c.interface, of_c.interface]
    k.diagonal(dim1=-2, dim2=-1).zero_()
    new = response = impedance = None
    if m > SMALL or sources:
        s = torch.diag_embed(k.sum(-1) + w.sum(-1)).sub_(k)
        lower, failed = torch.linalg.cholesky_ex(s)
        impedance = torch.cholesky_inverse(lower) if sources else None
        pivots = lower.diagonal(dim1=-2, dim2=-1).square() / s.diagonal(dim1=-2, dim2=-1)
        if m > SMALL and not failed.any() and bool((pivots > PIVOT).all()):
            z = torch.linalg.solve_triangular(lower, w, upper=False)
            response = torch.linalg.solve_triangular(lower.mT, z, upper=True) if keep else None
            if last:
                new, left = a.new_zeros(len(a), p, p), how.ports.left
                new[:, :left, left:] = z[:, :, :left].mT @ z[:, :, left:]
            else:
                new = z.mT @ z
    if new is None:
        new, response = _node_by_node(w, k, keep)
    for block, piece in ((a, of_a), (c, of_c)):
        for source, target in piece.moved:
            for other, place in piece.moved:
                new[:, target, place] += block[:, source, other]
    return new, Step(how, response, impedance)


def _node_by_node(w: Tensor, k: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """What ports gain by the nodes of the interface, and its response; ``w`` and ``k`` are used up."""
    new = empty(w, w.shape[-1], w.shape[-1])
    shares = []
    m = w.shape[1]
    for i in range(m):
        mine, rest = w[:, i], k[:, i, i + 1 :]
        total = (mine.sum(-1) + rest.sum(-1)).unsqueeze(-1)
        share, part = mine / total, rest / total
        shares.append((share, part))
        if i == 0:
            torch.mul(mine.unsqueeze(-1), share.unsqueeze(-2), out=new)
        else:
            new.addcmul_(mine.unsqueeze(-1), share.unsqueeze(-2))
        if i + 1 < m:
            w[:, i + 1 :].addcmul_(rest.unsqueeze(-1), share.unsqueeze(-2))
            k[:, i + 1 :, i + 1 :].addcmul_(rest.unsqueeze(-1), part.unsqueeze(-2))
    if not keep:
        return new, None
    for i in reversed(range(m)):  # w becomes the response
        share, part = shares[i]
        w[:, i] = share
        for j in range(i + 1, m):
            w[:, i].addcmul_(part[:, j - i - 1 : j - i], w[:, j])
    return new, w


def split_voltages(step: Step, v: Tensor, sources: Tensor | None, halves: tuple[Tensor, Tensor]) -> None:
    """Voltages ``[B, p, K]`` at the ports of a join to those of its two blocks, ``halves``.

    ``sources`` ``[B, m, K]``: currents that flow out of the interface's nodes into sources inside the blocks.
    """
    assert step.response is not None
    inner = _product(step.response, v)
    if sources is not None:
        assert step.impedance is not None
        inner = inner - step.impedance @ sources
    for piece, half in zip(step.join.pieces, halves, strict=True):
        half[:, piece.interface] = inner
        for source, target in piece.moved:
            half[:, source] = v[:, target]


def split_form(step: Step, x: Tensor, halves: tuple[Tensor, Tensor]) -> None:
    r"""A symmetric form :math:`\sum_n v_n w_n^\top` ``[B, p, p]`` of port voltages to those of the two blocks."""
    assert step.response is not None
    mixed = _product(step.response, x)
    inner = _product(mixed, step.response.mT)
    for piece, half in zip(step.join.pieces, halves, strict=True):
        at = piece.interface
        half[:, at, at] = inner
        for source, target in piece.moved:
            half[:, at, source] = mixed[:, :, target]
            half[:, source, at] = mixed[:, :, target].mT
            for other, place in piece.moved:
                half[:, source, other] = x[:, target, place]


def lift(step: Step, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Short-circuit currents ``[B, p, K]`` of two blocks to those of their join, and those of the interface's nodes."""
    assert step.response is not None
    of_a, of_c = step.join.pieces
    inner = a[:, of_a.interface] + c[:, of_c.interface]
    new = _product(step.response.mT, inner)
    for block, piece in ((a, of_a), (c, of_c)):
        for source, target in piece.moved:
            new[:, target] += block[:, source]
    return new, inner


def innermost(x: Tensor) -> Tensor:
    """``[B, p, q]`` with the batch innermost in memory: best for small p and q."""
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def empty(like: Tensor, rows: int, columns: int) -> Tensor:
    """``[B, rows, columns]`` that lies in memory as ``like`` does, with the batch innermost or outermost."""
    if like.stride(0) == 1:
        return like.new_empty(rows, columns, len(like)).permute(2, 0, 1)
    return like.new_empty(len(like), rows, columns)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; term by term where matrices are small and the batch is innermost."""
    if a.stride(0) != 1 or b.stride(0) != 1:
        return a @ b
    out = empty(a, a.shape[1], b.shape[2])
    if a.shape[2] <= a.shape[1]:
        torch.mul(a[:, :, 0, None], b[:, 0, None, :], out=out)
        for k in range(1, a.shape[2]):
            out.addcmul_(a[:, :, k, None], b[:, k, None, :])
    else:
        for i in range(a.shape[1]):
            torch.sum(a[:, i, :, None] * b, 1, out=out[:, i])
    return out
