"""PGD that scales every element by its own history."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.ascent import check_settings, checkpoints, search, shrinks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.draws import Stream

__all__ = ["SAPGD"]


@dataclass(frozen=True)
class SAPGD(Attack):
    r"""Stable adaptive PGD: an element moves as far as its gradients agree from step to step, at most by the step size.

    .. math::

        m \leftarrow \beta_1 m + \frac{g}{\operatorname{mean} |g|}, \quad
        v \leftarrow \beta_2 v + \frac{g^2}{\operatorname{mean} g^2}, \quad
        x_{i+1} = \Pi \Big( x_i + \operatorname{clip} \big( \eta_i \tfrac{m}{\sqrt v}, -\eta_i, \eta_i \big) \Big)

    with means over the elements of a sample, :math:`m = v = 0` before the first step and :math:`\eta_0 = \epsilon`. At the
    checkpoints of :class:`APGD` every sample halves :math:`\eta`, and goes on from where it is.

    In other norms than Linf the threat's steepest step of length :math:`\eta` along :math:`m` takes the place of the clipped one:
    there an element must not move as far for a small gradient as for a large one (in L0 the threat's own :math:`\eta`, never
    halved). That is ours, as is the choice of the point of the largest margin on the way.

    Args:
        decay: :math:`\beta_1`.
        decay_square: :math:`\beta_2`.

    The other arguments are those of :class:`APGD`.

    Source: arXiv 2512.22522, "Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural Networks"; constants and
    schedule as in its authors' code.
    """

    threat: ThreatModel
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    gradient: GradientSource = field(default_factory=Backprop)
    loss: Loss = cross_entropy
    early_stop: bool = False
    decay: float = 0.5
    decay_square: float = 0.8
    selection_draws: int = 32

    def __post_init__(self) -> None:
        check_settings(self)
        checks.number("decay", self.decay, 0.0, 1.0)
        checks.number("decay_square", self.decay_square, 0.0, 1.0)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        def move() -> _Moments:
            return _Moments(self.decay, self.decay_square, checkpoints(self.steps))

        return search(self, model, x, goal, [goal], stream, 1.0, None, move)


class _Moments:
    """m and v of every element."""

    def __init__(self, decay: float, decay_square: float, halve_at: list[int]) -> None:
        self.decay, self.decay_square, self.halve_at = decay, decay_square, halve_at
        self.steps, self.share = 0, 1.0
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def __call__(self, threat: ThreatModel, x: Tensor, at: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        if self.steps in self.halve_at and shrinks(threat):
            self.share /= 2
        self.steps += 1
        first = _over_mean(gradient, gradient.abs())
        second = _over_mean(first.square(), first.square())
        self.m = first if self.m is None else first.add_(self.m, alpha=self.decay)
        self.v = second if self.v is None else second.add_(self.v, alpha=self.decay_square)
        if isinstance(threat, Linf):
            scaled = self.m / torch.where(self.v > 0, self.v, 1.0).sqrt()
            moved = at + scaled.clamp_(-1, 1) * (size * self.share)
        else:
            moved = threat.step(at, self.m, size * self.share)
        return threat.project(moved, x)

    def keep(self, index: Tensor) -> None:
        self.m = None if self.m is None else self.m[index]
        self.v = None if self.v is None else self.v[index]


def _over_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """``values`` over the mean of ``sizes`` in their sample; zero where that is."""
    mean = sizes.flatten(1).mean(1).view(-1, *[1] * (values.dim() - 1))
    return values / torch.where(mean > 0, mean, 1.0)
