"""What a check found, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from snnrobust.statistics import holm

__all__ = ["LEVEL", "Check", "Evidence", "MaskingReport", "Status", "Verdict", "not_run", "settled"]

Status = Literal["passed", "failed", "inconclusive", "not run"]
Evidence = Literal["proof", "flag"]
Verdict = Literal["masked", "inconclusive", "consistent"]

LEVEL = 0.05
"""Of all tests of a diagnosis together, after Holm."""
FLAGS = 2
"""Topics with a failed check that together are a verdict, though none of them proves it."""


@dataclass(frozen=True)
class Check:
    """One question: what was found, what it means, what to do if it failed.

    Attributes:
        p_value: Of the hypothesis that nothing is wrong; small values speak against the gradient.
        evidence: ``"proof"``: failing it is masking, or makes all that follows meaningless. ``"flag"``: it is a reason to doubt.
        topic: Flags of one topic count once: they are not independent.
        otherwise: The status in place of ``"failed"``, if its p-value is not significant among all others.
    """

    name: str
    status: Status
    found: str
    meaning: str
    remedy: str
    p_value: float | None = None
    evidence: Evidence = "flag"
    topic: str = ""
    otherwise: Status = "passed"


def not_run(name: str, why: str, meaning: str, remedy: str, topic: str) -> Check:
    return Check(name, "not run", why, meaning, remedy, topic=topic)


def settled(checks: Sequence[Check]) -> list[Check]:
    """Their p-values adjusted after Holm, and what is not significant then does not fail."""
    tested = [c for c in checks if c.p_value is not None]
    adjusted = iter(holm([c.p_value for c in tested if c.p_value is not None]))
    found = []
    for check in checks:
        if check.p_value is None:
            found.append(check)
            continue
        p = next(adjusted)
        fails = check.status != "failed" or p < LEVEL
        found.append(replace(check, p_value=p, status=check.status if fails else check.otherwise))
    return found


@dataclass
class MaskingReport:
    """The checks and the verdict.

    ``masked``: a proof failed, or flags of two topics. ``inconclusive``: one topic is flagged, or a check could not tell.
    ``consistent``: neither, which says that nothing speaks against the gradient, not that the network is robust.
    """

    settings: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        failed = [c for c in self.checks if c.status == "failed"]
        topics = {c.topic or c.name for c in failed}
        if any(c.evidence == "proof" for c in failed) or len(topics) >= FLAGS:
            return "masked"
        return "inconclusive" if any(c.status in ("failed", "inconclusive") for c in self.checks) else "consistent"

    @property
    def reasons(self) -> list[str]:
        """The names of the checks that the verdict rests on."""
        failed = [c for c in self.checks if c.status == "failed"]
        if self.verdict == "masked":
            return [c.name for c in failed if c.evidence == "proof"] or [c.name for c in failed]
        return [c.name for c in self.checks if c.status in ("failed", "inconclusive")]

    def __getitem__(self, name: str) -> Check:
        return {c.name: c for c in self.checks}[name]

    def __str__(self) -> str:
        lines = [f"gradient: {self.verdict} ({self.caption()})"]
        if self.reasons:
            lines.append(f"  because: {'; '.join(self.reasons)}")
        for c in self.checks:
            p = "" if c.p_value is None else f" (p = {c.p_value:.2g})"
            lines.append(f"  {c.status:12} {c.name}: {c.found}{p}")
            if c.status in ("failed", "inconclusive"):
                lines += [f"               means: {c.meaning}", f"               do: {c.remedy}"]
        if self.verdict == "consistent":
            lines.append(
                "  This is about the gradient. Robust accuracy is what the worst of many attacks leaves: attacks.standard."
            )
        return "\n".join(lines)

    def caption(self) -> str:
        s = self.settings
        norm = f" in {s['norm']}" if "norm" in s else ""
        return f"eps = {s['eps']:.4g}{norm}, n = {s['n']}, seed {s['seed']}, {s['draws']} draws a judgement"

    def to_json(self) -> dict[str, Any]:
        found = {"verdict": self.verdict, "reasons": self.reasons, **asdict(self)}
        for check in found["checks"]:
            del check["otherwise"]
        return found
