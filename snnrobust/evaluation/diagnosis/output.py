"""What the model answers: is it random, are its outputs logits, do they tie?"""

from __future__ import annotations

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.attacks import EOT, cross_entropy
from snnrobust.attacks.gradient import GradientSource
from snnrobust.draws import draws
from snnrobust.evaluation.diagnosis.check import Check, Status
from snnrobust.evaluation.diagnosis.subject import Subject

__all__ = ["determinism", "output", "skill"]

ENOUGH = 50
"""Samples below which a difference that is not significant means nothing."""
FLIPS = 0.02
"""Share of clean samples whose prediction is not always the same: above it a gradient of a single draw is one of luck."""
TIES = 0.1
SILENT = 0.1
SATURATED = 0.1


def skill(s: Subject) -> list[Check]:
    accuracy, chance = s.accuracy(s.clean()), float(torch.bincount(s.y).max() / len(s))
    return [
        Check(
            "there is something to attack",
            "passed" if len(s) >= ENOUGH and accuracy > min(2 * chance, (1 + chance) / 2) else "inconclusive",
            f"clean accuracy {accuracy:.1%} on {len(s)} samples; the commonest class has {chance:.1%} of them",
            "On few samples, or on a model that hardly classifies, the other checks cannot tell much.",
            "Use at least 50 samples and a trained model.",
            topic="skill",
        )
    ]


def determinism(s: Subject) -> list[Check]:
    name, eot = "the gradient averages over the model's randomness", _eot(s.gradient)
    meaning = "One draw's gradient is not that of the mean: the attack climbs what the next draw has changed."
    remedy = "Put EOT(n) around the gradient, and double n until the accuracy under attack moves by less than a point."
    if not s.random:
        return [Check(name, "passed", "the model is deterministic", meaning, remedy, topic="determinism")]
    correct = s.clean().correct
    flips = float(((correct > 0) & (correct < s.draws)).double().mean())
    found = (
        f"random: on clean inputs {flips:.1%} of samples are right in some of {s.draws} draws and wrong in others; "
        + (f"EOT over {eot} draws" if eot > 1 else "no EOT around the gradient")
    )
    status: Status = "inconclusive" if eot == 1 and flips > FLIPS else "passed"
    return [Check(name, status, found, meaning, remedy, topic="determinism")]


def _eot(source: GradientSource) -> int:
    count = source.samples if isinstance(source, EOT) else 1
    inner = getattr(source, "source", None)
    return count if inner is None else count * _eot(inner)


def output(s: Subject) -> list[Check]:
    with torch.no_grad(), draws(s.model, s.stream("output").key, s.ids):
        logits = checks.call(s.model, s.x, s.y).double()
    return [_logits(logits), _speaks(logits, s.y)]


def _logits(z: Tensor) -> Check:
    probabilities = bool((z >= 0).all() and (z <= 1).all() and ((z.sum(1) - 1).abs() < 1e-4).all())
    found = "probabilities: each row lies in [0, 1] and sums to 1" if probabilities else "no row of probabilities"
    return Check(
        "the outputs are logits",
        "failed" if probabilities else "passed",
        found,
        "A softmax of a softmax is flat: cross-entropy of probabilities has a gradient that hardly tells classes apart.",
        "Attack what goes into the last softmax.",
        topic="output",
    )


def _speaks(z: Tensor, y: Tensor) -> Check:
    order = z.sort(dim=1, descending=True).values
    ties = float((order[:, 0] == order[:, 1]).double().mean()) if z.shape[1] > 1 else 1.0
    dlr = float((order[:, 0] == order[:, min(2, z.shape[1] - 1)]).double().mean())
    silent = float((order[:, 0] == order[:, -1]).double().mean())
    correct = z.argmax(1) == y
    spent = float((cross_entropy(z.float(), y)[correct] == 0).double().mean()) if correct.any() else 0.0
    failed = silent > SILENT or spent > SATURATED
    return Check(
        "the outputs tell classes apart",
        "failed" if failed else "inconclusive" if ties > TIES else "passed",
        f"first place tied for {ties:.1%} of samples, all outputs equal for {silent:.1%}; the denominator of DLR is 0 for "
        f"{dlr:.1%}; cross-entropy of right answers rounds to exactly 0 for {spent:.1%}",
        "Where outputs tie, accuracy is a matter of which class comes first; where all are equal or the loss has rounded to 0, "
        "there is no gradient.",
        "Read out potentials or means instead of few spikes; attack the margin (loss=margin) instead of cross-entropy.",
        topic="output",
    )  # fmt: skip
