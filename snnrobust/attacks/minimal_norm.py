"""The smallest budget at which an attack succeeds, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.closest import Closest, predict
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.draws import Stream

__all__ = ["MinimalNorm"]


@dataclass(frozen=True)
class MinimalNorm(Attack):
    r"""Bisection of each sample's budget: the closest adversarial input that ``attack`` finds within its own.

    .. math:: \min \epsilon \le \epsilon_{\max} \quad \text{such that} \quad \text{attack}_\epsilon(x) \text{ reaches the goal}

    First ``attack`` runs with its whole budget. Where it fails, its result is returned as it is. Where it succeeds, the distance
    of what it found is the upper end of a bracket that begins at 0; each step halves the brackets still open. Before the attack
    runs at the middle, the closest input so far is projected onto that budget: where it still reaches the goal, the attack
    need not run. An attack that succeeds at one budget and fails at a larger one has no single smallest budget; any bracket is
    one in which it fails below and has succeeded above.

    Args:
        attack: Any attack; its budget is the largest distance looked at.
        steps: Halvings at most.
        tolerance: A sample whose bracket is not wider than this share of its upper end is done. In L0 it is one pixel.
        selection_draws: A model with randomness is fooled where the goal is reached in as many draws of their own.
    """

    minimal: ClassVar[bool] = True

    attack: Attack
    steps: int = 12
    tolerance: float = 0.01
    selection_draws: int = 32
    threat: ThreatModel = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attack such as PGD(Linf('8/255')), got {self.attack!r}")
        checks.count("steps", self.steps)
        checks.number("tolerance", self.tolerance, 0.0, 1.0)
        checks.count("selection_draws", self.selection_draws)
        object.__setattr__(self, "threat", self.attack.threat)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        closest = Closest(model, x, goal, self.threat, stream, self.selection_draws)
        everyone = torch.arange(len(x), device=x.device)
        closest.offer(everyone, x, predict(model, x, goal, stream.fork("clean")), "clean")
        index = everyone[closest.distance.isinf()]
        result = x.clone()
        if len(index):
            result[index] = self._try(closest, index, self.threat.select(index).eps, stream.fork("whole"))
        low = torch.zeros_like(closest.distance)
        for i in range(self.steps):
            high = closest.distance
            wide = high - low > (1 if isinstance(self.threat, L0) else self.tolerance * high)
            index = everyone[wide & high.isfinite()]
            if len(index) == 0:
                break
            middle = (low[index] + high[index]) / 2
            middle = middle.floor() if isinstance(self.threat, L0) else middle
            here = stream.fork("halving", i)
            shorter = self.threat.at(middle).project(closest.x_adv[index], x[index])
            reached = self._offer(closest, index, shorter, here.fork("shorter"))
            if not reached.all():
                self._try(closest, index[~reached], middle[~reached], here)
            failed = closest.distance[index] > middle
            low[index[failed]] = middle[failed]
        return torch.where(closest.distance.isfinite().view(-1, *[1] * (x.dim() - 1)), closest.x_adv, result)

    def _try(self, closest: Closest, index: Tensor, eps: Eps, stream: Stream) -> Tensor:
        """The attack at these budgets, offered to ``closest``."""
        attack = self.attack.at(eps)
        goal, own = closest.goal.select(index), stream.select(index.cpu())
        x_adv = attack.perturb(closest.model, closest.x[index], goal, own.fork("attack"))
        self._offer(closest, index, x_adv, stream)
        return x_adv

    def _offer(self, closest: Closest, index: Tensor, x_adv: Tensor, stream: Stream) -> Tensor:
        goal, own = closest.goal.select(index), stream.select(index.cpu())
        return closest.offer(index, x_adv, predict(closest.model, x_adv, goal, own.fork("check")), stream.key)

    def _check_targets(self, targets: Tensor, y: Tensor) -> None:
        self.attack._check_targets(targets, y)

    def at(self, eps: Eps) -> Self:
        return replace(self, attack=self.attack.at(eps))
