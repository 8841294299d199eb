"""A chip's accuracy, told from its signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from snnrobust import checks
from snnrobust.draws import derive

__all__ = ["AccuracyPredictor", "accuracy_predictor", "ridge"]

Values = NDArray[np.float64]
Kind = Literal["ridge", "gp"]
ALPHAS = tuple(float(a) for a in np.logspace(-3, 4, 15))
"""Of the penalty, in units of the number of features."""


def ridge(x: Values, y: Values, alphas: tuple[float, ...] = ALPHAS) -> tuple[Values, Values, float]:
    r"""Ridge regression with an intercept, its penalty chosen by exact leave-one-out errors.

    .. math:: \min_{w, b} \sum_i (y_i - b - w^\top x_i)^2 + \alpha S \|w\|^2, \qquad
        e_i^\text{loo} = \frac{y_i - \hat y_i}{1 - H_{ii}}

    Solved in the ``n x n`` Gram matrix of centred rows, since signatures are longer than fleets are large.

    Args:
        x: ``[n, S]``.
        y: ``[n]``, or ``[n, m]`` with one penalty for all.
        alphas: Penalties to choose from, in units of S.

    Returns:
        Coefficients ``[S, m]`` or ``[S]``, intercept ``[m]`` or a scalar, and :math:`\alpha`.
    """
    n, features = x.shape
    mean_x, mean_y = x.mean(0), y.mean(0)
    xc, yc = x - mean_x, (y - mean_y).reshape(n, -1)
    values, vectors = np.linalg.eigh(xc @ xc.T)
    values, rotated = np.maximum(values, 0.0), vectors.T @ yc
    best = (np.inf, alphas[0])
    for alpha in alphas:
        shrunk = values / (values + alpha * features)
        fitted = vectors @ (shrunk[:, None] * rotated)
        leverage = (vectors**2) @ shrunk + 1.0 / n
        error = float((((yc - fitted) / np.maximum(1.0 - leverage, 1e-12)[:, None]) ** 2).mean())
        best = min(best, (error, alpha))
    alpha = best[1]
    w = xc.T @ (vectors @ (rotated / (values + alpha * features)[:, None]))
    w = w.reshape(features, *y.shape[1:])
    return w, mean_y - mean_x @ w, alpha


@dataclass(frozen=True, eq=False)
class AccuracyPredictor:
    """``predict(signatures)``, and how far off it is on chips that it has not seen.

    Attributes:
        kind: ``"ridge"`` or ``"gp"``.
        alpha: Chosen penalty of the ridge; NaN for the GP.
        error: Mean absolute cross-validated error.
        r2: Cross-validated: 1 minus the residual over the total sum of squares; below 0 the mean would do better.
        chips: How many it was made from.
    """

    kind: Kind
    alpha: float
    error: float
    r2: float
    chips: int
    length: int
    _predict: Callable[[Values], Values]

    def predict(self, signatures: Values) -> Values:
        """Accuracy of each row of ``[n, S]``, within [0, 1]."""
        signatures = np.asarray(signatures, dtype=np.float64)
        if signatures.ndim != 2 or signatures.shape[1] != self.length:
            raise ValueError(
                f"signatures must be [n, {self.length}] as those that the predictor was made from, got {signatures.shape}: use "
                "the same images and chips of the same model"
            )
        return np.clip(self._predict(signatures), 0.0, 1.0)


def accuracy_predictor(
    signatures: Values, accuracies: Values, *, kind: Kind = "ridge", folds: int = 5, seed: int = 0
) -> AccuracyPredictor:
    """From signatures ``[n, S]`` and accuracies ``[n]`` in [0, 1] of the same chips.

    Signatures are standardized and cut off at 3 standard deviations.

    The reported error is that of ``folds`` chips-out folds, within each of which everything is
    chosen anew.

    Args:
        kind: ``"ridge"``: :func:`ridge`; ``"gp"``: a Gaussian process (scikit-learn), squared-exponential kernel and noise, whose
            length and amplitudes maximize the likelihood.

    Raises:
        ValueError: shapes that do not fit, fewer than ``2 * folds`` chips, or accuracies that are all the same.
    """
    checks.choice("kind", kind, get_args(Kind))
    x, y = np.asarray(signatures, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"signatures must be [n, S] and accuracies [n], got shapes {x.shape} and {y.shape}")
    if not np.isfinite(x).all() or not ((y >= 0) & (y <= 1)).all():
        raise ValueError("signatures must be finite and accuracies within [0, 1]: sort out chips that put out NaN")
    if len(y) < 2 * checks.count("folds", folds, low=2):
        raise ValueError(f"{len(y)} chips are too few for {folds} folds: give at least {2 * folds}, or fewer folds")
    if np.ptp(y) == 0:
        raise ValueError(
            f"all {len(y)} chips have the accuracy {y[0]:g}, so there is nothing to predict: measure it on more images, or let "
            "the chips vary more"
        )
    fit = _ridge if kind == "ridge" else _gp
    held = np.empty_like(y)
    order = np.random.default_rng(derive(seed, "folds")).permutation(len(y))
    for fold in np.array_split(order, folds):
        rest = np.setdiff1d(order, fold)
        held[fold] = np.clip(fit(x[rest], y[rest])[0](x[fold]), 0.0, 1.0)
    predict, alpha = fit(x, y)
    residual = float(((held - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return AccuracyPredictor(kind, alpha, float(np.abs(held - y).mean()), 1.0 - residual, len(y), x.shape[1], predict)


class Standard:
    """To mean 0 and standard deviation 1 on ``x`` ``[n, S]``, cut off at 3; what does not vary there becomes 0 everywhere.

    A neuron that is silent on all training chips but one would otherwise be anything on a new chip.
    """

    def __init__(self, x: Values) -> None:
        self.mean, scale = x.mean(0), x.std(0)
        varies = scale > 1e-12 * np.maximum(1.0, np.abs(self.mean))
        self.inverse = np.where(varies, 1.0 / np.where(varies, scale, 1.0), 0.0)

    def __call__(self, x: Values) -> Values:
        scaled: Values = np.clip((x - self.mean) * self.inverse, -3.0, 3.0)
        return scaled


def _ridge(x: Values, y: Values) -> tuple[Callable[[Values], Values], float]:
    standard = Standard(x)
    w, b, alpha = ridge(standard(x), y)
    return lambda z: standard(z) @ w + b, alpha


def _gp(x: Values, y: Values) -> tuple[Callable[[Values], Values], float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    standard = Standard(x)
    length = float(np.sqrt(x.shape[1]))
    kernel = ConstantKernel(1.0) * RBF(length, (0.1 * length, 1e3 * length)) + WhiteKernel(0.1, (1e-6, 1e2))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is a flat direction, not a failure
        process.fit(standard(x), y)
    return lambda z: np.asarray(process.predict(standard(z)), dtype=np.float64), float("nan")
