"""The fitted midpoint: known curves, closed forms, intervals, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import nn

from snnrobust.codesign import NoiseCurve, accuracy_over_noise, fit_midpoint, plot_midpoints
from snnrobust.codesign.midpoint import logistic

GRID = np.array([0.0, *np.geomspace(0.01, 100, 17)])


def curve_of(share, n=20_000, chips=1, classes=10, clean=0.9):
    """Samples that are right up to a noise of their own: accuracies are ``chance + (clean - chance) share``, to 1 / n."""
    chance = 1 / classes
    right = np.zeros((len(share), chips, n), dtype=bool)
    for s, value in enumerate(share):
        right[s, :, : round(n * (chance + (clean - chance) * value))] = True
    return NoiseCurve(tuple(GRID[: len(share)]), right, classes)


@settings(max_examples=12, deadline=None)
@given(
    middle=st.floats(0.05, 20),
    slope=st.floats(0.8, 6),
    clean=st.floats(0.4, 1.0),
    classes=st.integers(2, 100),
    axis=st.sampled_from(["log", "linear"]),
)
def test_a_known_midpoint_is_found(middle, slope, clean, classes, axis):
    clean = max(clean, 1 / classes + 0.3)
    steep = slope if axis == "log" else (4 + slope) / middle  # a linear one is near 1 at 0
    share = logistic(GRID, middle, steep, 1.0, 0.0, axis)
    share[0] = 1.0
    found = fit_midpoint(curve_of(share, classes=classes, clean=min(clean, 1.0)), axis=axis, resamples=20)
    assert found.sigma == pytest.approx(middle, rel=0.02)
    assert found.slope == pytest.approx(steep, rel=0.06)
    assert found.error < 0.005
    assert found.accuracy(found.sigma) == pytest.approx((found.curve.clean + 1 / classes) / 2)


def test_units_of_the_noise_do_not_matter():
    share = logistic(GRID, 1.7, 2.2, 1.0, 0.0, "log")
    one = curve_of(share, n=500)
    for factor in (1e-6, 1e6):
        other = NoiseCurve(tuple(GRID * factor), one.right, 10)
        a, b = fit_midpoint(one, resamples=20), fit_midpoint(other, resamples=20)
        assert (b.sigma, b.low, b.high) == pytest.approx((factor * a.sigma, factor * a.low, factor * a.high), rel=1e-3)
        assert b.slope == pytest.approx(a.slope, rel=1e-3)


def test_it_is_the_least_squares_fit_of_a_grid_search():
    rng = np.random.default_rng(0)
    share = logistic(GRID, 0.6, 1.5, 1.0, 0.0, "log")
    curve = NoiseCurve(tuple(GRID), rng.random((18, 2, 150)) < (0.1 + 0.75 * share)[:, None, None], 10)
    found = fit_midpoint(curve, resamples=20)

    def loss(p):
        return ((0.1 + (curve.clean - 0.1) / (1 + (GRID / p[0]) ** p[1]) - curve.accuracy) ** 2).sum()

    best = optimize.brute(loss, ((0.3, 1.2), (0.8, 3.0)), Ns=60)
    assert (found.sigma, found.slope) == pytest.approx(tuple(best), rel=1e-3)
    assert found.error == pytest.approx(np.sqrt(loss(best) / 18), rel=1e-4)


def test_of_a_linear_classifier_it_is_that_of_the_closed_form():
    """Two classes of margin m: acc = Phi(m / (sqrt 2 sigma)), in population. A probit is no logistic: half-way is elsewhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, grid = torch.full((400, 1), 0.8), np.geomspace(0.1, 10, 13)
    found = fit_midpoint(accuracy_over_noise(model, (x, torch.zeros(400).long()), grid, chips=10), resamples=100)
    exact = stats.norm.cdf(0.8 / (np.sqrt(2) * grid))
    best = optimize.brute(
        lambda p: ((0.5 + 0.5 / (1 + (grid / p[0]) ** p[1]) - exact) ** 2).sum(), ((0.5, 2.0), (0.8, 4.0)), Ns=40
    )
    assert found.sigma == pytest.approx(best[0], rel=0.05)
    assert found.low < best[0] < found.high
    assert found.sigma > 1.05 * 0.8 / (np.sqrt(2) * stats.norm.ppf(0.75))


@pytest.mark.slow
def test_the_interval_covers_as_often_as_it_says():
    """100 curves of 300 samples with shared difficulty; 95 % intervals. Fewer than 88 covering has p < 0.003 (binomial)."""
    share, covered = logistic(GRID[::2], 1.0, 2.0, 1.0, 0.0, "log"), 0
    rng = np.random.default_rng(7)
    for trial in range(100):
        # a sample is lost from a noise of its own on, or is never known, or always guessed: the curve is exact in expectation
        lost, kind = rng.random(300), rng.random(300)
        right = np.where(kind < 0.1, True, (kind < 0.9) & (lost < share[:, None]))[:, None]
        found = fit_midpoint(NoiseCurve(tuple(GRID[::2]), right, 10), resamples=60, seed=trial)
        covered += found.low <= 1.0 <= found.high
    assert covered >= 88


