"""Intervals and tests against scipy, closed forms and enumeration."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from snnrobust.statistics import auc_interval, exact_interval, holm, mean_interval, paired_greater, paired_interval


@pytest.mark.parametrize(("right", "n"), [(0, 20), (20, 20), (7, 20), (150, 200)])
def test_binary_values_get_wilsons_interval(right: int, n: int) -> None:
    values = np.r_[np.ones(right), np.zeros(n - right)]
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_shares_get_an_interval_near_the_normal_one() -> None:
    values = np.random.default_rng(1).beta(2, 2, 400)
    low, high = mean_interval(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_equal_shares_do_not_pretend_to_certainty() -> None:
    low, high = mean_interval(np.full(50, 0.5))
    assert low < 0.4
    assert high > 0.6


def test_intervals_cover() -> None:
    """95 % intervals of 300 samples of 60 shares cover the mean: 99.9 % bounds of Binomial(300, 0.93..0.97)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = mean_interval(rng.binomial(8, 0.7, 60) / 8)
        hits += low <= 0.7 <= high
    assert stats.binom.ppf(0.0005, 300, 0.93) <= hits <= stats.binom.ppf(0.9995, 300, 0.97)


@pytest.mark.parametrize("values", [[], [1.2], [-0.1], [float("nan")], [[0.5]]])
def test_interval_refuses_what_is_no_share(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(np.array(values))


def test_paired_test_equals_enumeration_of_all_sign_flips() -> None:
    a, b = np.array([0.9, 0.8, 1.0, 0.3, 0.6, 0.7]), np.array([0.5, 0.9, 0.2, 0.1, 0.6, 0.4])
    d = a - b
    flips = [np.mean(d * s) for s in itertools.product((1, -1), repeat=len(d))]
    assert paired_greater(a, b) == pytest.approx(np.mean(np.array(flips) >= d.mean() - 1e-12))


def test_paired_test_is_one_sided_and_calm_about_equality() -> None:
    a = np.random.default_rng(0).random(100)
    assert paired_greater(a, a) == 1.0
    assert paired_greater(a + 0.1, a) < 0.001
    assert paired_greater(a - 0.1, a) > 0.999


def test_paired_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(80), rng.random(80)
    result = stats.bootstrap(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), paired=True, vectorized=True, method="percentile",
        n_resamples=19_999, rng=np.random.default_rng(5),
    )  # fmt: skip
    expected = result.confidence_interval
    assert paired_interval(a, b) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_paired_interval_is_of_the_difference_and_knows_the_pairs() -> None:
    rng = np.random.default_rng(0)
    common = rng.random(200)
    a, b = common + 0.05 + 0.01 * rng.standard_normal(200), common
    low, high = paired_interval(a, b)
    assert 0.047 < low < (a - b).mean() < high < 0.053
    assert paired_interval(b, a) == pytest.approx((-high, -low), abs=2e-4)
    unpaired = paired_interval(a, b[::-1].copy())
    assert unpaired[1] - unpaired[0] > 10 * (high - low)


def test_paired_interval_widens_with_the_confidence() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 100)).astype(float)
    (low, high), (lower, higher) = paired_interval(a, b, 0.8), paired_interval(a, b, 0.99)
    assert lower < low < high < higher
    assert paired_interval(a, a) == (0.0, 0.0)


def test_paired_intervals_cover() -> None:
    """95 % intervals of 200 samples of 80 pairs cover the difference: 99.9 % bounds of Binomial(200, 0.93..0.97)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        common = rng.random(80)
        low, high = paired_interval((common < 0.7).astype(float), (common + 0.2 * rng.random(80) < 0.7).astype(float))
        hits += low <= 0.1 <= high
    assert stats.binom.ppf(0.0005, 200, 0.93) <= hits <= stats.binom.ppf(0.9995, 200, 0.97)


@pytest.mark.parametrize("function", [paired_interval, paired_greater])
@pytest.mark.parametrize(
    ("a", "b", "named"), [([], [], "one length"), ([1.0], [1.0, 0.0], "one length"), ([[1.0]], [[1.0]], "one length"),
                          ([float("nan")], [1.0], "finite"), ([1.0], [float("inf")], "finite")],
)  # fmt: skip
def test_paired_functions_refuse_what_is_no_pair(function: Callable[..., object], a: list, b: list, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        function(np.array(a), np.array(b))


def test_paired_interval_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        paired_interval(np.ones(1), np.zeros(1))


def test_paired_interval_of_many_pairs_is_drawn_in_parts() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(3000)
    low, high = paired_interval(a, np.zeros(3000))
    error = 1.96 * a.std() / 3000**0.5
    assert (low, high) == pytest.approx((a.mean() - error, a.mean() + error), abs=0.15 * error)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_paired_interval_refuses_no_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        paired_interval(np.array([1.0, 0.0]), np.array([0.0, 0.0]), confidence)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(("found", "n"), [(0, 10), (10, 10), (3, 40)])
def test_exact_interval_is_that_of_the_beta_distribution(found: int, n: int) -> None:
    low = 0.0 if found == 0 else stats.beta.ppf(0.025, found, n - found + 1)
    high = 1.0 if found == n else stats.beta.ppf(0.975, found + 1, n - found)
    assert exact_interval(found, n) == pytest.approx((low, high), abs=1e-12)


def test_area_under_the_curve_is_mann_whitneys_and_its_variance_delongs() -> None:
    """DeLong's variance written out over all pairs."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 12, 30).astype(float) + 2, rng.integers(0, 12, 50).astype(float)
    auc, low, high = auc_interval(a, b)
    assert auc == pytest.approx(stats.mannwhitneyu(a, b).statistic / (30 * 50), abs=1e-12)
    psi = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    error = np.sqrt(psi.mean(1).var(ddof=1) / 30 + psi.mean(0).var(ddof=1) / 50)
    logit = np.log(auc / (1 - auc)) + np.array([-1, 1]) * stats.norm.ppf(0.975) * error / (auc * (1 - auc))
    assert (low, high) == pytest.approx(tuple(1 / (1 + np.exp(-logit))), abs=1e-12)
    assert auc_interval(b, a) == pytest.approx((1 - auc, 1 - high, 1 - low), abs=1e-12)


def test_samples_that_do_not_overlap_do_not_pretend_to_certainty() -> None:
    a, b = np.arange(10.0) + 100, np.arange(12.0)
    auc, low, high = auc_interval(a, b)
    assert (auc, high) == (1.0, 1.0)
    assert 0.6 < low < 0.95
    assert auc_interval(b, a) == pytest.approx((0.0, 0.0, 1 - low), abs=1e-9)
    assert auc_interval(a * 10, b)[1] > auc_interval(a[:5], b[:5])[1]
    auc, low, high = auc_interval(np.ones(20), np.ones(20))
    assert auc == 0.5
    assert low < 0.4
    assert high > 0.6


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_of_the_area_cover(shift: float) -> None:
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    found = [auc_interval(rng.normal(shift, 1, 60), rng.normal(0, 1, 60)) for _ in range(400)]
    hits = sum(low <= truth <= high for _, low, high in found)
    assert stats.binom.ppf(0.0005, 400, 0.93) <= hits <= stats.binom.ppf(0.9995, 400, 0.97)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0]), ([[1.0, 2.0]], [1.0, 2.0])])
def test_the_area_refuses_what_is_no_sample(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="above and below must be vectors"):
        auc_interval(np.array(a), np.array(b))
