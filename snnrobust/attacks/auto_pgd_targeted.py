"""APGD towards several classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.ascent import search
from snnrobust.attacks.auto_pgd import APGD, Momentum
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.losses import Loss, dlr
from snnrobust.draws import Stream, draws, is_stochastic

__all__ = ["APGDT"]


@dataclass(frozen=True)
class APGDT(APGD):
    """APGD-T: one :class:`APGD` towards each of the likeliest other classes, and for each sample the worst that they found.

    Without a target it goes for the ``targets`` classes of the largest logits at ``x`` (their mean over ``selection_draws``, for
    a model with randomness) but the label, likeliest first, by the targeted form of ``loss``; it has succeeded with any wrong
    class. With a target it is :class:`APGD` towards that.

    Args:
        loss: Default the difference of logits ratio, whose targeted form is :func:`~snnrobust.attacks.dlr_targeted`.
        targets: How many classes; all others, if there are fewer.

    The other arguments are those of :class:`APGD`; ``restarts`` counts for each class. ``early_stop=True``, as AutoAttack has it,
    spares the later classes for those that are reached already.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks".
    """

    loss: Loss = dlr
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("targets", self.targets)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        if goal.targets is not None:
            return super().perturb(model, x, goal, stream)
        logits = self._logits(model, x, goal, stream.fork("classes"))
        classes = goal.next_classes(logits, min(self.targets, logits.shape[1] - 1))
        towards = [Goal(goal.y, target) for target in classes.unbind(1)]
        return search(self, model, x, goal, towards, stream, 2.0, self.rho, lambda: Momentum(self.momentum))

    @torch.no_grad()
    def _logits(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        n = self.selection_draws if is_stochastic(model, x[:8]) else 1
        total = torch.zeros(())
        for i in range(n):
            with draws(model, stream.fork("draw", i).key, stream.sample_ids):
                total = total.to(x) + checks.call(model, x, goal.y)
        return total / n
