"""Non-linear devices against Newton's method on the nodal equations themselves, and scipy's root finder."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.hardware.crossbar import Wires, effective_conductance, nodal_currents
from snnrobust.hardware.crossbar import nodal as tiles

WIRES = Wires(driver=100.0, row=10.0, column=20.0, sense=50.0)


def equations(G, w, V, b):
    """Kirchhoff's law at all nodes, as a function of their voltages, and its Jacobian."""
    M, N = G.shape
    L = np.zeros((2 * M * N, 2 * M * N))
    right = np.zeros(2 * M * N)
    u, low = np.arange(M * N).reshape(M, N), M * N + np.arange(M * N).reshape(M, N)

    def stamp(a, c, g):
        L[a, a] += g
        L[c, c] += g
        L[a, c] -= g
        L[c, a] -= g

    for i in range(M):
        L[u[i, 0], u[i, 0]] += 1 / w.driver
        right[u[i, 0]] += V[i] / w.driver
        for j in range(N - 1):
            stamp(u[i, j], u[i, j + 1], 1 / w.row)
    for j in range(N):
        L[low[-1, j], low[-1, j]] += 1 / w.sense
        for i in range(M - 1):
            stamp(low[i, j], low[i + 1, j], 1 / w.column)
    up, down, g = u.ravel(), low.ravel(), G.ravel()

    def law(x):
        i = g * np.sinh(b * (x[up] - x[down])) / b
        out = L @ x - right
        out[up] += i
        out[down] -= i
        return out

    def jacobian(x):
        slope = g * np.cosh(b * (x[up] - x[down]))
        J = L.copy()
        J[up, up] += slope
        J[down, down] += slope
        J[up, down] -= slope
        J[down, up] -= slope
        return J

    return law, jacobian, lambda x: x[low[-1]] / w.sense


def reference(G, w, V, b):
    law, jacobian, currents = equations(G, w, V, b)
    x = np.zeros(2 * G.size)
    for _ in range(200):
        step = scipy.sparse.linalg.spsolve(scipy.sparse.csc_matrix(jacobian(x)), -law(x))
        t = 1.0
        while np.abs(law(x + t * step)).max() > np.abs(law(x)).max() and t > 1e-3:
            t /= 2
        x = x + t * step
        if np.abs(step).max() < 1e-14 * max(1, np.abs(x).max()):
            break
    return currents(x)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 5)


def voltages(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 1), (3, 4), (8, 6)])
@pytest.mark.parametrize("b", [0.5, 3.0, 8.0])
def test_agrees_with_newton_on_the_nodes(rows, columns, b):
    G, V = draw(rows, rows, columns), voltages(columns, 3, rows)
    ours = nodal_currents(G, WIRES, V, b)
    for mine, v in zip(ours, V, strict=True):
        theirs = torch.tensor(reference(G.numpy(), WIRES, v.numpy(), b))
        assert (mine - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize("wires", [Wires(10, 1, 1, 10), Wires(0.1, 0.1, 0.1, 0.1), Wires(1e-3, 1e3, 1e3, 1e-3)])
def test_strongly_non_linear_devices_on_good_wires(wires):
    """The start of Newton's method is fifteen decades off; whole steps come down to the solution."""
    G, V, b = draw(11, 6, 5), voltages(12, 1, 6), 20.0
    theirs = torch.tensor(reference(G.numpy(), wires, V[0].numpy(), b))
    assert (nodal_currents(G, wires, V, b)[0] - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.1, 15), st.integers(0, 999))
def test_agrees_with_newton_on_the_nodes_at_random(rows, columns, b, seed):
    G, V = draw(seed, rows, columns), voltages(seed, 1, rows)
    theirs = torch.tensor(reference(G.numpy(), WIRES, V[0].numpy(), b))
    assert (nodal_currents(G, WIRES, V, b)[0] - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_agrees_with_scipys_root_finder():
    G, V, b = draw(1, 3, 3), voltages(2, 1, 3), 2.0
    law, jacobian, currents = equations(G.numpy(), WIRES, V[0].numpy(), b)
    found = scipy.optimize.root(law, np.zeros(18), jac=jacobian, tol=1e-14)
    torch.testing.assert_close(
        nodal_currents(G, WIRES, V, b)[0], torch.tensor(currents(found.x)), rtol=1e-9, atol=1e-15
    )


def test_is_linear_where_b_is_small_or_zero():
    G, V = draw(3, 6, 5), voltages(4, 7, 6)
    linear = V @ effective_conductance(G, WIRES)
    torch.testing.assert_close(nodal_currents(G, WIRES, V, 0.0), linear, rtol=1e-13, atol=0)
    torch.testing.assert_close(nodal_currents(G, WIRES, V, 1e-5), linear, rtol=1e-9, atol=1e-18)


def test_is_odd_and_zero_at_zero():
    G, V = draw(5, 4, 5), voltages(6, 2, 4)
    torch.testing.assert_close(nodal_currents(G, WIRES, -V, 4.0), -nodal_currents(G, WIRES, V, 4.0), rtol=1e-10, atol=0)
    assert (nodal_currents(G, WIRES, 0 * V, 4.0) == 0).all()


def test_strongly_non_linear_devices_short_themselves():
    """One cell: the wires take what the device does not need."""
    G, V, b = torch.full((1, 1), 1e-4, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 45.0
    i = nodal_currents(G, WIRES, V, b).item()
    v = 1 - i * (WIRES.driver + WIRES.sense)
    assert v == pytest.approx(np.arcsinh(b * i / 1e-4) / b, rel=1e-11)


def test_leading_dimensions_broadcast_and_chunks_change_nothing(monkeypatch):
    G, V = draw(7, 3, 4, 5), voltages(8, 2, 4)
    whole = nodal_currents(G, WIRES, V, 3.0)
    assert whole.shape == (3, 2, 5)
    for k in range(3):
        torch.testing.assert_close(whole[k], nodal_currents(G[k], WIRES, V, 3.0), rtol=1e-10, atol=0)
    monkeypatch.setattr(tiles, "CHUNK", 1)
    torch.testing.assert_close(nodal_currents(G, WIRES, V, 3.0), whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("b", [0.0, 1.0, 6.0])
def test_gradcheck(b):
    G, V = (draw(9, 3, 4) * 1e4).requires_grad_(), voltages(10, 2, 3).requires_grad_()
    torch.autograd.gradcheck(lambda g, v: nodal_currents(g * 1e-4, WIRES, v, b) * 1e4, (G, V))


def test_refuses_what_makes_no_sense():
    G, V = draw(0, 2, 3), voltages(0, 1, 2)
    with pytest.raises(ValueError, match="b must be"):
        nodal_currents(G, WIRES, V, -1.0)
    with pytest.raises(ValueError, match=r"V must be a tensor \[..., K, 2\]"):
        nodal_currents(G, WIRES, voltages(0, 1, 3), 1.0)
    with pytest.raises(ValueError, match="V must be in"):
        nodal_currents(G, WIRES, V * float("nan"), 1.0)
    with pytest.raises(ValueError, match="b times the span of V must be at most 50"):
        nodal_currents(G, WIRES, 0 * V + 100.0, 1.0)
