"""Accuracy versus time steps of early exit, from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snnrobust import checks, figures
from snnrobust.data import Data, batches
from snnrobust.draws import device_of, draws, evaluating
from snnrobust.energy.operations import Operations
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.models.early_exit import confident
from snnrobust.models.truncation import check_classifier
from snnrobust.statistics import mean_interval

__all__ = ["CONFIDENCES", "Estimates", "ExitCurve", "exit_curve"]

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)

Values = NDArray[np.float64]


class Estimates(NamedTuple):
    """Means over samples with their 95 % intervals."""

    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True, eq=False)
class ExitCurve:
    """What early exit does to a model, over ``n`` samples and T time steps.

    Attributes:
        confidences: ``[M]``, ascending.
        accuracy, steps: Accuracy and mean number of time steps of the input-adaptive exit at each of ``confidences``.
        fixed: Accuracy if every sample stops at step 1, ..., T; the last is that of the whole model.
        confidence, correct: ``[n, T]``, confidence of the running output, and whether it is right.
        key: Of the draws.
    """

    confidences: Values
    accuracy: Estimates
    steps: Estimates
    fixed: Estimates
    confidence: Values
    correct: NDArray[np.bool_]
    key: int

    def exits(self, confidence: float) -> NDArray[np.int64]:
        """The step, 1 to T, at which each sample stops, ``[n]``."""
        return _exits(self.confidence, checks.number("confidence", confidence, 0.0, 1.0))

    def running(self, confidence: float) -> Values:
        """The share of samples for which step 1, ..., T is computed, ``[T]``; it adds up to the mean number of steps."""
        steps = np.arange(1, self.confidence.shape[1] + 1)
        return np.asarray((self.exits(confidence)[:, None] >= steps).mean(0))

    def table(self, operations: Operations | None = None) -> str:
        """The numbers as text.

        Args:
            operations: Of the model for the same samples, under the same draws; what stopping leaves of them then stands beside.

        Raises:
            ValueError: ``operations`` of another number of samples or time steps.
        """
        n, T = self.confidence.shape
        if operations is not None and (operations.samples, operations.time_steps) != (n, T):
            raise ValueError(
                f"operations must be of the {n} samples and {T} time steps of this curve, "
                f"got {operations.samples} and {operations.time_steps}"
            )

        def cost(steps: int | NDArray[np.int64]) -> str:
            if operations is None:
                return ""
            executed = operations.upto(steps)
            return f"{executed.mac:14,.0f}  {executed.ac:14,.0f}"

        heading = "" if operations is None else f"{'MAC':>14}  {'AC':>14}"
        lines = [f"exit at confidence    accuracy in %        {'mean steps':<20}{heading}"]
        for c, right, steps in zip(self.confidences, _rows(self.accuracy), _rows(self.steps), strict=True):
            mean = f"{steps[0]:.2f} [{steps[1]:.2f}, {steps[2]:.2f}]"
            lines.append(f"{c:<18g}    {_percent(*right):<18}   {mean:<20}{cost(self.exits(float(c)))}")
        lines += ["", f"all stop at step      {'accuracy in %':<41}{heading}"]
        lines += [f"{t:<18}    {_percent(*right):<41}{cost(t)}" for t, right in enumerate(_rows(self.fixed), 1)]
        lines = [line.rstrip() for line in lines]
        return "\n".join([*lines, "", f"n = {n} samples, {T} time steps, key {self.key}; 95 % intervals over samples"])

    def plot(self, path: str | Path) -> None:
        """Accuracy over the mean number of steps, input-adaptive and fixed, with 95 % intervals; format by the suffix."""
        from matplotlib.ticker import MaxNLocator

        T = self.confidence.shape[1]
        with figures.style():
            figure = figures.figure(5.2, 3.6)
            axes = figure.subplots()
            for x, right, colour, marker, name in (
                (np.arange(1.0, T + 1), self.fixed, figures.MUTED, "s", "all stop at this step"),
                (self.steps.mean, self.accuracy, figures.SERIES[0], "o", "each stops when confident"),
            ):
                mean, low, high = (100 * values for values in right)
                errors = np.clip([mean - low, high - mean], 0, None)
                axes.errorbar(x, mean, yerr=errors, color=colour, marker=marker, ms=4.5, lw=1.4, capsize=2, label=name)
            axes.set_xlim(0.5, T + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("mean time steps")
            axes.set_ylabel("accuracy in %")
            axes.grid(axis="y", color=figures.GRID, lw=0.8)
            axes.set_axisbelow(True)
            figure.legend(loc="outside lower center", ncols=2)
            figures.save(figure, path)


def exit_curve(
    model: SpikingClassifier,
    data: Data,
    confidences: Sequence[float] | Values = CONFIDENCES,
    *,
    batch_size: int = 256,
    key: int = 0,
) -> ExitCurve:
    """Accuracy and mean time steps of early exit at every confidence and of every fixed number of steps, from one pass.

    Args:
        model: Run in eval mode, under ``draws(model, key, sample_ids)``.
        data: All of it is used, the misclassified samples included.
        confidences: In [0, 1], a sequence or NumPy array of them.
        batch_size: Changes no draw of snnrobust's modules.
        key: Of the draws; one draw a sample.

    Raises:
        TypeError, ValueError: not a SpikingClassifier, bad data, labels outside the classes, NaN or infinity in running logits.
    """
    check_classifier(model)
    if isinstance(confidences, np.ndarray):
        confidences = confidences.tolist()
    if isinstance(confidences, str) or not isinstance(confidences, Sequence) or not confidences:
        raise TypeError(f"confidences must be a sequence such as [0.9, 0.99], got {confidences!r}")
    levels = np.array(sorted({checks.number("confidences", c, 0.0, 1.0) for c in confidences}))
    device, sure, right = device_of(model), [], []
    with torch.no_grad(), evaluating(model):
        for x, y, sample_ids in batches(data, checks.count("batch_size", batch_size)):
            x, y = x.to(device), y.to(device)
            with draws(model, key, sample_ids):
                steps = [(c, checks.logits(z, y).argmax(1) == y) for z, c in confident(model.stream(x))]
            sure.append(torch.stack([c for c, _ in steps], 1).cpu())
            right.append(torch.stack([r for _, r in steps], 1).cpu())
    confidence, correct = torch.cat(sure).numpy(), torch.cat(right).numpy()
    n, T = confidence.shape
    exits = [_exits(confidence, float(level)) for level in levels]
    return ExitCurve(
        confidences=levels,
        accuracy=_estimates([_share(correct[np.arange(n), steps - 1]) for steps in exits]),
        steps=_estimates([_mean_steps(steps, T) for steps in exits]),
        fixed=_estimates([_share(correct[:, t]) for t in range(T)]),
        confidence=confidence,
        correct=correct,
        key=key,
    )


def _exits(confidence: Values, level: float) -> NDArray[np.int64]:
    sure = confidence >= level
    sure[:, -1] = True
    return np.asarray(sure.argmax(1) + 1, dtype=np.int64)


def _share(correct: NDArray[np.bool_]) -> tuple[float, float, float]:
    return float(correct.mean()), *mean_interval(correct.astype(np.float64))


def _mean_steps(steps: NDArray[np.int64], T: int) -> tuple[float, float, float]:
    """Mean and percentile bootstrap. Resampling n samples of T values is a multinomial draw of the counts of each value."""
    n, levels = len(steps), np.arange(1.0, T + 1)
    counts = np.bincount(steps - 1, minlength=T)
    resampled = np.random.default_rng(0).multinomial(n, counts / n, size=4999) @ levels / n
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(steps.mean()), float(low), float(high)


def _estimates(rows: Sequence[tuple[float, float, float]]) -> Estimates:
    return Estimates(*(np.array(column) for column in zip(*rows, strict=True)))


def _rows(estimates: Estimates) -> list[tuple[float, float, float]]:
    return list(zip(*(values.tolist() for values in estimates), strict=True))


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
