"""Effective conductances against nodal analysis written anew: sparse, and with rational numbers."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.hardware.crossbar import Wires, device_voltages, effective_conductance, effective_conductance_update
from snnrobust.hardware.crossbar import nodal as module
from snnrobust.hardware.crossbar import nodal_ports as ports
from snnrobust.hardware.crossbar.nodal_tree import Plan


def resistors(G, wires):
    """(node, node, conductance) of a tile; word-line node ij is ("u", i, j), ground None, drivers ("V", i)."""
    M, N = len(G), len(G[0])
    for i in range(M):
        yield ("V", i), ("u", i, 0), 1 / wires[0]
        for j in range(N):
            yield ("u", i, j), ("b", i, j), G[i][j]
            if j + 1 < N:
                yield ("u", i, j), ("u", i, j + 1), 1 / wires[1]
            if i + 1 < M:
                yield ("b", i, j), ("b", i + 1, j), 1 / wires[2]
    for j in range(N):
        yield ("b", M - 1, j), None, 1 / wires[3]


def sparse(G, wires):
    """Currents [M, N] at the senses for 1 V at one driver at a time, by stamping and SuperLU."""
    w = (wires.driver, wires.row, wires.column, wires.sense)
    number = {}
    rows, columns, values, drives = [], [], [], []
    for a, c, g in resistors(G.tolist(), w):
        for x, y in ((a, c), (c, a)):
            if x is None or x[0] == "V":
                continue
            i = number.setdefault(x, len(number))
            rows.append(i), columns.append(i), values.append(g)
            if y is not None and y[0] == "V":
                drives.append((i, y[1], g))
            elif y is not None:
                rows.append(i), columns.append(number.setdefault(y, len(number))), values.append(-g)
    M, N = G.shape
    matrix = scipy.sparse.coo_matrix((values, (rows, columns)), shape=(2 * M * N,) * 2).tocsc()
    right = np.zeros((2 * M * N, M))
    for i, k, g in drives:
        right[i, k] = g
    v = scipy.sparse.linalg.splu(matrix).solve(right)
    return torch.tensor(np.array([v[number["b", M - 1, j]] / wires.sense for j in range(N)]).T)


def rational(G, wires):
    """The same with fractions: exact."""
    M, N = len(G), len(G[0])
    nodes = [(s, i, j) for s in "ub" for i in range(M) for j in range(N)]
    number = {node: k for k, node in enumerate(nodes)}
    n = len(nodes)
    A = [[Fraction(0)] * (n + M) for _ in range(n)]
    for a, c, g in resistors(G, wires):
        for x, y in ((a, c), (c, a)):
            if x not in number:
                continue
            A[number[x]][number[x]] += g
            if y in number:
                A[number[x]][number[y]] -= g
            elif y is not None:
                A[number[x]][n + y[1]] += g
    for k in range(n):  # Gauss and Jordan; the matrix is positive definite
        A[k] = [x / A[k][k] for x in A[k]]
        for i in range(n):
            if i != k and A[i][k]:
                A[i] = [x - A[i][k] * y for x, y in zip(A[i], A[k], strict=True)]
    return [[A[number["b", M - 1, j]][n + k] / wires[3] for j in range(N)] for k in range(M)]


def draw(seed, *shape, low=-7.0, high=-3.0, open_cells=0.0, shorts=0.0):
    generator = torch.Generator().manual_seed(seed)
    G = 10 ** (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low)
    which = torch.rand(*shape, generator=generator)
    G[which < open_cells] = 0.0
    G[which > 1 - shorts] = 1e3
    return G


def agree(ours, other, tolerance):
    assert (ours - other).abs().max() <= tolerance * other.abs().max()


SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (2, 2),
    (1, 9),
    (11, 1),
    (3, 5),
    (4, 4),
    (7, 5),
    (8, 8),
    (9, 17),
    (16, 16),
    (13, 32),
    (33, 6),
]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_agrees_with_sparse_nodal_analysis(rows, columns):
    G = draw(rows * 100 + columns, rows, columns)
    wires = Wires(driver=1000.0, row=5.0, column=10.0, sense=300.0)
    agree(effective_conductance(G, wires), sparse(G, wires), 1e-11)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.tuples(*[st.floats(-1, 4)] * 4),
    st.floats(0, 0.6), st.floats(0, 0.3), st.integers(0, 9999),
)  # fmt: skip
def test_agrees_with_sparse_nodal_analysis_at_random(rows, columns, decades, open_cells, shorts, seed):
    G = draw(seed, rows, columns, open_cells=open_cells, shorts=shorts)
    wires = Wires(*(10**d for d in decades))
    reference = sparse(G, wires)
    assert (effective_conductance(G, wires) - reference).abs().max() <= 1e-9 * max(reference.abs().max(), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (65, 100), (128, 40)])
def test_agrees_with_sparse_nodal_analysis_on_large_tiles(rows, columns):
    G = draw(1, rows, columns, low=-5.3, high=-4.3, open_cells=0.02, shorts=0.02)
    wires = Wires(driver=1000.0, row=5.0, column=10.0, sense=1000.0)
    agree(effective_conductance(G, wires), sparse(G, wires), 1e-10)


GOLDEN = [  # 3 x 3 devices of 1 to 9 kiloohm, driver 2, row 3, column 5, sense 7 ohm: siemens, solved with fractions (below)
    [9.758803845057108e-04, 4.911799682987331e-04, 3.282109835697632e-04],
    [2.457832925158046e-04, 1.977118008500875e-04, 1.650844255187949e-04],
    [1.413866821077120e-04, 1.241066861286378e-04, 1.104429978193590e-04],
]


def test_golden_values():
    ohms = [[Fraction(1000 * (3 * i + j + 1)) for j in range(3)] for i in range(3)]
    exact = rational([[1 / r for r in row] for row in ohms], [Fraction(w) for w in (2, 3, 5, 7)])
    G = torch.tensor([[1 / float(r) for r in row] for row in ohms], dtype=torch.float64)
    ours = effective_conductance(G, Wires(2, 3, 5, 7))
    for mine, theirs in zip(ours.flatten().tolist(), [x for row in exact for x in row], strict=True):
        assert abs(Fraction(mine) / theirs - 1) < Fraction(1, 10**14)
    torch.testing.assert_close(ours, torch.tensor(GOLDEN, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "wires", [(1, 1, 1, 1), (Fraction(1, 10**6), 1, Fraction(1, 10**6), 1000), (10**5, 1, 10**4, 10**-3)]
)
def test_every_entry_is_precise_whatever_the_ratios(wires):
    """Star-mesh transformations subtract nothing: conductances over 21 decades do not cost digits."""
    wires = [Fraction(w) for w in wires]
    power = [[-12, 9, -3, 0, 8], [9, -9, 9, -5, 9], [0, 0, 9, 9, -12], [-4, -6, 3, 9, 9]]
    G = [[Fraction(10) ** p for p in row] for row in power]
    exact = rational(G, wires)
    siemens = torch.tensor([[float(g) for g in row] for row in G], dtype=torch.float64)
    ours = effective_conductance(siemens, Wires(*map(float, wires)))
    for mine, theirs in zip(ours.flatten().tolist(), [x for row in exact for x in row], strict=True):
        assert abs(Fraction(mine) / theirs - 1) < Fraction(1, 10**13)


def test_cholesky_is_left_where_it_would_lose_digits(monkeypatch):
    """Lines that cells short together, far from both ends: 2e-7 of an entry would be lost (and is, with a PIVOT of 0)."""
    G, wires = draw(0, 3, 24, 24, low=-12, high=9), Wires(1e6, 1e-4, 1e-4, 1e6)
    ours = effective_conductance(G, wires)
    monkeypatch.setattr(ports, "PIVOT", 2.0)  # always node by node
    torch.testing.assert_close(ours, effective_conductance(G, wires), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [*range(1, 40), 63, 64, 65, 127, 129, 1000])
def test_sides_grow_by_a_quarter_at_most(n):
    rows, columns = Plan.of(n, 3).padded
    assert n <= rows <= 1.25 * n
    assert columns == 3


def test_one_cell_is_a_series():
    G, wires = draw(3, 50, 1, 1), Wires(driver=12.0, row=1.0, column=1.0, sense=5.0)
    torch.testing.assert_close(effective_conductance(G, wires), 1 / (12.0 + 1 / G + 5.0), rtol=1e-14, atol=0)


def test_one_word_line_is_a_ladder():
    g, w = draw(4, 23), Wires(driver=200.0, row=30.0, column=1.0, sense=70.0)
    shunt = 1 / (1 / g + w.sense)
    seen = [shunt[-1]]
    for y in reversed(shunt[:-1]):
        seen.insert(0, y + 1 / (w.row + 1 / seen[0]))
    v = [1 / (1 + w.driver * seen[0])]
    for y in seen[1:]:
        v.append(v[-1] / (1 + w.row * y))
    torch.testing.assert_close(effective_conductance(g[None], w)[0], torch.stack(v) * shunt, rtol=1e-13, atol=0)


def test_one_bit_line_is_the_ladder_from_the_other_end():
    g, w = draw(5, 19), Wires(driver=200.0, row=1.0, column=30.0, sense=70.0)
    column = effective_conductance(g[:, None], w)[:, 0]
    row = effective_conductance(g.flip(0)[None], Wires(driver=70.0, row=30.0, column=1.0, sense=200.0))[0]
    torch.testing.assert_close(column, row.flip(0), rtol=1e-13, atol=0)


def test_reciprocity():
    """Senses driven and drivers at ground: the network is its own mirror image about the second diagonal."""
    G, w = draw(6, 3, 12, 20), Wires(driver=100.0, row=2.0, column=6.0, sense=30.0)
    mirrored = effective_conductance(G.flip(-1, -2).mT.contiguous(), Wires(w.sense, w.column, w.row, w.driver))
    torch.testing.assert_close(effective_conductance(G, w), mirrored.mT.flip(-1, -2), rtol=1e-12, atol=0)


def test_currents_are_conserved():
    """What drivers deliver arrives at the senses: with all drivers at 1 V, the current in is (1 V - u) / driver."""
    G, w = draw(7, 9, 14), Wires(driver=100.0, row=2.0, column=6.0, sense=30.0)
    drive, _ = device_voltages(G, w)
    through = (drive.sum(0) * G).sum()  # all current crosses the devices once
    torch.testing.assert_close(effective_conductance(G, w).sum(), through, rtol=1e-12, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_wires_only_lose_current_and_more_resistance_loses_more(rows, columns, seed):
    G = draw(seed, rows, columns, low=-5, high=-3)
    weak = effective_conductance(G, Wires(10, 1, 1, 10)).sum()
    weaker = effective_conductance(G, Wires(10, 2, 1, 10)).sum()
    assert weaker <= weak * (1 + 1e-12)
    assert weak <= G.sum()
    assert (effective_conductance(G, Wires(10, 1, 1, 10)) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999), st.data())
def test_a_better_device_raises_the_total_current(rows, columns, seed, data):
    G, wires = draw(seed, rows, columns), Wires(50, 3, 3, 50)
    more = G.clone()
    more[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))] *= 10
    assert effective_conductance(more, wires).sum() >= effective_conductance(G, wires).sum() * (1 - 1e-12)


@pytest.mark.parametrize("ohms", [1e-3, 1e-6, 1e-9])
def test_without_resistance_it_is_the_conductances(ohms):
    G = draw(8, 20, 24, low=-5, high=-4)
    error = (effective_conductance(G, Wires(ohms, ohms, ohms, ohms)) / G - 1).abs().max()
    assert error < ohms * 1e-4 * 20 * 24 * 2 + 1e-12


def test_open_cells_carry_nothing_where_there_is_no_other_way():
    G = torch.zeros(5, 6, dtype=torch.float64)
    assert (effective_conductance(G, Wires()) == 0).all()
    G[2, 3] = 1e-4
    only = effective_conductance(G, Wires(100.0, 2.0, 3.0, 50.0))
    expected = 1 / (100 + 3 * 2 + 1e4 + 2 * 3 + 50)
    torch.testing.assert_close(only[2, 3].item(), expected, rtol=1e-13, atol=0)
    only[2, 3] = 0
    assert (only == 0).all()


def test_a_batch_is_its_tiles_and_any_leading_dimensions_do():
    G, wires = draw(9, 2, 3, 10, 7, open_cells=0.1), Wires()
    together = effective_conductance(G, wires)
    assert together.shape == G.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], effective_conductance(G[i, j], wires), rtol=1e-13, atol=0)


def test_chunks_change_nothing(monkeypatch):
    G, wires = draw(10, 9, 12, 12), Wires()
    whole = effective_conductance(G, wires)
    seen = []
    monkeypatch.setattr(module, "CHUNK", 1)
    chunked = effective_conductance(G, wires, progress=lambda done, of: seen.append((done, of)))
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=0)
    assert seen == [(i + 1, 9) for i in range(9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_solved_in_float64_and_rounded(dtype):
    G = draw(11, 16, 16, low=-5, high=-4).to(dtype)
    expected = effective_conductance(G.double(), Wires()).to(dtype)
    assert torch.equal(effective_conductance(G, Wires()), expected)


def test_voltages_of_devices_give_the_currents():
    G, w = draw(12, 2, 6, 8), Wires(100.0, 2.0, 6.0, 30.0)
    drive, sense = device_voltages(G, w)
    assert drive.shape == (2, 6, 6, 8)
    assert sense.shape == (2, 8, 6, 8)
    bit_line = (drive * G.unsqueeze(1)).sum(-2)  # what enters bit line l for 1 V at driver k
    torch.testing.assert_close(bit_line, effective_conductance(G, w), rtol=1e-11, atol=1e-20)
    word_line = -(sense * G.unsqueeze(1)).sum(-1)  # what leaves word line k towards its driver for 1 V at sense l
    torch.testing.assert_close(word_line.mT, effective_conductance(G, w), rtol=1e-11, atol=1e-20)


def test_first_order_update_is_first_order():
    G, w = draw(13, 2, 6, 8, low=-5, high=-4), Wires(1000.0, 5.0, 10.0, 1000.0)
    direction = G * torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    before = effective_conductance(G, w)
    errors = []
    for size in (1e-2, 1e-3):
        change = effective_conductance(G + size * direction, w) - before
        update = effective_conductance_update(device_voltages(G, w), size * direction)
        assert update.shape == (3, 2, 6, 8)
        errors.append(((update - change).abs().max() / change.abs().max()).item())
    assert errors[0] < 0.03
    assert 8 < errors[0] / errors[1] < 12  # the error relative to the change goes with its size


def test_refuses_what_is_no_tile():
    wires = Wires()
    with pytest.raises(ValueError, match=r"G must be a tensor \[..., M, N\]"):
        effective_conductance(torch.ones(3), wires)
    with pytest.raises(ValueError, match=r"G must be a tensor .*got list"):
        effective_conductance([[1.0]], wires)
    with pytest.raises(ValueError, match=r"G must be in \[0, inf\], got values from -1"):
        effective_conductance(torch.tensor([[-1.0, 1.0]]), wires)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="G must be in"):
            effective_conductance(torch.tensor([[bad, 1.0]]), wires)
    with pytest.raises(ValueError, match="G must be a floating tensor"):
        effective_conductance(torch.ones(2, 2, dtype=torch.int64), wires)
    with pytest.raises(TypeError, match="wires must be Wires"):
        effective_conductance(torch.ones(2, 2), 5.0)
    with pytest.raises(ValueError, match=r"dG must be \[..., M, N\]"):
        effective_conductance_update(device_voltages(torch.ones(2, 3), wires), torch.ones(3, 2))


@pytest.mark.parametrize("name", ["driver", "row", "column", "sense"])
def test_refuses_wires_without_resistance(name):
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
            Wires(**{name: value})
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        Wires(**{name: "5"})


def test_refuses_tiles_that_memory_does_not_suffice_for(monkeypatch):
    monkeypatch.setattr(module, "_memory", lambda: 1 << 20)
    with pytest.raises(MemoryError, match=r"a tile of 256 x 256 needs about .* GiB.*: use smaller tiles"):
        effective_conductance(torch.ones(256, 256), Wires())
    with pytest.raises(MemoryError, match="use smaller tiles"):
        device_voltages(torch.ones(64, 64), Wires())
    assert effective_conductance(torch.ones(8, 8), Wires()).shape == (8, 8)
