"""Intervals and tests for accuracies over samples; the work is scipy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["holm", "mean_interval", "paired_greater", "paired_interval"]

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
