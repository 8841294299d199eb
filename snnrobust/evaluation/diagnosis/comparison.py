"""Does another attack find what the examined gradient misses?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnrobust.attacks.selection import Measurement
from snnrobust.evaluation.diagnosis.check import LEVEL, Check, Status
from snnrobust.evaluation.diagnosis.subject import Shares, Subject
from snnrobust.statistics import paired_greater

__all__ = ["HALF", "MATTERS", "compared", "found_shares", "union"]

MATTERS = 0.05
"""Least difference of two accuracies that matters, whatever its p-value."""
HALF = 0.5
"""Share of what another attack finds beyond noise that the examined gradient has to find."""


def found_shares(s: Subject, measured: Measurement) -> Shares:
    """Per sample, what was found beyond noise of the same size: the share of draws that noise leaves right and the attack does not."""
    return s.shares(s.noise()) - s.shares(measured)


def compared(
    s: Subject, name: str, others: Mapping[str, Measurement], meaning: str, remedy: str, topic: str, more: str = ""
) -> Check:
    r"""The check that no other attack is far stronger than the examined one.

    With :math:`a_i` and :math:`b_i` what the examined gradient and the other attack find at sample i beyond noise, it fails if
    :math:`\bar a < \bar b / 2`, a paired one-sided test, and the accuracies differ by 5 points or more. The p-value is that of the best of
    the others, times their number. Another attack that is better by 5 points or more, significantly, but not by that much makes it
    inconclusive: the accuracy under attack is too high, and the gradient is not what hides it.
    """
    examined = found_shares(s, s.examined())
    gaps, halves, weaker = {}, {}, {}
    for label, measured in others.items():
        other = found_shares(s, measured)
        gaps[label] = float((other - examined).mean())
        halves[label] = paired_greater(HALF * other, examined)
        weaker[label] = paired_greater(other, examined)
    best = max(gaps, key=lambda label: gaps[label])
    p, p_weaker = (min(1.0, len(others) * tests[best]) for tests in (halves, weaker))
    by = "" if len(others) == 1 else f" of {best}, the best of {len(others)}"
    found = (
        f"accuracy {s.accuracy(s.examined()):.1%} with the examined gradient, {s.accuracy(others[best]):.1%} with that{by}; "
        f"beyond {s.noise_name} it finds {examined.mean():.1%} and {found_shares(s, others[best]).mean():.1%}{more}"
    )
    matters = gaps[best] >= MATTERS
    weak: Status = "inconclusive" if matters and p_weaker < LEVEL else "passed"
    status: Status = "failed" if matters else "passed"
    return Check(name, status, found, meaning, remedy, p, "proof", topic, weak)


def union(s: Subject, measured: Mapping[str, Measurement]) -> float:
    """The mean over samples of the worst share."""
    return float(np.min([s.shares(m) for m in measured.values()], axis=0).mean())
