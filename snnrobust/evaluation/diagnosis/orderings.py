"""What has to hold between attacks of one kind: more steps, more budget and more knowledge find no less."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from snnrobust.attacks import FGSM
from snnrobust.attacks.selection import Measurement
from snnrobust.evaluation.diagnosis.check import LEVEL, Check, Status
from snnrobust.evaluation.diagnosis.comparison import MATTERS
from snnrobust.evaluation.diagnosis.output import ENOUGH
from snnrobust.evaluation.diagnosis.subject import Subject
from snnrobust.statistics import paired_greater

__all__ = ["another_class", "noise", "orderings"]


def noise(s: Subject) -> list[Check]:
    pgd, other = s.examined(), s.noise()
    p = paired_greater(pgd.margin.cpu().numpy(), other.margin.cpu().numpy()) if s.usable else 1.0
    found = (
        f"accuracy {s.accuracy(pgd):.1%} under PGD-40 and {s.accuracy(other):.1%} under {s.noise_name}; "
        f"mean margin of the wrong class {float(pgd.margin.mean()):.3g} and {float(other.margin.mean()):.3g} "
        f"(p = {p:.2g} of no difference)"
    )
    return [
        Check(
            f"PGD-40 is stronger than {s.noise_name}",
            "passed" if p < LEVEL else "failed" if len(s) >= ENOUGH else "inconclusive",
            found,
            "The gradient knows no more about the model than noise of the same size.",
            "Do not report this attack's accuracy as robustness. Check the encoder's gradient; attack through another surrogate.",
            evidence="proof",
            topic="noise",
        )
    ]


def orderings(s: Subject) -> list[Check]:
    if not s.usable:
        return []
    pgd = s.pgd
    pgd40 = s.examined()
    pgd10 = s.attack("PGD-10", replace(pgd, steps=10))
    fgsm = s.attack("FGSM", FGSM(s.threat, gradient=s.gradient))
    box = s.threat.largest(s.x)
    whole = s.attack("the whole box", pgd.at(box))
    swapped = s.judge(another_class(s.x, s.y))
    found = [
        _ordering(
            s, "PGD-10 is not weaker than FGSM", pgd10, fgsm, ("PGD-10", "FGSM"), "steps",
            "Ten small steps find less than one large one: the gradient misleads beyond its first step.",
            "Attack with other surrogates (attacks.Surrogate), more EOT draws, a smaller step.",
        ),
        _ordering(
            s, "PGD-40 is not weaker than PGD-10", pgd40, pgd10, ("PGD-40", "PGD-10"), "steps",
            "More steps find less: the steps go astray, so no number of steps can be trusted.",
            "Attack with other surrogates (attacks.Surrogate), more EOT draws, restarts.",
        ),
        _ordering(
            s, "the whole box breaks what swapping images breaks", whole, swapped,
            (f"PGD-40 at eps = {box:g}", "another class's image"), "whole box",
            "With the whole box allowed the attack could put in another class's image, and does worse than that: it fails.",
            "The gradient does not lead there. Check the encoder's gradient, quantizers and saturated neurons.",
        ),
    ]  # fmt: skip
    budgets = _budgets(s, box)
    for small, large in itertools.pairwise(budgets):
        a, b = (
            pgd10 if e == s.threat.eps else s.attack(f"PGD-10 at {e:g}", replace(pgd, steps=10).at(e))
            for e in (large, small)
        )
        found.append(
            _ordering(
                s, f"eps = {large:.4g} is not weaker than eps = {small:.4g}", a, b,
                (f"PGD-10 at {large:.4g}", f"PGD-10 at {small:.4g}"), "eps",
                "A larger budget finds less, though it contains the smaller one.",
                "The gradient misleads farther from the input: more and smaller steps, other surrogates.",
            )
        )  # fmt: skip
    return found


def _budgets(s: Subject, box: float) -> list[float]:
    eps = float(s.threat.eps)  # type: ignore[arg-type]
    found = []
    for e in (eps / 2, eps, min(2 * eps, box)):
        try:
            s.threat.at(e)
        except (ValueError, TypeError):  # half a pixel
            continue
        if e not in found and e > 0:
            found.append(e)
    return found


def _ordering(
    s: Subject, name: str, stronger: Measurement, weaker: Measurement, labels: tuple[str, str], topic: str, meaning: str,
    remedy: str,
) -> Check:  # fmt: skip
    """The first measurement's accuracy is not above the second's."""
    a, b = s.shares(stronger), s.shares(weaker)
    found = f"accuracy {a.mean():.1%} with {labels[0]}, {b.mean():.1%} with {labels[1]}"
    status: Status = "failed" if a.mean() - b.mean() >= MATTERS else "passed"
    return Check(name, status, found, meaning, remedy, paired_greater(a, b), topic=topic)


def another_class(x: Tensor, y: Tensor) -> Tensor:
    """For each sample, the next one in the set with another label."""
    if len(y.unique()) < 2:
        raise ValueError("the data holds one class only: diagnosis needs at least two")
    start = index = torch.arange(len(y), device=y.device)
    for shift in range(1, len(y)):
        same = y[index] == y
        if not same.any():
            break
        index = torch.where(same, (start + shift) % len(y), index)
    return x[index]
