import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.hardware.crossbar.mapping import Tiling, conductances, weights

R_ON, R_OFF = 20e3, 200e3


def test_pairs_of_a_weight_by_hand():
    pairs = conductances(torch.tensor([[2.0, -1.0], [0.0, 0.5]]), r_on=10e3, r_off=100e3)
    plus = [[1e-4, 1e-5], [1e-5, 1e-5 + 0.25 * 9e-5]]
    minus = [[1e-5, 1e-5 + 0.5 * 9e-5], [1e-5, 1e-5]]
    assert pairs.scale == pytest.approx(2.0 / 9e-5, rel=1e-15)
    torch.testing.assert_close(pairs.g, torch.tensor([plus, minus], dtype=torch.float64), rtol=1e-14, atol=0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.floats(1.0, 1e6), st.floats(1.01, 1e4))
def test_conductances_stay_in_their_range_and_give_the_weights_back(values, r_on, ratio):
    w = torch.tensor(values, dtype=torch.float64)
    pairs = conductances(w, r_on, r_on * ratio)
    assert pairs.g.min() >= 1 / (r_on * ratio)
    assert pairs.g.max() <= 1 / r_on
    assert torch.equal(pairs.g.amin(0), torch.full_like(w, 1 / (r_on * ratio)))  # one of each pair is off
    # the difference of two numbers of size 1 / r_on, relative to what it spans
    torch.testing.assert_close(weights(pairs.g, pairs.scale), w, rtol=0, atol=float(w.abs().max()) * 1e-11)


def test_a_layer_of_zeros_is_off():
    pairs = conductances(torch.zeros(3, 2), R_ON, R_OFF)
    assert pairs.scale == 0.0
    assert torch.equal(pairs.g, torch.full((2, 3, 2), 1 / R_OFF, dtype=torch.float64))
    assert torch.equal(weights(pairs.g, pairs.scale), torch.zeros(3, 2, dtype=torch.float64))


def test_weights_that_hardly_differ_from_zero():
    w = torch.tensor([1e-310, -3e-310], dtype=torch.float64)
    pairs = conductances(w, R_ON, R_OFF)
    assert pairs.g.isfinite().all()
    assert pairs.g[1, 1] == pytest.approx(1 / R_ON)
    assert pairs.g[0, 0] - 1 / R_OFF == pytest.approx((1 / R_ON - 1 / R_OFF) / 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"NaN or infinity \(1 of 2 elements\).*train again"):
        conductances(torch.tensor([1.0, bad]), R_ON, R_OFF)


def test_no_weights():
    with pytest.raises(ValueError, match="no elements"):
        conductances(torch.zeros(0, 3), R_ON, R_OFF)


SIZES = st.integers(1, 9)


@given(SIZES, SIZES, SIZES, SIZES, st.integers(1, 3))
@settings(deadline=None)
def test_tiles_cell_by_cell(inputs, outputs, rows, columns, groups):
    matrix = torch.arange(1.0, groups * inputs * outputs + 1).view(groups, inputs, outputs)
    tiling = Tiling(inputs, outputs, rows, columns)
    tiles = tiling.cut(matrix, -1.0)
    r, c = tiling.grid
    assert tiles.shape == (groups, r, c, rows, columns)
    assert (r - 1) * rows < inputs <= r * rows
    assert (c - 1) * columns < outputs <= c * columns
    seen = 0
    for g in range(groups):
        for a in range(r):
            for b in range(c):
                for i in range(rows):
                    for j in range(columns):
                        row, column = a * rows + i, b * columns + j
                        held = row < inputs and column < outputs
                        expected = float(matrix[g, row, column]) if held else -1.0
                        assert float(tiles[g, a, b, i, j]) == expected
                        seen += held
    assert seen == matrix.numel()
    assert torch.equal(tiling.join(tiles), matrix)
    held = (tiles != -1).flatten(-2)
    used = tiling.used()
    assert torch.equal(held.sum(-1), used.prod(-1).expand(groups, r, c))


def test_the_differential_array_has_two_layers_of_tiles():
    tiling = Tiling(3, 5, 2, 2)
    both = torch.rand(2, 4, 3, 5)
    tiles = tiling.cut(both, 0.0)
    assert tiles.shape == (2, 4, 2, 3, 2, 2)
    assert torch.equal(tiling.join(tiles), both)
    assert torch.equal(tiles[1, 2], tiling.cut(both[1, 2], 0.0))
