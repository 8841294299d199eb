"""Intervals and tests for accuracies over samples; the work is scipy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

__all__ = ["auc_interval", "exact_interval", "holm", "mean_interval", "paired_greater", "paired_interval"]

Values = NDArray[np.float64]
_RESAMPLES = 4999


def mean_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean of values in [0, 1] over samples.

    Wilson's score interval where every value is 0 or 1, or all are equal; else the percentile bootstrap over samples.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"values must be a non-empty vector within [0, 1], got shape {values.shape}")
    n, mean = len(values), float(values.mean())
    if np.isin(values, (0.0, 1.0)).all() or (values == values[0]).all():
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * float(np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)))
        return max(0.0, centre - half), min(1.0, centre + half)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def exact_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a probability: it covers at least as often as it says, for any n."""
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def auc_interval(above: Values, below: Values, confidence: float = 0.95) -> tuple[float, float, float]:
    r"""Area under the ROC curve, :math:`P(a > b) + P(a = b) / 2` for a from ``above`` and b from ``below``, and its interval.

    The interval is that of DeLong et al. 1988 ("Comparing the areas under two or more correlated receiver operating
    characteristic curves: a nonparametric approach") on the logit scale. Where that variance is zero, as for samples that do
    not overlap, it is the score interval with the variance of Hanley and McNeil 1982.
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or min(len(a), len(b)) < 2 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(f"above and below must be vectors of at least 2 numbers, got shapes {a.shape} and {b.shape}")
    m, n = len(a), len(b)
    ranks = stats.rankdata(np.concatenate([a, b]))
    beats = (ranks[:m] - stats.rankdata(a)) / n  # of each a, the share of b that lies below it
    beaten = 1 - (ranks[m:] - stats.rankdata(b)) / m
    auc = float(beats.mean())
    error = float(np.sqrt(beats.var(ddof=1) / m + beaten.var(ddof=1) / n))
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    # rounding may leave a variance of 1e-33 where it is zero
    if min(auc, 1 - auc) > 1e-12 and error > 1e-12:
        centre, half = np.log(auc / (1 - auc)), z * error / (auc * (1 - auc))
        return auc, float(special.expit(centre - half)), float(special.expit(centre + half))

    def excess(p: float) -> float:
        size = (m + n) / 2 - 1
        return (auc - p) ** 2 - z * z * p * (1 - p) * (1 + size * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)

    low = 0.0 if auc <= 1e-12 else float(optimize.brentq(excess, 1e-15, auc - 1e-13))
    high = 1.0 if auc >= 1 - 1e-12 else float(optimize.brentq(excess, auc + 1e-13, 1 - 1e-15))
    return auc, low, high


def paired_greater(a: Values, b: Values) -> float:
    """One-sided p-value of "mean(a) is not above mean(b)" for paired samples: a sign-flip permutation test."""
    a, b = _paired(a, b)
    if np.array_equal(a, b):
        return 1.0
    result = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def paired_interval(a: Values, b: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of mean(a) - mean(b) for paired samples: the percentile bootstrap of the differences.

    Where all differences are equal the bootstrap knows no spread, and the interval is that one point.
    """
    a, b = _paired(a, b)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if len(a) == 1:
        raise ValueError("a and b must hold at least two pairs: one says nothing about their spread")
    result = stats.bootstrap(
        (a - b,), np.mean, n_resamples=_RESAMPLES, confidence_level=confidence, method="percentile",
        batch=max(1, 1_000_000 // len(a)), rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _paired(a: Values, b: Values) -> tuple[Values, Values]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"a and b must be vectors of one length, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a and b must be finite")
    return a, b


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: compare the adjusted p-values with the level of the whole family."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(p) for p in adjusted]
