"""How well scores tell the training samples of a model from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnrobust import checks, figures
from snnrobust.draws import derive
from snnrobust.statistics import auc_interval, exact_interval, mean_interval

__all__ = ["AtFPR", "Estimate", "MembershipReport", "choose_threshold", "membership_report"]

Scores = NDArray[np.float64]
FEW = 10  # false positives below which the threshold itself is uncertain


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AtFPR:
    """The share of members that is found at a rate of false alarms.

    Args:
        fpr: The rate that is allowed.
        tpr: Share of members above the smallest threshold that allows it; None where the non-members are too few to tell. Its
            interval (Clopper and Pearson) takes the threshold as given.
        found: The rate at that threshold, with its own interval: how sure ``fpr`` itself is.
        note: What to bear in mind.
    """

    fpr: float
    tpr: Estimate | None
    found: Estimate | None
    note: str


@dataclass(frozen=True, eq=False)
class MembershipReport:
    r"""One attack on one model.

    Args:
        attack: Its name.
        members, non_members: Scores, higher for samples that the attack takes for training samples.
        auc: Area under the ROC curve, interval of DeLong.
        balanced_accuracy: (TPR + 1 - FPR) / 2 with the threshold chosen on one half of the samples and judged on the other,
            both ways round. Chosen and judged on the same samples it is above 1/2 for scores that know nothing.
        advantage: TPR - FPR, likewise.
        balanced_accuracy_max, advantage_max: The largest over all thresholds and both directions, chosen on what they are
            measured on: optimistic, as usually published. :math:`\max |TPR - FPR|` and :math:`(1 + \max |TPR - FPR|) / 2`.
        at_fpr: TPR at low rates of false alarms.
        calibrated: Balanced accuracy with the threshold that the attack brings along, such as one from shadow models.
        confidence: Of all intervals, which are over samples: one model, one training.
    """

    attack: str
    members: Scores = field(repr=False)
    non_members: Scores = field(repr=False)
    auc: Estimate
    balanced_accuracy: Estimate
    advantage: Estimate
    balanced_accuracy_max: float
    advantage_max: float
    at_fpr: tuple[AtFPR, ...]
    calibrated: Estimate | None = None
    confidence: float = 0.95

    def roc(self) -> tuple[Scores, Scores]:
        """FPR and TPR at all thresholds, from (0, 0) to (1, 1)."""
        return _roc(self.members, self.non_members)[:2]

    def __str__(self) -> str:
        lines = [
            f"{self.attack}: {len(self.members):,} members, {len(self.non_members):,} non-members, "
            f"{100 * self.confidence:g} % intervals over samples",
            f"  AUC                {_text(self.auc)}",
            f"  balanced accuracy  {_text(self.balanced_accuracy)}, judged; best in hindsight {self.balanced_accuracy_max:.3f}",
            f"  advantage          {_text(self.advantage)}, judged; best in hindsight {self.advantage_max:.3f}",
        ]
        if self.calibrated is not None:
            lines.append(f"  balanced accuracy  {_text(self.calibrated)}, at the attack's own threshold")
        for at in self.at_fpr:
            value = "not resolvable" if at.tpr is None else _text(at.tpr)
            lines.append(f"  TPR at {100 * at.fpr:g} % FPR  {value}{'; ' + at.note if at.note else ''}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """The ROC curve, both axes logarithmic; the ending of ``path`` is the format."""
        fpr, tpr = self.roc()
        low = 0.5 / max(len(self.members), len(self.non_members))
        with figures.style():
            made = figures.figure(4.0, 3.6)
            axes = made.subplots()
            axes.plot([low, 1], [low, 1], color=figures.MUTED, lw=1, ls=":", label="guessing")
            axes.step(fpr.clip(low), tpr.clip(low), where="post", color=figures.SERIES[0], label=self.attack)
            axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1.05))
            axes.set_xlabel("false positive rate")
            axes.set_ylabel("true positive rate")
            axes.grid(color=figures.GRID, lw=0.8)
            axes.legend(loc="lower right")
            figures.save(made, path)


def membership_report(
    attack: str,
    members: Scores,
    non_members: Scores,
    *,
    fpr: Sequence[float] = (0.001, 0.01),
    threshold: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> MembershipReport:
    """Judge scores, higher for members.

    Args:
        attack: A name.
        members, non_members: ``[m]`` and ``[n]``; infinity is allowed, NaN is not.
        fpr: Rates of false alarms at which the TPR is reported.
        threshold: Of the attack itself, chosen without these samples: above it is a member.
        confidence: Of the intervals.
        seed: Of the halves on which thresholds are chosen and judged.
    """
    members, non_members = _vector("members", members), _vector("non_members", non_members)
    checks.number("confidence", confidence, 0.5, 0.9999)
    checks.count("seed", seed, low=0)
    for rate in fpr:
        checks.number("fpr", rate, 0.0, 1.0, exclusive_low=True)
    f, t, _ = _roc(members, non_members)
    best = float(np.abs(t - f).max())
    balanced = _judged(members, non_members, confidence, seed)
    return MembershipReport(
        attack, members, non_members, Estimate(*auc_interval(members, non_members, confidence)), balanced,
        Estimate(*(2 * v - 1 for v in balanced)), (1 + best) / 2, best,
        tuple(_at(rate, members, non_members, confidence) for rate in fpr),
        None if threshold is None else _balanced(members > threshold, non_members > threshold, confidence), confidence,
    )  # fmt: skip


def _vector(name: str, scores: Scores) -> Scores:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < 4 or np.isnan(scores).any():
        raise ValueError(f"{name} must be at least 4 scores [n] without NaN, got shape {scores.shape}")
    return scores


def _roc(members: Scores, non_members: Scores) -> tuple[Scores, Scores, Scores]:
    """FPR, TPR and thresholds ("above it is a member"), from the highest threshold to the lowest."""
    values = np.unique(np.concatenate([members, non_members]))  # rising
    with np.errstate(invalid="ignore", over="ignore"):  # between infinities
        middle = values[:-1] + (values[1:] - values[:-1]) / 2
    # between neighbours, or the lower of them where there is no number between
    middle = np.where((middle >= values[:-1]) & (middle < values[1:]), middle, values[:-1])
    thresholds = np.concatenate([[np.inf], middle[::-1], [-np.inf]])
    above = [
        1 - np.searchsorted(np.sort(s), np.concatenate([values[::-1][:1], middle[::-1]]), side="right") / len(s)
        for s in (non_members, members)
    ]
    return np.append(above[0], 1.0), np.append(above[1], 1.0), thresholds


def choose_threshold(members: Scores, non_members: Scores) -> tuple[float, bool]:
    """The threshold of the largest |TPR - FPR|, and whether members lie above it."""
    fpr, tpr, thresholds = _roc(members, non_members)
    best = int(np.abs(tpr - fpr).argmax())
    return float(thresholds[best]), bool(tpr[best] >= fpr[best])


def _judged(members: Scores, non_members: Scores, confidence: float, seed: int) -> Estimate:
    """Balanced accuracy, the threshold of each half chosen on the other."""
    rng = np.random.default_rng(derive(seed, "membership halves"))
    halves = [[s[part] for part in np.array_split(rng.permutation(len(s)), 2)] for s in (members, non_members)]
    flagged: list[list[NDArray[np.bool_]]] = [[], []]
    for chosen, judged in ((0, 1), (1, 0)):
        threshold, above = choose_threshold(halves[0][chosen], halves[1][chosen])
        for kind in (0, 1):
            flagged[kind].append((halves[kind][judged] > threshold) == above)
    return _balanced(np.concatenate(flagged[0]), np.concatenate(flagged[1]), confidence)


def _balanced(found: NDArray[np.bool_], alarmed: NDArray[np.bool_], confidence: float) -> Estimate:
    """(TPR + TNR) / 2; Wilson's intervals of the two, combined as Newcombe 1998 does for a difference."""
    tpr, tnr = found.mean(), 1 - alarmed.mean()
    (l1, u1), (l2, u2) = (mean_interval(v.astype(np.float64), confidence) for v in (found, ~alarmed))
    value = float(tpr + tnr) / 2
    low, high = np.hypot(tpr - l1, tnr - l2) / 2, np.hypot(u1 - tpr, u2 - tnr) / 2
    return Estimate(value, max(0.0, value - float(low)), min(1.0, value + float(high)))


def _at(fpr: float, members: Scores, non_members: Scores, confidence: float) -> AtFPR:
    n = len(non_members)
    allowed = floor(fpr * n * (1 + 1e-12))  # 0.1 of 10 is 1
    if allowed < 1:
        return AtFPR(fpr, None, None, f"it takes at least {1 / fpr:,.0f} non-members, there are {n:,}")
    threshold = -np.inf if allowed >= n else np.sort(non_members)[::-1][allowed]
    hits, alarms = int((members > threshold).sum()), int((non_members > threshold).sum())
    if allowed >= n:
        hits, alarms = len(members), n
    found = Estimate(alarms / n, *exact_interval(alarms, n, confidence))
    note = f"the threshold rests on {alarms} false alarms: FPR {_text(found, '.2%')}" if alarms < FEW else ""
    return AtFPR(fpr, Estimate(hits / len(members), *exact_interval(hits, len(members), confidence)), found, note)


def _text(e: Estimate, form: str = ".3f") -> str:
    return f"{e.value:{form}} ({e.low:{form}} to {e.high:{form}})"
