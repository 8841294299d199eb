"""Does the gradient point where the loss rises?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnrobust.attacks import EvolutionStrategies, margin
from snnrobust.evaluation.diagnosis.check import Check, Status, not_run
from snnrobust.evaluation.diagnosis.stronger import pixel_width
from snnrobust.evaluation.diagnosis.subject import Subject

__all__ = ["FIDELITY", "disattenuated", "fidelity"]

FIDELITY = 0.3
"""Cosine to the true direction below which a gradient is flagged."""
SAMPLES = 50
QUERIES = 400
"""A sample; half of them for each of two independent estimates."""
RELIABLE = 0.02
"""Least reliability of the estimate with which something can be said."""
_RESAMPLES = 1999

Values = NDArray[np.float64]


def disattenuated(cosines: Values, halves: Values) -> float:
    r"""Spearman's correction for a noisy estimate: :math:`\bar c / \sqrt{R}`, with :math:`R = 2 r / (1 + r)`.

    Args:
        cosines: Per sample, of the gradient and the mean of two estimates.
        halves: Per sample, of the two estimates; their mean is :math:`r`.
    """
    r = float(halves.mean())
    return float(cosines.mean()) / float(np.sqrt(2 * r / (1 + r))) if r > 0 else float("nan")


def fidelity(s: Subject) -> list[Check]:
    name, topic = "the gradient points where the margin rises", "fidelity"
    meaning = "Queries say that the margin rises in another direction than the gradient says: the attack goes astray."
    remedy = "Attack through the surrogate with the highest cosine; look for what falsifies the gradient."
    if not s.usable:
        return [not_run(name, "there is no gradient", meaning, remedy, topic)]
    count = min(SAMPLES, len(s))
    x, y = s.x[:count], s.y[:count]
    width = pixel_width(s)
    estimate = EvolutionStrategies(QUERIES // 2, width, s.threat.bounds)
    own, _ = s.gradient(s.model, x, y, margin, s.stream("fidelity", count=count))
    first, second = (
        _unit(estimate(s.model, x, y, margin, s.stream("fidelity", half, count=count))[0]) for half in (1, 2)
    )
    answers = (first.square().sum(1) > 0) & (second.square().sum(1) > 0)
    cosines = (_unit(own) * _unit(first + second)).sum(1)[answers].cpu().numpy()
    halves = (first * second).sum(1)[answers].cpu().numpy()
    asked = f"{QUERIES + 2} queries for each of {count} samples, width {width:.3g}"
    r = float(halves.mean()) if len(halves) else 0.0
    if r < RELIABLE or len(halves) < 10:
        found = f"two estimates of it agree by a cosine of {r:.2f} only ({asked})"
        return [Check(name, "inconclusive", found, meaning, "Use more samples or a larger eps.", topic=topic)]
    value = disattenuated(cosines, halves)
    low, high, p = _bootstrap(cosines, halves)
    found = f"cosine {value:.2f} [{low:.2f}, {high:.2f}], {cosines.mean():.2f} before correction ({asked}; two halves: {r:.2f})"
    status: Status = "failed" if value < FIDELITY else "passed"
    return [Check(name, status, found, meaning, remedy, p, topic=topic)]


def _bootstrap(cosines: Values, halves: Values) -> tuple[float, float, float]:
    """95 % interval over samples, and the one-sided p-value of "at least ``FIDELITY``"."""
    rng = np.random.default_rng(0)
    index = rng.integers(len(cosines), size=(_RESAMPLES, len(cosines)))
    r = np.clip(halves[index].mean(1), 1e-6, None)
    values = cosines[index].mean(1) / np.sqrt(2 * r / (1 + r))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high), float((1 + (values >= FIDELITY).sum()) / (1 + _RESAMPLES))


def _unit(g: Tensor) -> Tensor:
    return torch.nn.functional.normalize(g.double().flatten(1), dim=1)