def test_more_samples_make_it_narrower_and_its_seed_decides_it():
    rng = np.random.default_rng(1)
    share = (0.1 + 0.8 * logistic(GRID, 1.0, 2.0, 1.0, 0.0, "log"))[:, None, None]
    widths = []
    for n in (50, 800):
        curve = NoiseCurve(tuple(GRID), rng.random((18, 2, n)) < share, 10)
        a, b, c = (fit_midpoint(curve, resamples=40, seed=s) for s in (1, 1, 2))
        assert (a.low, a.high) == (b.low, b.high) != (c.low, c.high)
        widths.append(np.log(a.high / a.low))
        narrow = fit_midpoint(curve, resamples=40, seed=1, confidence=0.5)
        assert a.low < narrow.low < narrow.high < a.high
    assert widths[1] < widths[0] / 2


def test_its_width_is_that_of_the_confidence():
    """Of a mean of many samples, in the logarithm: 95 % is 1.96 and 50 % 0.674 deviations to each side."""
    rng = np.random.default_rng(2)
    share = (0.1 + 0.8 * logistic(GRID[::2], 1.0, 2.0, 1.0, 0.0, "log"))[:, None, None]
    curve = NoiseCurve(tuple(GRID[::2]), rng.random((9, 1, 500)) < share, 10)
    wide, narrow = (fit_midpoint(curve, resamples=300, confidence=c) for c in (0.95, 0.5))
    assert np.log(wide.high / wide.low) / np.log(narrow.high / narrow.low) == pytest.approx(1.96 / 0.674, rel=0.2)


def test_chips_that_differ_widen_the_interval():
    good, bad = (0.1 + 0.8 * logistic(GRID, m, 2.0, 1.0, 0.0, "log") for m in (4.0, 0.25))
    order = np.linspace(0, 1, 2000)
    right = np.stack([order[None] < good[:, None], order[None] < bad[:, None]], 1)
    both = fit_midpoint(NoiseCurve(tuple(GRID), right, 10), resamples=60)
    one = fit_midpoint(NoiseCurve(tuple(GRID), right[:, :1], 10), resamples=60)
    assert one.high / one.low < 1.3
    assert both.low < 0.3
    assert both.high > 3.5


def test_it_says_what_it_found():
    found = fit_midpoint(curve_of(logistic(GRID, 1.0, 2.0, 1.0, 0.0, "log")), resamples=20)
    assert str(found).startswith("midpoint noise level 1 [")
    assert "clean 90.0 %" in str(found)


def test_a_figure_is_drawn(tmp_path):
    found = fit_midpoint(curve_of(logistic(GRID, 1.0, 2.0, 1.0, 0.0, "log")), resamples=20)
    plot_midpoints(tmp_path / "a.png", {"one": found, "two": found})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="midpoints must map names"):
        plot_midpoints(tmp_path / "a.png", {})


ONE = np.ones(18)


@pytest.mark.parametrize(
    ("share", "more", "words"),
    [
        (
            ONE,
            {"clean": 0.9},
            "never falls: at sigma 100 the accuracy is 90.0 %, above the middle of 50.0 %: add stronger",
        ),
        (ONE, {"clean": 0.1}, "flat: 10.0 % without noise is not above chance"),
        (ONE, {"clean": 0.12, "n": 100}, "flat"),
        ((ONE - np.linspace(0, 0.4, 18)), {}, "never falls"),
        (np.array([1.0] + 17 * [0.1]), {}, "the weakest noise, sigma 0.01, leaves 18.0 %.*add weaker"),
        (np.array([1.0, 0.8, 0.2]), {}, "at least three strengths"),
    ],
)
def test_curves_without_a_midpoint_are_refused(share, more, words):
    with pytest.raises(ValueError, match=words):
        fit_midpoint(curve_of(share, **more))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"axis": "logg"}, ValueError, "axis must be one of log, linear.*did you mean 'log'"),
        ({"resamples": 5}, ValueError, "resamples must be at least 20"),
        ({"confidence": 95}, ValueError, "confidence"),
        ({"seed": -1}, ValueError, "seed"),
        ({"curve": [1.0, 0.5]}, TypeError, "curve must be a NoiseCurve"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    curve = curve_of(logistic(GRID, 1.0, 2.0, 1.0, 0.0, "log"), n=100)
    with pytest.raises(error, match=words):
        fit_midpoint(**{"curve": curve, **arguments})
