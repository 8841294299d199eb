"""Take away what may hide the gradient: the encoder, the noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import BPDA, EOT, PGD, Backprop, Frozen, GradientSource
from snnrobust.attacks.gradient import Around
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, derive, draws
from snnrobust.encoders import Direct, Encoder
from snnrobust.evaluation.diagnosis.alive import dead_share
from snnrobust.evaluation.diagnosis.check import Check, not_run
from snnrobust.evaluation.diagnosis.comparison import compared
from snnrobust.evaluation.diagnosis.subject import SWEEP_EOT, Subject, innermost
from snnrobust.hardware import Array, Backend

__all__ = ["NoiseOff", "encoder", "noise_ablation"]

FROZEN = derive(0, "frozen noise")
"""The key of all draws of an attack on frozen noise."""


def encoder(s: Subject) -> list[Check]:
    name, topic = "the encoder passes the gradient on", "encoder"
    meaning = "The encoder cuts or falsifies the gradient: with the identity in its backward pass the same attack finds far more."
    remedy = 'Attack through BPDA on the encoder, or give it a gradient (gradient="straight_through").'
    found = {path: m for path, m in s.model.named_modules() if isinstance(m, Encoder)}
    if not found:
        return [not_run(name, "the model has no encoder", meaning, remedy, topic)]
    path, module = next(iter(found.items()))
    if type(module) is Direct:
        return [Check(name, "passed", "Direct shows the input itself", meaning, remedy, topic=topic)]
    bypass = innermost(s.gradient, lambda inner: BPDA(path, source=inner))
    try:
        dead = dead_share(bypass, s)
        around = bypass if isinstance(bypass, EOT) else EOT(SWEEP_EOT, bypass) if s.random else bypass
        bypassed = s.attack("encoder bypassed", replace(s.through(Backprop()), gradient=around))
    except (ValueError, TypeError) as error:
        return [not_run(name, str(error), meaning, remedy, topic)]
    own = _dead(s)
    more = f"; {type(module).__name__} ({path}) leaves a gradient of zero for {own} of samples, bypassed for {dead:.1%}"
    return [compared(s, name, {"the encoder bypassed": bypassed}, meaning, remedy, topic, more)]


def _dead(s: Subject) -> str:
    try:
        return f"{dead_share(s.gradient, s):.1%}"
    except ValueError:
        return "all"


def noise_ablation(s: Subject) -> list[Check]:
    name, topic = "noise does not hide the gradient", "noise ablation"
    meaning = "Noise blurs the gradient: an attack that freezes it, silences it or averages more of it finds far more."
    remedy = "More draws in EOT, or the gradient of the model without noise; judge on fresh draws all the same."
    if not s.random:
        return [not_run(name, "the model is deterministic", meaning, remedy, topic)]
    if not s.usable:
        return [not_run(name, "there is no gradient", meaning, remedy, topic)]
    inner = s.gradient.source if isinstance(s.gradient, EOT) else s.gradient
    count = s.gradient.samples if isinstance(s.gradient, EOT) else 1
    attacks = {
        "frozen noise": PGD(s.threat, steps=20, gradient=Frozen(inner, FROZEN)),
        f"EOT({4 * count}), 10 steps": PGD(s.threat, steps=10, gradient=EOT(4 * count, inner)),
    }
    if any(isinstance(m, Backend) and m.stochastic for m in s.model.modules()):
        attacks["noise of the hardware off"] = s.through(NoiseOff(inner))
    try:
        others = {label: s.attack(label, attack) for label, attack in attacks.items()}
    except (ValueError, TypeError) as error:
        return [not_run(name, str(error), meaning, remedy, topic)]
    more = (
        "; " + ", ".join(f"{label} {s.accuracy(m):.1%}" for label, m in others.items()) + f", on {s.draws} fresh draws"
    )
    same = _on_its_own_draw(s)
    more += f"; frozen noise on the draw that it was crafted on: {same:.1%}"
    return [compared(s, name, others, meaning, remedy, topic, more)]


def _on_its_own_draw(s: Subject) -> float:
    """Accuracy where nothing is random any more: an attack that fails here fails by its gradient, not by the noise."""
    _, x_adv = s.stored["frozen noise"]
    with torch.no_grad(), draws(s.model, FROZEN, s.ids):
        return float((checks.call(s.model, x_adv, s.y).argmax(1) == s.y).double().mean())


@dataclass(frozen=True)
class NoiseOff(Around):
    """``source`` on a chip whose reads and products are without noise; what it stores stays as it is."""

    source: GradientSource

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with _silenced(model):
            return self.source(model, x, y, loss, stream)


@contextmanager
def _silenced(model: nn.Module) -> Iterator[None]:
    noisy = [m for m in model.modules() if isinstance(m, Backend | Array) and m.stochastic]
    try:
        for m in noisy:
            if isinstance(m, Backend):
                m.__dict__["read"] = _as_it_is
            else:
                m.__dict__["product"] = partial(Array.product, m)
        yield
    finally:
        for m in noisy:
            m.__dict__.pop("read" if isinstance(m, Backend) else "product", None)


def _as_it_is(y: Tensor, start: int) -> Tensor:
    return y
