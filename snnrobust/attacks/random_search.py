"""Greedy random search: what score-based black-box attacks that propose one change at a time have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.selection import always_reached
from snnrobust.draws import Stream, _words, draws, is_stochastic, uniform

__all__ = ["Budget", "Proposal", "search"]

Proposal = Callable[[tuple[Tensor, ...], Tensor, Tensor, float], Tensor]
"""``(about, held [B, *], draws in [0, 1) [B, k], share of the queries that are spent) -> legal inputs like held``."""

_DRAWS = 1 << 20  # numbers drawn at once


@dataclass(frozen=True)
class Budget:
    """How often a search may ask.

    Args:
        queries: Forward passes per sample.
        draws: Forward passes of one measurement of a model with randomness.
        early_stop: Whether samples that have reached the goal stop; None for models without randomness only.
        selection_draws: How many more draws have to reach the goal before a sample stops, where the model has randomness.
    """

    queries: int
    draws: int
    early_stop: bool | None
    selection_draws: int

    def __post_init__(self) -> None:
        checks.count("queries", self.queries)
        checks.count("draws", self.draws)
        checks.count("selection_draws", self.selection_draws)
        if self.early_stop is not None:
            checks.boolean("early_stop", self.early_stop)
        if self.queries < 2 * self.draws and self.draws > 1:
            raise ValueError(f"queries must be at least 2 * draws = {2 * self.draws}, got {self.queries}")


@torch.no_grad()
def search(
    model: nn.Module, start: Tensor, goal: Goal, stream: Stream, budget: Budget, propose: Proposal, numbers: int,
    about: tuple[Tensor, ...],
) -> Tensor:  # fmt: skip
    """The best input found from ``start`` ``[B, *]`` on: proposals are held where the margin of the goal does not fall.

    A model with randomness is asked about what is held and what is proposed under the same fresh draws, so that no lucky draw
    is kept: it sees half as many proposals.

    Args:
        propose: See :data:`Proposal`; ``numbers`` is its k.
        about: What it needs to know of the samples, tensors ``[B, ...]``.
    """
    random = is_stochastic(model, start[:8])
    stops = not random if budget.early_stop is None else budget.early_stop
    proposals = budget.queries // (2 * budget.draws) if random else budget.queries - 1
    held = start.clone()
    active = torch.arange(len(start), device=start.device)
    here, aim, at = held.clone(), goal, stream
    standing = None if random else _Score.of(model, here, aim, at.fork("model"), 1)
    block = torch.empty(0)
    first = 0
    for i in range(proposals + 1):
        if standing is not None and stops:
            going = ~standing.reached
            if random and standing.reached.any():
                going = ~_stopped(model, here, aim, standing.reached, at.fork("stop", i), budget.selection_draws)
            if not going.all():
                kept = going.nonzero()[:, 0]
                held[active] = here
                active, here, aim, at = active[kept], here[kept], aim.select(kept), at.select(kept.cpu())
                about, standing = tuple(part[kept] for part in about), standing.select(kept)
                block = block[:, kept] if i < first + len(block) else block[:0]
        if i == proposals or len(active) == 0:
            break
        if i >= first + len(block):
            first, size = i, max(1, min(_DRAWS // (len(active) * numbers), proposals - i))
            shape = (size, len(active), numbers)
            block = uniform(_words(at.fork("proposals").key).to(here.device), at.sample_ids.to(here.device), shape, i)
        proposed = propose(about, here, block[i - first].double(), i / proposals)
        asked = at.fork("query", i) if random else at.fork("model")
        if random or standing is None:
            standing = _Score.of(model, here, aim, asked, budget.draws)
        score = _Score.of(model, proposed, aim, asked, budget.draws if random else 1)
        better = score.holds_against(standing)
        here = torch.where(better.view(-1, *[1] * (here.dim() - 1)), proposed, here)
        standing = score.where(better, standing)
    held[active] = here
    return held


@dataclass(frozen=True)
class _Score:
    margin: Tensor  # float64 [B], mean over draws
    reached: Tensor  # bool [B], in all draws
    grain: Tensor  # float64 [B]: smaller differences are rounding, which depends on the batch

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, goal: Goal, stream: Stream, n: int) -> _Score:
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        reached = torch.ones(len(x), dtype=torch.bool, device=x.device)
        grain = torch.zeros_like(total)
        for i in range(n):
            with draws(model, stream.fork("draw", i).key, stream.sample_ids):
                logits = checks.call(model, x, goal.labels)
            total += goal.margin(logits.double())
            reached &= goal.reached(logits)
            grain = torch.maximum(grain, 64 * torch.finfo(logits.dtype).eps * logits.double().abs().amax(1))
        return cls(total / n, reached, grain)

    def holds_against(self, other: _Score) -> Tensor:
        """Equal margins hold too: spike counts stay the same over wide plains, which the search has to cross."""
        level = self.margin >= other.margin - torch.maximum(self.grain, other.grain)
        return (self.reached & ~other.reached) | ((self.reached == other.reached) & level)

    def select(self, index: Tensor) -> _Score:
        return _Score(self.margin[index], self.reached[index], self.grain[index])

    def where(self, better: Tensor, other: _Score) -> _Score:
        margin = torch.where(better & (self.margin > other.margin), self.margin, other.margin)
        raised = better & self.reached & ~other.reached
        return _Score(
            torch.where(raised, self.margin, margin),
            torch.where(better, self.reached, other.reached),
            torch.where(better, self.grain, other.grain),
        )


def _stopped(model: nn.Module, x: Tensor, goal: Goal, suspects: Tensor, stream: Stream, n: int) -> Tensor:
    """bool ``[B]``: the suspects that ``n`` fresh draws confirm."""
    confirmed = torch.zeros_like(suspects)
    index = suspects.nonzero()[:, 0]
    part, aim = stream.select(index.cpu()), goal.select(index)
    with draws(model, part.fork("first").key, part.sample_ids):
        logits = checks.call(model, x[index], aim.labels)
    confirmed[index] = always_reached(model, x[index], aim, logits, part, n)
    return confirmed
