import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import splu

from snnrobust.hardware.crossbar import cache, solve
from snnrobust.hardware.crossbar.nodal import Wires, effective_conductance

WIRES = Wires(driver=100.0, row=5.0, column=8.0, sense=200.0)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))


def nodal(g, wires):
    """Kirchhoff's law at each of the 2 M N nodes, resistor by resistor; the current of each sense for one volt at each driver."""
    m, n = g.shape
    a, b = lil_matrix((2 * m * n, 2 * m * n)), np.zeros((2 * m * n, m))

    def resistor(p, q, conductance):
        for node in (p, q):
            if node is not None:  # ground, or a source
                a[node, node] += conductance
        if p is not None and q is not None:
            a[p, q] -= conductance
            a[q, p] -= conductance

    for i in range(m):
        for j in range(n):
            row, column = i * n + j, m * n + i * n + j
            resistor(row, column, g[i, j])
            if j == 0:
                resistor(row, None, 1 / wires.driver)
                b[row, i] = 1 / wires.driver
            else:
                resistor(row, row - 1, 1 / wires.row)
            if i == m - 1:
                resistor(column, None, 1 / wires.sense)
            else:
                resistor(column, column + n, 1 / wires.column)
    v = splu(a.tocsc()).solve(b)
    return torch.from_numpy(v[[m * n + (m - 1) * n + j for j in range(n)]].T / wires.sense)


