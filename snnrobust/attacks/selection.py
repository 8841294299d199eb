"""Measuring a prediction that may be random, and choosing between candidates on draws of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.goal import Goal
from snnrobust.draws import Stream, draws

__all__ = ["Measurement", "always_reached", "better", "measure", "worst_of"]


class Measurement(NamedTuple):
    """Over the draws, per sample ``[B]``: how often the goal was missed, its mean margin, and the commonest class."""

    correct: Tensor  # int64, number of draws that are right, or in targeted attacks not the target
    margin: Tensor  # float64, mean of goal.margin
    prediction: Tensor  # int64


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, goal: Goal, stream: Stream, n: int) -> Measurement:
    """``model`` (in eval mode) on ``x`` under ``n`` independent draws of ``stream``."""
    y = goal.labels
    correct = torch.zeros_like(y)
    margins = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    votes = None
    for i in range(n):
        key = stream.fork("draw", i).key
        with draws(model, key, stream.sample_ids):
            logits = checks.call(model, x, y)
        predicted = logits.argmax(1)
        correct += ~goal.reached(logits)
        margins += goal.margin(logits.double())
        votes = torch.zeros(logits.shape, dtype=torch.int64, device=y.device) if votes is None else votes
        votes[torch.arange(len(y), device=y.device), predicted] += 1
    if votes is None:  # n = 0: nothing is known
        return Measurement(correct, margins, torch.zeros_like(y))
    return Measurement(correct, margins / n, votes.argmax(1))


def better(challenger: Measurement, holder: Measurement) -> Tensor:
    """Where the challenger is the worse input for the model: right less often, or as often with a larger margin."""
    fewer = challenger.correct < holder.correct
    return fewer | ((challenger.correct == holder.correct) & (challenger.margin > holder.margin))


def worst_of(model: nn.Module, candidates: Iterable[Tensor], goal: Goal, stream: Stream, n: int) -> Tensor:
    """For each sample the candidate that is worst for the model on the same ``n`` draws, the first of equal ones."""
    best: Tensor | None = None
    standing: Measurement | None = None
    for candidate in candidates:
        measured = measure(model, candidate, goal, stream, n)
        if best is None or standing is None:
            best, standing = candidate, measured
            continue
        wins = better(measured, standing)
        best = torch.where(wins.view(-1, *[1] * (best.dim() - 1)), candidate, best)
        standing = Measurement(*(torch.where(wins, a, b) for a, b in zip(measured, standing, strict=True)))
    assert best is not None, "there must be a candidate"
    return best


def always_reached(model: nn.Module, x: Tensor, goal: Goal, logits: Tensor, stream: Stream, n: int) -> Tensor:
    """bool ``[B]``: ``logits``, those of ``x``, reach the goal, and if ``n`` is more than 1, so do those of ``n`` fresh draws."""
    reached = goal.reached(logits)
    if n > 1 and reached.any():
        suspects = reached.nonzero()[:, 0]
        measured = measure(model, x[suspects], goal.select(suspects), stream.select(suspects.cpu()), n)
        reached[suspects] = measured.correct == 0
    return reached
