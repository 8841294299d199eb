from itertools import combinations
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.hardware import Operation
from snnrobust.hardware.crossbar.mapping import Tiling
from snnrobust.quantization import STRUCTURES, Blocks, Channels, Elements, Filters, Keep, Rows, keep_strongest
from snnrobust.quantization.structured import group_norms

LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "conv": lambda: nn.Conv2d(2, 3, (1, 2)),
    "grouped": lambda: nn.Conv1d(4, 4, 2, groups=2),
}
SMALL = [Filters(), Channels(), Rows(), Blocks(2, 3), Blocks(2, 1)]


def weight_of(name, seed=0):
    layer = LAYERS[name]()
    w = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w, Operation.of(layer)


def brute_force(w, groups, k):
    """The smallest squared distance to a weight with at most k groups that are not zero."""
    count = int(groups.max()) + 1
    return min(
        float((w * ~torch.isin(groups, torch.tensor(kept))).square().sum()) for kept in combinations(range(count), k)
    )


@pytest.mark.parametrize("structure", SMALL, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_projection_is_the_nearest(name, structure):
    for seed in range(3):
        w, operation = weight_of(name, seed)
        groups = structure.groups(w, operation)
        count = int(groups.max()) + 1
        assert torch.equal(groups.unique(), torch.arange(count))
        for k in range(1, count + 1):
            z = Keep(structure, k / count)(w, operation)
            assert torch.equal(z[z != 0], w[z != 0])
            assert len(groups[z != 0].unique()) == k
            assert float((w - z).square().sum()) == pytest.approx(brute_force(w, groups, k), abs=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_what_the_groups_are(name):
    w, operation = weight_of(name)
    filters, channels, rows = (s.groups(w, operation) for s in (Filters(), Channels(), Rows()))
    assert all(torch.equal(filters[j], torch.full_like(filters[j], j)) for j in range(len(w)))
    each = len(w) // operation.groups
    for j in range(len(w)):
        for c in range(w.shape[1]):
            assert (channels[j, c] == j // each * w.shape[1] + c).all()
    matrix = operation.matrix(rows)  # a row of the array has one group, and no other row has it
    assert (matrix == matrix[..., :1]).all()
    assert len(matrix[..., 0].unique()) == matrix[..., 0].numel()
    assert len(Elements().groups(w, operation).unique()) == w.numel()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 100), st.sampled_from(sorted(LAYERS)))
def test_a_block_is_a_tile_of_the_array(rows, columns, seed, name):
    w, operation = weight_of(name, seed)
    blocks = operation.matrix(Blocks(rows, columns).groups(w, operation))
    tiles = Tiling(*blocks.shape[1:], rows, columns).cut(blocks + 1, 0)
    for tile in tiles.flatten(0, 2):
        assert len(tile[tile > 0].unique()) == 1
    assert int(blocks.max()) + 1 == tiles.shape[0] * tiles.shape[1] * tiles.shape[2]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 1), st.sampled_from(SMALL), st.sampled_from(sorted(LAYERS)), st.integers(0, 100))
def test_idempotent_and_scaled_as_the_weight(share, structure, name, seed):
    w, operation = weight_of(name, seed)
    keep = Keep(structure, share)
    z = keep(w, operation)
    assert torch.equal(keep(z, operation), z)
    torch.testing.assert_close(keep(-3 * w, operation), -3 * z)
    groups = structure.groups(w, operation)
    count = int(groups.max()) + 1
    assert len(groups[z != 0].unique()) == max(1, floor(share * count + 0.5))


def test_norms_and_ties():
    w = torch.tensor([[3.0, 4.0], [0.0, 5.0], [1.0, 0.0]])
    groups = Filters().groups(w, Operation())
    assert torch.equal(group_norms(w, groups), torch.tensor([5.0, 5.0, 1.0], dtype=torch.float64))
    assert keep_strongest(w, groups, 1).tolist() == [
        [True, True],
        [False, False],
        [False, False],
    ]  # the first of equals


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Keep(Filters(), 0.0), r"share must be in \(0, 1\]"),
        (lambda: Keep(Filters(), 1.5), r"share must be in \(0, 1\]"),
        (lambda: Blocks(0, 4), "rows must be at least 1"),
        (lambda: Blocks(4, -1), "columns must be at least 1"),
        (lambda: keep_strongest(torch.zeros(0), torch.zeros(0), 1), "no elements"),
        (lambda: keep_strongest(torch.tensor([torch.nan]), torch.zeros(1, dtype=int), 1), "NaN"),
        (lambda: keep_strongest(torch.ones(2), torch.zeros(3, dtype=int), 1), "shape of weight"),
        (lambda: keep_strongest(torch.ones(2), torch.arange(2), 3), "at most 2"),
        (lambda: keep_strongest(torch.ones(2), torch.arange(2), 0), "at least 1"),
    ],
)
def test_bad_values(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_bad_structures():
    with pytest.raises(TypeError, match="Filters"):
        Keep("filters", 0.5)
    assert {"Filters", "Channels", "Rows", "Blocks", "Elements"} <= set(STRUCTURES)
    assert Keep(Blocks(8, 4), 0.25).describe() == "25% of Blocks(rows=8, columns=4)"
