"""The midpoint noise level: where half of what a model knows is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from snnrobust import checks, figures
from snnrobust.codesign.noise_curve import NoiseCurve

__all__ = ["Midpoint", "fit_midpoint", "plot_midpoints"]

Axis = Literal["log", "linear"]
Values = NDArray[np.float64]


def logistic(sigma: Values, midpoint: float, slope: float, top: float, bottom: float, axis: Axis) -> Values:
    r"""``bottom`` + (``top`` - ``bottom``) times :math:`1 / (1 + (\sigma / m)^k)` or :math:`1 / (1 + e^{k (\sigma - m)})`."""
    if axis == "log":
        with np.errstate(divide="ignore"):
            z = slope * (np.log(sigma) - np.log(midpoint))
    else:
        z = slope * (sigma - midpoint)
    return np.asarray(bottom + (top - bottom) * special.expit(-z))


@dataclass(frozen=True, eq=False)
class Midpoint:
    """A fitted curve.

    Attributes:
        sigma: The midpoint noise level m.
        low, high: Its bootstrap interval.
        slope: k.
        error: Root mean square of measured less fitted accuracy.
        curve: What it was fitted to.
        axis: As given.
    """

    sigma: float
    low: float
    high: float
    slope: float
    error: float
    curve: NoiseCurve
    axis: Axis

    def accuracy(self, sigma: float | Values) -> Values:
        """The fitted accuracy at ``sigma``."""
        clean, chance = self.curve.clean, self.curve.chance
        return logistic(np.asarray(sigma, dtype=np.float64), self.sigma, self.slope, clean, chance, self.axis)

    def __str__(self) -> str:
        return (
            f"midpoint noise level {self.sigma:.3g} [{self.low:.3g}, {self.high:.3g}], "
            f"clean {100 * self.curve.clean:.1f} %, fitted to {100 * self.error:.1f} points"
        )


def fit_midpoint(
    curve: NoiseCurve,
    *,
    axis: Axis = "log",
    resamples: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
) -> Midpoint:
    r"""Fit a logistic between clean accuracy and chance by least squares; its midpoint m is the noise level of half the fall.

    .. math:: a(\sigma) = c + (a_0 - c)\, \frac{1}{1 + (\sigma / m)^k}

    with :math:`a_0` the measured accuracy without noise, c = 1 / K and k > 0: a logistic in :math:`\log \sigma`, exact at 0.
    ``axis="linear"`` is a logistic in :math:`\sigma`, whose value at 0 is a little below :math:`a_0`.

    The interval is a percentile bootstrap over samples and chips together (each chip and each sample drawn with replacement, for
    all noise levels alike). It knows nothing of training seeds.

    Args:
        curve: From :func:`~snnrobust.codesign.accuracy_over_noise`; the noise has to be strong enough that the accuracy falls
            below the middle, with at least three strengths above 0.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: too few strengths, a model no better than chance without noise, or a curve that never falls to the middle
            or has fallen below it at the weakest noise.

    Source: that On Hardening DNNs against Noisy Computations (Wang, Borras, Klein and Froening, arXiv:2501.14531) judges by a
    midpoint of a logistic is from memory, **not verified**; asymptotes, axis and fit are ours.
    """
    if not isinstance(curve, NoiseCurve):
        raise TypeError(f"curve must be a NoiseCurve, from accuracy_over_noise(...), got {type(curve).__name__}")
    checks.choice("axis", axis, get_args(Axis))
    checks.count("resamples", resamples, low=20)
    checks.count("seed", seed, low=0)
    checks.number("confidence", confidence, 0.0, 1.0, exclusive_low=True)
    sigmas, chance = np.array(curve.sigmas), curve.chance
    _refuse(curve)
    accuracy = curve.accuracy
    middle, slope = _fit(sigmas, accuracy, chance, axis)
    fitted = logistic(sigmas, middle, slope, curve.clean, chance, axis)
    rng, (_, chips, n) = np.random.default_rng(seed), curve.right.shape
    found = []
    for _ in range(resamples):
        of_chips, of_samples = rng.integers(chips, size=chips), rng.integers(n, size=n)
        again = curve.right[:, of_chips].mean(1, dtype=np.float64)[:, of_samples].mean(1)
        if again[0] > chance:  # a resample may have lost what little there was
            found.append(_fit(sigmas, again, chance, axis, (middle, slope))[0])
    if len(found) < 0.9 * resamples:
        raise ValueError(
            f"the accuracy without noise is above chance in {len(found)} of {resamples} resamples only: use more samples"
        )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail])
    return Midpoint(
        middle, float(low), float(high), slope, float(np.sqrt(((fitted - accuracy) ** 2).mean())), curve, axis
    )


def _refuse(curve: NoiseCurve) -> None:
    accuracy, middle = curve.accuracy, (curve.clean + curve.chance) / 2
    if len(curve.sigmas) < 4:
        raise ValueError(f"sigmas must hold at least three strengths above 0 for a fit, got {curve.sigmas}")
    if curve.intervals()[0, 0] <= curve.chance:
        raise ValueError(
            f"the curve is flat: {100 * curve.clean:.1f} % without noise is not above chance ({100 * curve.chance:.1f} %): "
            "train the model, or measure on more samples"
        )
    if accuracy.min() > middle:
        raise ValueError(
            f"the curve never falls: at sigma {curve.sigmas[-1]:g} the accuracy is {100 * accuracy[-1]:.1f} %, above the middle "
            f"of {100 * middle:.1f} %: add stronger noise to sigmas"
        )
    if accuracy[1] < middle:
        raise ValueError(
            f"the weakest noise, sigma {curve.sigmas[1]:g}, leaves {100 * accuracy[1]:.1f} %, below the middle of "
            f"{100 * middle:.1f} %: add weaker noise to sigmas"
        )


def _fit(
    sigmas: Values, accuracy: Values, chance: float, axis: Axis, start: tuple[float, float] | None = None
) -> tuple[float, float]:
    """m and k. Of the shares of what there is to lose, which lie between 1 and 0."""
    share = (accuracy - chance) / (accuracy[0] - chance)
    unit = sigmas[int(np.argmin(np.abs(share[1:] - 0.5))) + 1]  # the strength nearest the middle
    middle, slope = (unit, 2.0 if axis == "log" else 4.0 / unit) if start is None else start

    def curve(s: Values, log_m: float, log_k: float) -> Values:  # both positive
        return logistic(s, unit * np.exp(log_m), np.exp(log_k) / (1.0 if axis == "log" else unit), 1.0, 0.0, axis)

    first = [np.log(middle / unit), np.log(slope * (1.0 if axis == "log" else unit))]
    bound = np.log(1e3)
    (log_m, log_k), _ = optimize.curve_fit(
        curve, sigmas, share, p0=np.clip(first, -bound, bound), bounds=(-1.01 * bound, 1.01 * bound)
    )
    return float(unit * np.exp(log_m)), float(np.exp(log_k) / (1.0 if axis == "log" else unit))


def plot_midpoints(path: str | Path, midpoints: Mapping[str, Midpoint]) -> None:
    """Measured accuracies with their intervals, the fitted curves, and the midpoints as vertical lines, by name."""
    if not isinstance(midpoints, Mapping) or not midpoints:
        raise ValueError(f"midpoints must map names to Midpoints, at least one, got {midpoints!r:.80}")
    with figures.style():
        made = figures.figure(7.0, 4.4)
        axes = made.add_subplot()
        for i, (name, found) in enumerate(midpoints.items()):
            colour, marker = figures.SERIES[i % len(figures.SERIES)], figures.MARKERS[i % len(figures.MARKERS)]
            sigmas, accuracy = np.array(found.curve.sigmas)[1:], 100 * found.curve.accuracy[1:]
            low, high = 100 * found.curve.intervals()[1:].T
            spread = np.maximum([accuracy - low, high - accuracy], 0)
            axes.errorbar(sigmas, accuracy, spread, fmt=marker, color=colour, label=f"{name}: {found.sigma:.2g}")
            fine = np.geomspace(sigmas[0], sigmas[-1], 200)
            axes.plot(fine, 100 * found.accuracy(fine), color=colour)
            axes.axvline(found.sigma, color=colour, linestyle=":")
        axes.set(xscale="log", xlabel="noise at the accumulator, sigma", ylabel="accuracy, %", ylim=(0, 100))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.legend(title="midpoint noise level")
        figures.save(made, path)
