"""The attack of Sharmin et al."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import GradientSource, begin
from snnrobust.attacks.gradient_time_summed import TimeSummed
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["Sharmin"]

Method = Literal["pgd", "fgsm"]


@dataclass(frozen=True)
class Sharmin(Attack):
    r"""Crafted on the spiking network itself, by a gradient that is summed over time and skips the encoder.

    ``"fgsm"`` is one step of the whole budget. ``"pgd"`` starts at random and takes 7 steps of a quarter of it: the published
    setting has 2/255 of 8/255. The published one draws its spikes once a gradient; ``EOT(n, TimeSummed())`` averages.

    Args:
        threat: Linf.
        method: See above.
        steps: Of ``"pgd"``.
        gradient: :class:`TimeSummed`, or that inside another source.
        loss: What is raised.

    Source: Sharmin et al. 2020, "Inherent adversarial robustness of deep spiking neural networks: effects of discrete input
    encoding and non-linear activations" (ECCV).
    """

    threat: ThreatModel
    method: Method = "pgd"
    steps: int = 7
    gradient: GradientSource = field(default_factory=TimeSummed)
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf):
            raise TypeError(
                f"Sharmin steps by signs, in Linf, got {self.threat!r:.80}: for other norms use PGD with TimeSummed()"
            )
        checks.choice("method", self.method, get_args(Method))
        checks.count("steps", self.steps)
        checks.function("gradient", self.gradient)
        checks.function("loss", self.loss)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        if self.method == "fgsm":
            return FGSM(self.threat, self.gradient, self.loss).perturb(model, x, goal, stream)
        x_adv, source, size = (
            self.threat.random_start(x, stream.fork("start")),
            begin(self.gradient),
            self.threat.step_size(x) / 4,
        )
        for i in range(self.steps):
            gradient, _ = goal.gradient(source, model, x_adv, self.loss, stream.fork("step", i))
            if i == 0:
                warn_if_blunt(self, gradient)
            x_adv = self.threat.project(self.threat.step(x_adv, gradient, size), x)
        return x_adv
