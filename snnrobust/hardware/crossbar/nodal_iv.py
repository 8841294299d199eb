"""A crossbar of devices whose current is no linear function of their voltage: Newton's method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.hardware.crossbar.nodal import Wires, check, chunks, effective_conductance, refuse_large
from snnrobust.hardware.crossbar.nodal_tree import Conductors, Plan, Tree

__all__ = ["nodal_currents"]

STEPS = 200
"""Newton steps before it is given up; most problems take three to eight, b V of 50 on good wires 44."""

PRECISION = 1e-11
"""Largest difference of device currents from their law, relative to the largest current, with which a step is the last."""

LARGEST = 50.0
"""Largest ``b`` times the span of the voltages."""


def nodal_currents(G: Tensor, wires: Wires, V: Tensor, b: float) -> Tensor:
    r"""Currents of a tile with resistive wires and non-linear devices.

    .. math:: i_{jk}(v) = G_{jk} \frac{\sinh(b v)}{b}

    which for small :math:`b v` is :math:`G v`; with ``b = 0`` it is linear, and so is the answer:
    ``V @ effective_conductance(G, wires)``.

    Args:
        G: Conductances ``[..., M, N]`` at zero volts, in siemens, at least 0.
        wires: Resistances of the wires.
        V: Driver voltages ``[..., K, M]``, K inputs; leading dimensions broadcast with those of ``G``.
        b: Non-linearity, 1/V, at least 0.

    Returns:
        Currents into virtual ground ``[..., K, N]``, amperes, dtype of ``V``. Every input is a problem of its own: some
        Newton steps, each an exact solution of the tile whose devices have the conductances dI/dv and a source beside. Whole
        steps converge: from above, a step is at most about 1/b too short.

    Gradient: exact, with respect to ``V`` and ``G``, by the implicit function theorem: one more solution. It cannot be
    differentiated again.

    Raises:
        ValueError: As :func:`effective_conductance`; ``V`` of another size or not finite, ``b`` negative, or so large that
            currents span more than twenty decades.
        RuntimeError: Newton's method has not converged; not seen.
    """
    rows, columns = check(G, wires).shape[-2:]
    b = checks.number("b", b, 0.0)
    if not isinstance(V, Tensor) or V.dim() < 2 or V.shape[-1] != rows:
        shown = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
        raise ValueError(f"V must be a tensor [..., K, {rows}], a voltage for every row of G, got {shown}")
    checks.within("V", V, -float("inf"), float("inf"))
    if b == 0:
        return V @ effective_conductance(G, wires).to(V.dtype)
    low, high = min(V.min().item(), 0.0), max(V.max().item(), 0.0)
    if b * (high - low) > LARGEST:
        raise ValueError(
            f"b times the span of V must be at most {LARGEST:g}, got {b:g} times {high - low:g}: use smaller voltages, or volts"
        )
    refuse_large(rows, columns, 2 * Plan.of(rows, columns).bytes(True))
    batch = torch.broadcast_shapes(G.shape[:-2], V.shape[:-2])
    K = V.shape[-2]
    g = G.unsqueeze(-3).expand(*batch, K, rows, columns).reshape(-1, rows, columns)
    v = V.expand(*batch, K, rows).reshape(-1, rows)
    out: Tensor = _Currents.apply(g, v, wires.conductors, b)  # type: ignore[no-untyped-call]
    return out.reshape(*batch, K, columns)


class _Currents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, V: Tensor, wires: Conductors, b: float) -> Tensor:
        volts = G.new_empty(G.shape, dtype=torch.float64)
        out = V.new_empty(len(V), G.shape[-1])
        for chunk in chunks(G, keep=True):
            volts[chunk], currents = _newton(G[chunk].double(), V[chunk].double(), wires, b)
            out[chunk] = currents.to(V.dtype)
        ctx.save_for_backward(G, V, volts)
        ctx.wires, ctx.b = wires, b
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        G, V, volts = ctx.saved_tensors
        of_G, of_V = torch.empty_like(G), torch.empty_like(V)
        for chunk in chunks(G, keep=True):
            v, sense = volts[chunk] * ctx.b, g[chunk].double().unsqueeze(-1)
            tree = Tree(G[chunk].double() * v.cosh(), ctx.wires, keep=True)
            of_V[chunk] = (tree.transfer() @ sense)[:, :, 0].to(V.dtype)
            adjoint = tree.voltages(sense.new_zeros(len(sense), G.shape[1], 1), sense)[:, 0]
            of_G[chunk] = (-adjoint * v.sinh() / ctx.b).to(G.dtype)
        return of_G, of_V, None, None


def _newton(G: Tensor, V: Tensor, wires: Conductors, b: float) -> tuple[Tensor, Tensor]:
    """Device voltages ``[P, M, N]`` and sense currents ``[P, N]`` of P problems."""

    def solve(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Voltages, device currents and sense currents of the wires and the tangents of the devices ``at`` voltages."""
        slope = G * torch.cosh(b * at)
        source = G * torch.sinh(b * at) / b - slope * at
        v, currents = Tree(slope, wires, sources=True).solve(V, source)
        return v, slope * v + source, currents

    linear = solve(torch.zeros_like(G))[0]
    v, flowing, currents = solve(torch.asinh(b * linear) / b)  # linear devices would have these currents there
    for _ in range(STEPS):
        wanted = G * torch.sinh(b * v) / b
        if bool(((wanted - flowing).abs().amax((1, 2)) <= PRECISION * wanted.abs().amax((1, 2))).all()):
            return v, currents
        v, flowing, currents = solve(v)
    raise RuntimeError(f"Newton's method has not converged in {STEPS} steps: use a smaller b, or smaller voltages")
