"""Does a gradient arrive at the input, and through which neurons?"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnrobust.attacks import GradientSource, cross_entropy
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, draws
from snnrobust.evaluation.diagnosis.check import Check, Status, not_run
from snnrobust.evaluation.diagnosis.subject import Subject, innermost
from snnrobust.monitors import monitor
from snnrobust.neurons import surrogate as surrogates

__all__ = ["ALIVE", "alive", "dead_share", "neurons"]

ALIVE = "the input gradient is alive"
DEAD, SOME = 0.1, 0.01
"""Shares of samples with a gradient of exactly zero: above the first it fails, above the second it cannot tell."""
SILENT = 0.95
"""Share of a layer's neurons that never fire, or fire at every step, above which little can pass it."""
REACH = 0.05
"""Least share of potentials at which a layer's surrogate has a slope worth the name."""
SLOPE = 0.1
"""Of the steepest slope of the surrogate."""


def dead_share(source: GradientSource, s: Subject) -> float:
    """Share of samples whose gradient is exactly zero.

    Raises:
        ValueError: it is NaN, or there is no path; the message says so.
    """
    zero, stream = 0, s.stream("gradient")
    for index in torch.arange(len(s)).split(256):
        gradient, _ = source(s.model, s.x[index], s.y[index], cross_entropy, stream.select(index))
        zero += int((gradient.flatten(1) == 0).all(1).sum())
    return zero / len(s)


def alive(s: Subject) -> list[Check]:
    """Sets ``usable`` of the subject."""
    meaning = "Where the gradient is zero or NaN, a gradient attack does nothing."
    remedy = (
        "Find what cuts it: an encoder without gradient, a hard quantizer, dead or saturated neurons, a saturated softmax "
        "(attack the margin instead)."
    )
    try:
        share = dead_share(s.gradient, s)
    except ValueError as error:
        s.usable = False
        return [Check(ALIVE, "failed", str(error), meaning, remedy, evidence="proof", topic="gradient")]
    status: Status = "failed" if share > DEAD else "inconclusive" if share > SOME else "passed"
    found = f"zero for {share:.1%} of samples, NaN for none"
    return [Check(ALIVE, status, found, meaning, remedy, evidence="proof", topic="gradient")]


def neurons(s: Subject) -> list[Check]:
    return [_activity(s), _reach(s)]


def _activity(s: Subject) -> Check:
    name, topic = "neurons of every layer answer", "neurons"
    meaning = "A layer that is silent or saturated passes on little of its input, and a surrogate far from threshold no gradient."
    remedy = "Look at monitors.monitor(model); normalise, or train with another threshold."
    try:
        with monitor(s.model) as record, torch.no_grad(), draws(s.model, s.stream("activity").key, s.ids):
            s.model(s.x)
        layers = record.layers
    except (ValueError, RuntimeError) as error:
        return not_run(name, str(error), meaning, remedy, topic)
    spiking = not layers[0].type.startswith("ReLU")
    worst = max(layers, key=lambda layer: max(layer.silent, layer.saturated if spiking else 0.0))
    extreme = max(worst.silent, worst.saturated if spiking else 0.0)
    found = ", ".join(
        f"{layer.name}: {layer.silent:.0%} silent" + (f", {layer.saturated:.0%} always on" if spiking else "")
        for layer in layers
    )
    return Check(name, "failed" if extreme > SILENT else "passed", found, meaning, remedy, topic=topic)


def _reach(s: Subject) -> Check:
    name, topic = "potentials lie within the surrogate's reach", "surrogate"
    meaning = (
        "Most potentials lie where the surrogate is flat: the gradient knows a few neurons only, and hides the rest."
    )
    remedy = "Attack through a wider surrogate (attacks.Surrogate), or one that follows the potentials (ASSG, PDSG)."
    seen: dict[str, list[float]] = {}
    try:
        watched = innermost(s.gradient, lambda inner: _Watched(inner, seen))
        stream, count = s.stream("gradient", count=64), min(64, len(s))
        watched(s.model, s.x[:count], s.y[:count], cross_entropy, stream)
    except (ValueError, TypeError) as error:
        return not_run(name, str(error), meaning, remedy, topic)
    seen = {layer: values for layer, values in seen.items() if values}  # rules may differentiate some layers, or none
    if not seen:
        return not_run(name, "the gradient asks no surrogate of potentials", meaning, remedy, topic)
    shares = {layer: sum(values) / len(values) for layer, values in seen.items()}
    found = ", ".join(f"{layer}: {share:.1%}" for layer, share in shares.items())
    return Check(name, "failed" if min(shares.values()) < REACH else "passed", found, meaning, remedy, topic=topic)


@dataclass(frozen=True)
class _Watched:
    """``source`` while each surrogate writes down which share of potentials it has a slope for."""

    source: GradientSource
    seen: dict[str, list[float]]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        names = {m: n for n, m in model.named_modules()}
        own = {m: m.surrogate for m in names if isinstance(getattr(m, "surrogate", None), surrogates.Surrogate)}
        foreign = any(hasattr(m, "surrogate_function") or hasattr(m, "spike_grad") for m in names)
        if not own or foreign or any(surrogate.timed for surrogate in own.values()):
            return self.source(model, x, y, loss, stream)

        def choose(m: nn.Module) -> surrogates.Surrogate:
            return _Noting(own[m], self.seen.setdefault(names[m], []))

        with surrogates.lend(model, choose):
            return self.source(model, x, y, loss, stream)


@dataclass(frozen=True, eq=False)
class _Noting(surrogates.Surrogate, registered=False):
    surrogate: surrogates.Surrogate
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        slope = self.surrogate.derivative(u)
        self._note(slope)
        return slope

    def observed(self, u: Tensor) -> surrogates.Surrogate:
        surrogate = self.surrogate.observed(u)
        self._note(surrogate.derivative(u))
        return surrogate

    def _note(self, slope: Tensor) -> None:
        steepest = max(float(slope.max()), self._peak())
        self.shares.append(float((slope >= SLOPE * steepest).double().mean()) if steepest > 0 else 0.0)

    def _peak(self) -> float:
        """The steepest slope anywhere near, so that a surrogate beside all potentials is seen to be so."""
        try:
            return float(self.surrogate.derivative(torch.linspace(-8.0, 8.0, 3201)).max())
        except (RuntimeError, ValueError):  # one that has a slope for each of certain neurons
            return 0.0