def some(n, rows, columns, seed=0):
    u = torch.rand(n, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return 5e-6 + u * 4.5e-5


def test_against_kirchhoff():
    tiles = some(3, 4, 6)
    solved = solve.solve(tiles, WIRES)
    for tile, got in zip(tiles, solved, strict=True):
        torch.testing.assert_close(got, nodal(tile.numpy(), WIRES), rtol=1e-10, atol=0)


def test_disconnected_cells_are_cut_off_exactly():
    tiles, used = some(5, 4, 6), torch.tensor([[4, 6], [2, 6], [4, 3], [2, 3], [1, 1]])
    tiles = tiles * (torch.arange(4)[:, None] < used[:, 0, None, None]) * (torch.arange(6) < used[:, 1, None, None])
    solved = solve.solve(tiles, WIRES, used=used)
    for tile, (m, n), got in zip(tiles, used.tolist(), solved, strict=True):
        whole = tile.numpy() + 1e-30 * (tile.numpy() == 0)  # disconnected, yet no singular matrix
        torch.testing.assert_close(got[:m, :n], nodal(whole, WIRES)[:m, :n], rtol=1e-9, atol=0)
        assert (got != 0).sum() == m * n


def test_equal_tiles_are_solved_once(monkeypatch):
    solved = []

    def counting(g, wires):
        solved.append(len(g))
        return effective_conductance(g, wires)

    monkeypatch.setattr(solve, "effective_conductance", counting)
    three = some(3, 5, 5)
    order = [0, 1, 0, 2, 2, 2, 0, 1]
    result = solve.solve(three[order], WIRES)
    assert sum(solved) == 3
    for k, got in zip(order, result, strict=True):
        torch.testing.assert_close(got, nodal(three[k].numpy(), WIRES), rtol=1e-10, atol=0)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(solve, "FILE_BYTES", 2 * 8 * 12 * 10)
    tiles, before, results = some(9, 12, 10), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        try:
            torch.set_num_threads(threads)
            results.append(solve.solve(tiles, WIRES))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_chunks_change_nothing(monkeypatch):
    tiles = some(9, 12, 10)
    whole = solve.solve(tiles, WIRES)
    for size in (1, 2, 4):
        monkeypatch.setattr(solve, "FILE_BYTES", size * 8 * 12 * 10)
        monkeypatch.setattr(solve, "AT_A_TIME", size * solve.tile_bytes(12, 10))
        torch.testing.assert_close(solve.solve(tiles, WIRES), whole, rtol=1e-13, atol=0)


@pytest.fixture
def solver(monkeypatch):
    """What the solver was called with; all work is worth a file."""
    monkeypatch.setattr(solve, "WORTH_A_FILE", 0.0)
    monkeypatch.setattr(solve, "FILE_BYTES", 2 * 8 * 6 * 7)
    calls = []

    def counting(g, wires):
        calls.append(g)
        return effective_conductance(g, wires)

    monkeypatch.setattr(solve, "effective_conductance", counting)
    return calls


def test_a_hit_equals_what_is_computed_bit_for_bit(solver):
    tiles = some(5, 6, 7)
    first = solve.solve(tiles, WIRES)
    assert len(solver) == len(list(cache.folder().iterdir())) == 3
    again = solve.solve(tiles, WIRES)
    assert len(solver) == 3
    anew = solve.solve(tiles, WIRES, cache=False)
    assert len(solver) == 6
    assert torch.equal(first, again)
    assert torch.equal(first, anew)


def test_without_cache_nothing_is_written(solver):
    solve.solve(some(5, 6, 7), WIRES, cache=False)
    assert not cache.folder().exists()


def test_a_damaged_file_is_computed_again(solver):
    tiles = some(5, 6, 7)
    first = solve.solve(tiles, WIRES)
    victim = sorted(cache.folder().iterdir())[1]
    content = bytearray(victim.read_bytes())
    content[-3] ^= 4
    victim.write_bytes(content)
    assert torch.equal(solve.solve(tiles, WIRES), first)
    assert len(solver) == 4
    assert torch.equal(solve.solve(tiles, WIRES), first)
    assert len(solver) == 4  # the file is whole again


def test_other_wires_cells_or_numbers_are_other_files(solver, monkeypatch):
    tiles = some(2, 6, 7)
    solve.solve(tiles, WIRES)
    for other in (Wires(101.0, 5.0, 8.0, 200.0), Wires(100.0, 8.0, 5.0, 200.0), Wires(100.0, 5.0, 8.0, 201.0)):
        solve.solve(tiles, other)
    solve.solve(tiles.nextafter(2 * tiles), WIRES)
    solve.solve(tiles.view(2, 7, 6), WIRES)
    monkeypatch.setattr(solve, "VERSION", solve.VERSION + 1)
    solve.solve(tiles, WIRES)
    assert len(solver) == 7


def test_little_work_makes_no_file():
    solve.solve(some(5, 6, 7), WIRES)
    assert not cache.folder().exists()


def test_the_folder_keeps_its_limit(solver, monkeypatch):
    solve.solve(some(4, 6, 7), WIRES)
    size = next(cache.folder().iterdir()).stat().st_size
    monkeypatch.setenv("SNNROBUST_CACHE_GB", str(3 * size / 1e9))
    solve.solve(some(4, 6, 7, seed=1), WIRES)
    assert len(list(cache.folder().iterdir())) == 3


def test_tiles_larger_than_memory(monkeypatch):
    monkeypatch.setattr(solve, "available_bytes", lambda: 1e6)
    with pytest.raises(
        ValueError, match=r"one tile of 64 x 64 takes about 0\.0 GB.*use smaller tiles, or ir_drop=False"
    ):
        solve.demand_memory(64, 64)
    solve.demand_memory(8, 8)
    with pytest.raises(ValueError, match="100 tiles of 64 x 64 take about"):
        solve.demand_room(100, 64, 64)


def test_errors_of_the_solver_come_through(monkeypatch):
    def failing(g, wires):
        raise RuntimeError("no solution")

    monkeypatch.setattr(solve, "effective_conductance", failing)
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no solution"):
        solve.solve(some(3, 2, 2), WIRES)
    assert torch.get_num_threads() == before


def test_nothing_to_solve():
    assert solve.solve(some(0, 2, 2), WIRES).shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("terminal", "progress", "long"), [(True, True, 0.0), (True, True, 99.0), (True, False, 0.0), (False, True, 0.0)]
)
def test_a_bar_where_it_takes_long_and_someone_watches(solver, monkeypatch, capsys, terminal, progress, long):
    monkeypatch.setattr(solve, "LONG", long)
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    solve.solve(some(8, 6, 7), WIRES, progress=progress)
    text = capsys.readouterr()
    assert text.out == ""
    if terminal and progress and long == 0:
        assert "IR drop: 8 tiles, about 0 s and 0 MB" in text.err
        assert "IR drop of 8 tiles of 6 x 7" in text.err
    else:
        assert text.err == ""
