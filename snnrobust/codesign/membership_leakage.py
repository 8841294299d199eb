"""What several victims of one recipe give away about their training samples, beside how accurate they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snnrobust import checks
from snnrobust.attacks import MembershipReport
from snnrobust.attacks.membership_report import Estimate

__all__ = ["Leakage", "Verdicts", "over_victims"]


@dataclass(frozen=True)
class Verdicts:
    r"""Members and non-members told apart at one threshold, as if there were as many of the one as of the other.

    .. math:: \text{accuracy} = \tfrac12 (TPR + 1 - FPR), \qquad
        F_1 = \frac{2 \, TPR}{1 + TPR + FPR}

    which are the accuracy and the F1 of the class "member" on a balanced set, whatever the sizes of the two.
    """

    accuracy: float
    tpr: float
    fpr: float
    f1: float


@dataclass(frozen=True, eq=False)
class Leakage:
    """Membership inference on one kind of model, of several victims (training seeds).

    Args:
        name: Of the kind, such as ``"float"`` or ``"2 bits"``.
        checkpoint: Which of the models along a training was attacked, -1 for the last.
        on_members, on_others, on_pool: Accuracy of each victim on its training samples, on the non-members, and on the
            attacker's pool, which it has not seen either: controls are matched on the pool and reported on the non-members.
        reports: By attack, one for each victim.
        matched: Of a control: whether it is at least as accurate on the pool as what it was matched with.
    """

    name: str
    checkpoint: int
    on_members: tuple[float, ...]
    on_others: tuple[float, ...]
    on_pool: tuple[float, ...]
    reports: Mapping[str, tuple[MembershipReport, ...]] = field(repr=False)
    matched: bool | None = None

    def values(self, attack: str, measure: str) -> tuple[float, ...]:
        """One for each victim.

        Args:
            attack: A key of ``reports``.
            measure: ``"auc"``, ``"balanced_accuracy"`` (chosen on one half, judged on the other), ``"calibrated"`` (at the
                attack's own threshold), or ``"tpr at 0.001"`` and so on for the rates that were asked for. NaN where the report
                says that it cannot be resolved.
        """
        return tuple(_value(report, measure) for report in self._of(attack))

    def verdicts(self, attack: str, threshold: float = 0.0) -> tuple[Verdicts, ...]:
        """At a threshold that was chosen without these samples: 0 is that of the shadows' logistic regression."""
        found = []
        for report in self._of(attack):
            tpr, fpr = float((report.members > threshold).mean()), float((report.non_members > threshold).mean())
            found.append(Verdicts((tpr + 1 - fpr) / 2, tpr, fpr, 2 * tpr / (1 + tpr + fpr)))
        return tuple(found)

    def strongest(self, measure: str = "auc") -> str:
        """The attack with the largest mean over victims: chosen in hindsight, so optimistic for the attacker."""
        return max(self.reports, key=lambda attack: _or_less(float(np.mean(self.values(attack, measure)))))

    def json(self) -> dict[str, Any]:
        """Numbers alone, without the scores."""
        attacks = {}
        for attack, reports in self.reports.items():
            measures = ["auc", "balanced_accuracy", *(f"tpr at {at.fpr:g}" for at in reports[0].at_fpr)]
            measures += ["calibrated"] * (reports[0].calibrated is not None)
            attacks[attack] = {m: [_or_none(v) for v in self.values(attack, m)] for m in measures}
            if reports[0].calibrated is not None:
                attacks[attack] |= {
                    key: [getattr(v, key) for v in self.verdicts(attack)] for key in ("tpr", "fpr", "f1")
                }
        known = {key: list(getattr(self, key)) for key in ("on_members", "on_others", "on_pool")}
        return {"name": self.name, "checkpoint": self.checkpoint, "matched": self.matched, **known, "attacks": attacks}

    def __str__(self) -> str:
        def text(values: tuple[float, ...]) -> str:
            found = over_victims(values)
            spread = "" if len(values) < 2 else f" ({found.low:.3f} to {found.high:.3f})"
            return "not resolvable" if math.isnan(found.value) else f"{found.value:.3f}{spread}"

        lines = [
            f"{self.name}: {len(self.on_others)} victims, 95 % intervals over them",
            f"  accuracy on members {text(self.on_members)}, on others {text(self.on_others)}",
        ]
        for attack, reports in self.reports.items():
            rates = [f"tpr at {at.fpr:g}" for at in reports[0].at_fpr]
            cells = [
                f"{m.replace('_', ' ')} {text(self.values(attack, m))}" for m in ("auc", "balanced_accuracy", *rates)
            ]
            lines.append(f"  {attack}: {', '.join(cells)}")
        return "\n".join(lines)

    def _of(self, attack: str) -> tuple[MembershipReport, ...]:
        return self.reports[checks.choice("attack", attack, self.reports)]


def over_victims(values: tuple[float, ...] | list[float], confidence: float = 0.95) -> Estimate:
    """Mean and Student's interval over victims; of one victim the interval is the value itself, for it says nothing."""
    from scipy import stats

    if not len(values):
        raise ValueError("values is empty: give one for each victim")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, mean, mean)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def _value(report: MembershipReport, measure: str) -> float:
    if measure in ("auc", "balanced_accuracy"):
        return float(getattr(report, measure).value)
    if measure == "calibrated":
        if report.calibrated is None:
            raise ValueError(f"{report.attack} has no threshold of its own: ask for 'balanced_accuracy'")
        return float(report.calibrated.value)
    rates = {f"tpr at {at.fpr:g}": at.tpr for at in report.at_fpr}
    checks.choice("measure", measure, ("auc", "balanced_accuracy", "calibrated", *rates))
    found = rates[measure]
    return math.nan if found is None else float(found.value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_less(value: float) -> float:
    return -math.inf if math.isnan(value) else value
