"""Attacks that do not rely on the examined gradient: other surrogates, another model, no gradient, the true weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from snnrobust.attacks import (
    ASSG,
    BPTR,
    HART,
    L1,
    L2,
    PDSG,
    RGA,
    SPSA,
    Attack,
    Backprop,
    EvolutionStrategies,
    FromModel,
    GradientSource,
    Linf,
    SparseRS,
    Square,
    StraightThrough,
    Surrogate,
    ThreatModel,
    Transfer,
    cross_entropy,
)
from snnrobust.attacks.threat import common_eps
from snnrobust.evaluation.diagnosis.check import Check, not_run
from snnrobust.evaluation.diagnosis.comparison import compared, union
from snnrobust.evaluation.diagnosis.subject import Subject, default_gradient, innermost
from snnrobust.neurons.surrogate import ATan, Triangle

__all__ = ["SWEEP", "gradient_free", "own_rule", "pixel_width", "sweep", "transfer"]

SWEEP: dict[str, GradientSource] = {
    "ATan(2)": Surrogate(ATan(2.0)),
    "ATan(5)": Surrogate(ATan(5.0)),
    "ATan(10)": Surrogate(ATan(10.0)),
    "Triangle": Surrogate(Triangle(1.0, 1.0)),
    "StraightThrough": StraightThrough(),
    "ASSG": ASSG(),
    "PDSG": PDSG(),
    "RGA": RGA(),
    "BPTR": BPTR(),
    "HART": HART(),
}
"""What the examined gradient is compared with in spiking models, beside the training surrogate."""
FREE_QUERIES = 500


def sweep(s: Subject) -> list[Check]:
    name, topic = "no other surrogate finds far more", "surrogate sweep"
    meaning = (
        "The gradient hides the model: the same attack through another surrogate breaks what this one leaves standing."
    )
    remedy = (
        "Report the worst case over surrogates (or pass gradient=the better one), never this gradient's accuracy alone."
    )
    others, refused = {}, []
    sources = SWEEP if s.gradient == default_gradient(s.model, s.x) else {"the training surrogate": Backprop(), **SWEEP}
    for label, source in sources.items():
        try:
            others[label] = s.attack(f"PGD-20 through {label}", s.through(source))
        except (ValueError, TypeError):
            refused.append(label)
    if not any(label in others for label in SWEEP):
        return [not_run(name, "the model has no surrogate to exchange", meaning, remedy, topic)]
    lines = ", ".join(f"{label} {s.accuracy(m):.1%}" for label, m in others.items())
    more = f"; all: {lines}; per sample the worst of all {union(s, {'examined': s.examined(), **others}):.1%}"
    if refused:
        more += f"; do not apply: {', '.join(refused)}"
    return [compared(s, name, others, meaning, remedy, topic, more)]


def transfer(s: Subject) -> list[Check]:
    name, topic = "transfer is not stronger than white box", "transfer"
    meaning = "A model that knows nothing of the victim attacks it better than the victim's own gradient does."
    remedy = "The victim's gradient is blunt: report the transfer attack, and look for the cause."
    if s.source is None:
        return [not_run(name, "no source model was given", meaning, "Pass source=another model.", topic)]
    attack = Transfer(replace(s.pgd, gradient=default_gradient(s.source, s.x)), s.source)
    return [compared(s, name, {"transfer": s.attack("transfer", attack)}, meaning, remedy, topic)]


def gradient_free(s: Subject) -> list[Check]:
    name, topic = "no gradient at all is not stronger", "gradient-free"
    meaning = "An attack that sees logits alone finds more than the gradient does: the gradient leads nowhere."
    remedy = "Report the gradient-free attack, with more queries, and look for what breaks the gradient."
    attack = _without_gradient(s.threat)
    more = f"; {type(attack).__name__}, {FREE_QUERIES} queries a sample"
    return [compared(s, name, {"queries": s.attack("gradient-free", attack)}, meaning, remedy, topic, more)]


def _without_gradient(threat: ThreatModel) -> Attack:
    return (
        Square(threat, queries=FREE_QUERIES)
        if isinstance(threat, Linf | L2 | L1)
        else SparseRS(threat, queries=FREE_QUERIES)
    )


def pixel_width(s: Subject) -> float:
    """How far the budget reaches in each pixel, if it is spread over all."""
    eps, pixels = common_eps(s.threat, "diagnose"), s.x[0].numel()
    widths: dict[str, float] = {"Linf": eps, "L2": eps / pixels**0.5, "L1": eps / pixels}
    return widths.get(s.threat.name, 0.1)


def own_rule(s: Subject) -> list[Check]:
    name, topic = "the true weights are not stronger", "learning rule"
    meaning = (
        "This is not the model's gradient but, say, that of a learning rule with random feedback: it defends nothing."
    )
    remedy = "Attack through the true weights: attacks.Backprop(), with EOT for a random model."
    ends: list[GradientSource] = []
    innermost(s.gradient, lambda inner: ends.append(inner) or inner)  # type: ignore[func-returns-value]
    if isinstance(ends[0], Backprop | EvolutionStrategies | SPSA) and not _borrowed(s.gradient):
        return [not_run(name, "the examined gradient is the model's own", meaning, remedy, topic)]
    try:
        true = s.attack("true weights", s.through(Backprop()))
    except ValueError as error:
        return [not_run(name, str(error), meaning, remedy, topic)]
    return [compared(s, name, {"the true weights": true}, meaning, remedy, topic, _alignment(s))]


def _borrowed(source: GradientSource) -> bool:
    inner = getattr(source, "source", None)
    return isinstance(source, FromModel) or (inner is not None and _borrowed(inner))


def _alignment(s: Subject) -> str:
    count, stream = min(64, len(s)), s.stream("alignment", count=64)
    try:
        own, true = (
            g(s.model, s.x[:count], s.y[:count], cross_entropy, stream)[0].flatten(1) for g in (s.gradient, Backprop())
        )
    except ValueError:
        return ""
    return f"; cosine of the two gradients {float(torch.cosine_similarity(own.double(), true.double()).mean()):.2f}"
