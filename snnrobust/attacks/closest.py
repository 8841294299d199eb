"""The closest adversarial input that an attack has met."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.selection import always_reached, worst_of
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream, draws, is_stochastic

__all__ = ["Closest", "predict"]


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
    """Logits of ``x`` under the draws of ``stream``."""
    with draws(model, stream.key, stream.sample_ids):
        return checks.call(model, x, goal.y)


class Closest:
    """For each sample of ``x`` the closest input offered so far that reaches the goal, and its distance, infinite without one.

    What reaches the goal of a model with randomness has to do so in all of ``selection_draws`` draws besides.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, goal: Goal, threat: ThreatModel, stream: Stream, selection_draws: int
    ) -> None:
        self.model, self.x, self.goal, self.threat, self.stream = model, x, goal, threat, stream
        self.draws = selection_draws if is_stochastic(model, x[:8]) else 1
        self.x_adv = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def offer(self, index: Tensor, candidate: Tensor, logits: Tensor, *labels: object) -> Tensor:
        """Candidates for the samples at ``index`` with their logits; bool ``[len(index)]``, which of them reach the goal.

        ``labels`` name the draws of this occasion.
        """
        if len(index) == 0:
            return torch.zeros(0, dtype=torch.bool, device=index.device)
        stream = self.stream.select(index.cpu()).fork("confirm", *labels)
        reached = always_reached(self.model, candidate, self.goal.select(index), logits, stream, self.draws)
        distance = self.threat.select(index).distance(self.x[index], candidate)
        wins = reached & (distance < self.distance[index])
        self.x_adv[index[wins]] = candidate[wins]
        self.distance[index[wins]] = distance[wins]
        return reached

    def within(self, attempt: Tensor) -> Tensor:
        """The closest one where the budget allows it; else the worst of its projection, that of ``attempt``, and ``x``."""
        result, threat = self.x_adv.clone(), self.threat
        eps = torch.tensor(threat.eps, dtype=torch.float64, device=self.x.device)
        beyond = (self.distance > eps).nonzero()[:, 0]
        if len(beyond):
            x, near = self.x[beyond], threat.select(beyond)
            candidates = (near.project(at[beyond], x) for at in (self.x_adv, attempt))
            stream = self.stream.select(beyond.cpu()).fork("selection")
            result[beyond] = worst_of(self.model, [x, *candidates], self.goal.select(beyond), stream, self.draws)
        return result
