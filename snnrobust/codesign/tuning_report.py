"""Yield of a fleet before and after tuning, on chips and samples that the tuner has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from snnrobust import checks
from snnrobust.codesign.chip_tuning import ChipTuner, chip_accuracy, chip_digest, tune
from snnrobust.codesign.signature import Values
from snnrobust.data import Data, take
from snnrobust.data.disjoint import sample_digests
from snnrobust.statistics import mean_interval

__all__ = ["TuningReport", "Yield", "chip_yield", "judge_tuning"]


@dataclass(frozen=True)
class Yield:
    """Share of chips that are good enough, with Wilson's 95 % interval over chips."""

    share: float
    low: float
    high: float
    chips: int

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def chip_yield(accuracies: Values, threshold: float) -> Yield:
    """Share of chips whose accuracy is at least ``threshold``; ``accuracies`` true or predicted, in [0, 1]."""
    checks.number("threshold", threshold, 0.0, 1.0)
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"accuracies must be a vector in [0, 1], one for each chip, got shape {values.shape}")
    good = (values >= threshold).astype(np.float64)
    return Yield(float(good.mean()), *mean_interval(good), len(good))


@dataclass(frozen=True, eq=False)
class TuningReport:
    """Accuracies ``[n]`` of the judged chips in [0, 1], ``predicted_*`` from signatures alone, and the threshold of the yield."""

    threshold: float
    before: Values
    after: Values
    predicted_before: Values
    predicted_after: Values
    clusters: Values

    @property
    def yield_before(self) -> Yield:
        return chip_yield(self.before, self.threshold)

    @property
    def yield_after(self) -> Yield:
        return chip_yield(self.after, self.threshold)

    @property
    def error(self) -> float:
        """Mean absolute error of the accuracy predicted for untuned chips."""
        return float(np.abs(self.predicted_before - self.before).mean())

    @property
    def r2(self) -> float:
        """1 minus residual over total sum of squares, for untuned chips; NaN where they are all alike."""
        total = float(((self.before - self.before.mean()) ** 2).sum())
        return 1.0 - float(((self.predicted_before - self.before) ** 2).sum()) / total if total > 0 else float("nan")

    def json(self) -> dict[str, Any]:
        """Numbers and lists alone."""
        lists = {
            name: getattr(self, name).tolist()
            for name in ("before", "after", "predicted_before", "predicted_after", "clusters")
        }
        return {"threshold": self.threshold, "error": self.error, "r2": self.r2, **lists}

    def __str__(self) -> str:
        gained = int(((self.before < self.threshold) & (self.after >= self.threshold)).sum())
        lost = int(((self.before >= self.threshold) & (self.after < self.threshold)).sum())
        return (
            f"yield at {100 * self.threshold:.1f} %: {self.yield_before} before, {self.yield_after} after tuning "
            f"({len(self.before)} chips: {gained} gained, {lost} lost)\n"
            f"accuracy: {100 * self.before.mean():.1f} % before (lowest {100 * self.before.min():.1f}), "
            f"{100 * self.after.mean():.1f} % after (lowest {100 * self.after.min():.1f})\n"
            f"predicted from the signature: mean error {100 * self.error:.1f} points, R2 {self.r2:.2f}"
        )


def judge_tuning(
    tuner: ChipTuner, chips: Iterable[nn.Module], data: Data, *, threshold: float, below: float | None = None
) -> TuningReport:
    """Tune every chip and measure it before and after on ``data``.

    Args:
        chips: Others than those that the tuner has learnt from.
        data: Labelled samples, others than those that the tuner has learnt from.
        threshold: Of the yield, an accuracy in [0, 1].
        below: As in :func:`~snnrobust.codesign.tune`.

    Raises:
        ValueError: a chip or a sample that the tuner has seen.
    """
    checks.number("threshold", threshold, 0.0, 1.0)
    x, y = take(data)
    known = sum(digest in tuner.samples for digest in sample_digests(x))
    if known:
        raise ValueError(
            f"{known} of the {len(x)} samples of data were used to make the tuner: judge it on others, such as test images"
        )
    rows: list[tuple[float, float, float, float, int]] = []
    for index, chip in enumerate(chips):
        if chip_digest(chip) in tuner.chips:
            raise ValueError(
                f"chip {index} was used to make the tuner: judge it on chips of other seeds, such as those from 1000 on"
            )
        tuned = tune(chip, tuner, below=below)
        row = tuner.signature(chip)
        told = tuner.predictor.predict(np.stack([row, tuner.signature(tuned)]))
        rows.append((chip_accuracy(chip, (x, y)), chip_accuracy(tuned, (x, y)), told[0], told[1], tuner.cluster(row)))
    if not rows:
        raise ValueError("chips is empty: give at least one chip")
    before, after, predicted_before, predicted_after, clusters = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return TuningReport(threshold, before, after, predicted_before, predicted_after, clusters)
