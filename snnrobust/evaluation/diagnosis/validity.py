"""Are the stored inputs legal?"""

from __future__ import annotations

from torch import Tensor

from snnrobust.attacks import ThreatModel
from snnrobust.evaluation.diagnosis.check import Check
from snnrobust.evaluation.diagnosis.subject import Subject

__all__ = ["validity"]


def validity(s: Subject) -> list[Check]:
    """Budget and box of every stored adversarial, computed again in float64."""
    bad, worst = [], 0.0
    for label, (threat, x_adv) in s.stored.items():
        share = _spent(threat, s.x, x_adv)
        worst = max(worst, share)
        low, high = threat.bounds
        wide = x_adv.double()
        outside = bool(((wide < low) | (wide > high) | wide.isnan()).any())
        if share > 1.0 or outside or x_adv.shape != s.x.shape:
            bad.append(f"{label} ({'outside the box' if outside else f'{share:.6g} of the budget'})")
    found = (
        f"{len(s.stored)} attacks, at most {worst:.6f} of the budget spent"
        if not bad
        else f"not legal: {', '.join(bad)}"
    )
    return [
        Check(
            "stored adversarials are legal",
            "failed" if bad else "passed",
            found,
            "What lies outside the budget or the box is no adversarial of this threat; its success counts for nothing.",
            "Project after each step, in float64, and validate what is stored.",
            evidence="proof",
            topic="validity",
        )
    ]


def _spent(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> float:
    eps = threat.eps
    assert not isinstance(eps, tuple)
    return float(threat.distance(x, x_adv).max()) / eps
