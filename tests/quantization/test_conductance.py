import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.hardware.pairs import to_pair, weight_unit
from snnrobust.quantization import Binary, Integer, LevelSet, NearestLevel, Ternary, pair_levels

STATES = st.lists(st.integers(0, 1000), min_size=2, max_size=8, unique=True).map(
    lambda g: tuple(float(v) for v in sorted(g))
)


def test_levels_by_hand():
    assert pair_levels((1.0, 3.0)).levels == (-1.0, 0.0, 1.0)
    assert pair_levels((0, 1, 2, 4)).levels == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    assert pair_levels((0, 1, 4), both=True).levels == (-1.0, -0.75, -0.25, 0.0, 0.25, 0.75, 1.0)
    assert pair_levels((2.0, 2.5, 3.0), both=True).levels == (
        -1.0,
        -0.5,
        0.0,
        0.5,
        1.0,
    )  # equal differences are one level


@settings(max_examples=100, deadline=None)
@given(STATES)
def test_levels_are_differences_of_states(states):
    span = states[-1] - states[0]
    single, both = pair_levels(states).levels, pair_levels(states, both=True).levels
    assert len(single) == 2 * len(states) - 1
    every = sorted({(a - b) / span for a in states for b in states})
    assert all(min(abs(v - e) for e in every) < 1e-12 for v in both)
    assert all(min(abs(v - e) for v in both) < 2e-9 for e in every)
    assert all(min(abs(v - e) for e in both) < 2e-9 for v in single)
    assert single == tuple(-v for v in reversed(single))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), STATES, st.floats(0.01, 10))
def test_the_projection_is_the_nearest(values, states, scale):
    w = torch.tensor(values, dtype=torch.float64)
    levels = pair_levels(states).values() * scale
    z = NearestLevel(pair_levels(states), scale)(w)
    nearest = (w[:, None] - levels).abs().amin(1)  # brute force
    torch.testing.assert_close((w - z).abs(), nearest, rtol=1e-9, atol=1e-12)
    assert torch.equal(NearestLevel(pair_levels(states), scale)(z), z)
    assert (z[w == 0] == 0).all()


def test_pairs_can_hold_the_levels():
    states = (0.0, 7.0, 19.0, 40.0)
    w = NearestLevel(pair_levels(states), 0.3)(torch.randn(200, generator=torch.Generator().manual_seed(0)))
    pair = to_pair(w, 40.0)
    assert w.abs().max() == pytest.approx(0.3)
    assert ((pair[..., None] - torch.tensor(states)).abs().amin(-1) < 1e-4).all()
    torch.testing.assert_close((pair[0] - pair[1]) * weight_unit(w, 40.0), w.double())


@pytest.mark.parametrize("states", [2, 4, 8])
def test_the_scale_fits_best(states):
    levels = pair_levels(tuple(range(states)))
    for seed in range(5):
        w = torch.randn(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def distance(s, w=w):
            return float((w - NearestLevel(levels, s)(w)).square().sum())

        best = min(map(distance, torch.linspace(0.01, float(w.abs().max()), 3000).tolist()))
        found = NearestLevel(levels).fitted(w).scale
        assert distance(found) <= best * 1.02
        assert float((w - NearestLevel(levels)(w)).square().sum()) == distance(found)
        assert NearestLevel(levels).fitted(7 * w).scale == pytest.approx(7 * found)


def test_what_is_pruned_takes_no_part():
    w = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for levels in (pair_levels((0, 1, 2)), Integer(4)):
        projection = NearestLevel(levels)
        assert projection.fitted(torch.cat([w, torch.zeros(500)])) == projection.fitted(w)
        assert projection.fitted(torch.zeros(4)).scale == 1.0
        on = NearestLevel(levels, 0.25)(w)
        torch.testing.assert_close(projection.fitted(on)(on), on)
    assert NearestLevel(Ternary())(w).unique().numel() == 3


def test_bounds_need_a_scale():
    assert NearestLevel(LevelSet((-1.0, 0.0, 0.5)), 2.0).bounds() == (-2.0, 1.0)
    with pytest.raises(ValueError, match="fitted"):
        NearestLevel(LevelSet((-1.0, 0.0, 0.5))).bounds()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pair_levels((1.0,)), "at least two"),
        (lambda: pair_levels(()), "at least two"),
        (lambda: pair_levels((1.0, 1.0)), "ascend"),
        (lambda: pair_levels((2.0, 1.0)), "ascend"),
        (lambda: pair_levels((-1.0, 1.0)), "states must be in"),
        (lambda: LevelSet(()), "at least two"),
        (lambda: LevelSet((0.0, 0.0, 1.0)), "twice"),
        (lambda: NearestLevel(LevelSet((1.0, 2.0))), "contain 0"),
        (lambda: NearestLevel(Binary()), "contain 0"),
        (lambda: NearestLevel(Ternary(), 0.0), "scale"),
    ],
)
def test_bad_values(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_bad_types():
    with pytest.raises(TypeError, match="states"):
        pair_levels("012")
    with pytest.raises(TypeError, match="levels"):
        NearestLevel(3.0)
