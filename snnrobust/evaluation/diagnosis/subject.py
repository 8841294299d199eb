"""What is examined, and the attacks that several checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust.attacks import EOT, PGD, Attack, Backprop, Goal, GradientSource, Linf, RandomNoise, ThreatModel
from snnrobust.attacks.selection import Measurement, measure
from snnrobust.draws import Stream, derive, is_stochastic

__all__ = ["SWEEP_EOT", "SWEEP_STEPS", "Subject", "default_gradient", "innermost"]

STEPS = 40
SWEEP_STEPS = 20
"""Half of what the examined gradient gets: who finds more with less is stronger."""
SWEEP_EOT = 2

Shares = NDArray[np.float64]


def default_gradient(model: nn.Module, x: Tensor) -> GradientSource:
    return EOT(4) if is_stochastic(model, x[:16]) else Backprop()


def innermost(source: GradientSource, around: Callable[[GradientSource], GradientSource]) -> GradientSource:
    """``source`` with its last link replaced by ``around`` it: ``EOT(4, Surrogate(s, Backprop()))`` has ``Backprop()`` there."""
    if is_dataclass(source) and not isinstance(source, type) and "source" in {f.name for f in fields(source)}:
        inner: Any = source
        return replace(inner, source=innermost(inner.source, around))
    return around(source)


@dataclass(eq=False)
class Subject:
    """The model with its inputs, threat and gradient. All attacks and judgements are keyed by ``seed``, and run once."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    gradient: GradientSource
    seed: int
    draws: int
    random: bool
    source: nn.Module | None = None
    usable: bool = True  # whether an attack can be run through the gradient at all
    stored: dict[str, tuple[ThreatModel, Tensor]] = field(default_factory=dict)
    measured: dict[str, Measurement] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def ids(self) -> Tensor:
        return torch.arange(len(self.x))

    def stream(self, *labels: object, count: int | None = None) -> Stream:
        return Stream(derive(self.seed, *labels), self.ids[:count])

    def judge(self, inputs: Tensor, *labels: object) -> Measurement:
        return measure(self.model, inputs, Goal(self.y), self.stream("judge", *labels), self.draws)

    def attack(self, label: str, attack: Attack) -> Measurement:
        """What ``attack`` leaves, judged on draws of its own; ``label`` names it once."""
        if label not in self.measured:
            x_adv = attack(self.model, self.x, self.y, seed=self.seed, sample_ids=self.ids)
            self.stored[label] = (attack.threat, x_adv)
            self.measured[label] = self.judge(x_adv)
        return self.measured[label]

    def through(self, source: GradientSource) -> PGD:
        """The attack that others are compared by."""
        source = EOT(SWEEP_EOT, source) if self.random and not isinstance(source, EOT) else source
        return PGD(self.threat, steps=SWEEP_STEPS, gradient=source)

    @property
    def pgd(self) -> PGD:
        return PGD(self.threat, steps=STEPS, gradient=self.gradient)

    def examined(self) -> Measurement:
        """Under PGD with the examined gradient; where that cannot run, under noise: it knows no more."""
        return self.attack(f"PGD-{STEPS}", self.pgd) if self.usable else self.noise()

    def noise(self) -> Measurement:
        return self.attack("noise", RandomNoise(self.threat))

    def clean(self) -> Measurement:
        if "clean" not in self.measured:
            self.measured["clean"] = self.judge(self.x)
        return self.measured["clean"]

    @property
    def noise_name(self) -> str:
        return "random signs" if isinstance(self.threat, Linf) else "random noise"

    def shares(self, measured: Measurement) -> Shares:
        """Per sample, the share of draws that are right."""
        return (measured.correct.double() / self.draws).cpu().numpy()

    def accuracy(self, measured: Measurement) -> float:
        return float(self.shares(measured).mean())
