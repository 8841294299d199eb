"""Does another attack find what the examined gradient misses?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnrobust.attacks.selection import Measurement
from snnrobust.evaluation.diagnosis.check import LEVEL, Check, Status
from snnrobust.evaluation.diagnosis.subject import Shares, Subject
from snnrobust.statistics import paired_greater

__all__ = ["HALF", "MATTERS", "compared", "progress", "union"]

MATTERS = 0.05
"""Least difference of two accuracies that matters, whatever its p-value."""
LARGE = 0.20
"""A difference of two accuracies that is a proof by itself, if it is significant."""
HALF = 0.5
"""Share of the way that another attack goes beyond noise, which the examined gradient has to go too."""


def progress(s: Subject, measured: Measurement) -> Shares:
    """Per sample, how much nearer to the boundary the margin is than noise of the same size leaves it; beyond nothing counts."""
    return (measured.margin.clamp(max=0.0) - s.noise().margin.clamp(max=0.0)).double().cpu().numpy()


def compared(
    s: Subject, name: str, others: Mapping[str, Measurement], meaning: str, remedy: str, topic: str, more: str = ""
) -> Check:
    r"""The check that no other attack is far stronger than the examined one.

    With :math:`a_i` and :math:`b_i` the :func:`progress` of the examined gradient and of the other attack at sample i, it fails
    if :math:`\bar a < \bar b / 2`, a paired one-sided test, and the accuracies differ by 5 points or more; or if they differ by
    20 points or more, significantly. The p-value is that of
    the most successful of the others, times their number. Another attack that is better by 5 points or more, significantly, but
    does not go twice as far, makes it inconclusive: the accuracy is too high, but the gradient is not hidden.
    """
    own, examined = s.shares(s.examined()), progress(s, s.examined())
    gaps = {label: float((own - s.shares(m)).mean()) for label, m in others.items()}
    best = max(gaps, key=lambda label: gaps[label])
    other = progress(s, others[best])
    p = min(1.0, len(others) * paired_greater(HALF * other, examined))
    p_weaker = min(1.0, len(others) * paired_greater(own, s.shares(others[best])))
    by = "it" if len(others) == 1 else f"{best}, the best of {len(others)}"
    found = (
        f"accuracy {own.mean():.1%} with the examined gradient, {s.accuracy(others[best]):.1%} with {by}; "
        f"beyond {s.noise_name} the margin moves by {examined.mean():.3g} and {other.mean():.3g}{more}"
    )
    if gaps[best] >= LARGE and p_weaker < LEVEL:
        p = min(p, p_weaker)
    matters = gaps[best] >= MATTERS
    weak: Status = "inconclusive" if matters and p_weaker < LEVEL else "passed"
    return Check(name, "failed" if matters else "passed", found, meaning, remedy, p, "proof", topic, weak)


def union(s: Subject, measured: Mapping[str, Measurement]) -> float:
    """The mean over samples of the worst share."""
    worst: Shares = np.min([s.shares(m) for m in measured.values()], axis=0)
    return float(worst.mean())
