"""Measuring a prediction that may be random, and choosing between candidates on draws of their own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import margin
from snnrobust.draws import Stream, draws

__all__ = ["Measurement", "better", "measure"]


class Measurement(NamedTuple):
    """Over the draws, per sample ``[B]``: how often the prediction was right, its mean margin, and the commonest class."""

    correct: Tensor  # int64, number of draws
    margin: Tensor  # float64, mean of max_{j != y} z_j - z_y
    prediction: Tensor  # int64


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, y: Tensor, stream: Stream, n: int) -> Measurement:
    """``model`` (in eval mode) on ``x`` under ``n`` independent draws of ``stream``."""
    correct = torch.zeros_like(y)
    margins = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    votes = None
    for i in range(n):
        key = stream.fork("draw", i).key
        with draws(model, key, stream.sample_ids):
            logits = checks.call(model, x, y)
        predicted = logits.argmax(1)
        correct += predicted == y
        margins += margin(logits.double(), y)
        votes = torch.zeros(logits.shape, dtype=torch.int64, device=y.device) if votes is None else votes
        votes[torch.arange(len(y), device=y.device), predicted] += 1
    assert votes is not None, "n must be at least 1"
    return Measurement(correct, margins / n, votes.argmax(1))


def better(challenger: Measurement, holder: Measurement) -> Tensor:
    """Where the challenger is the worse input for the model: right less often, or as often with a larger margin."""
    fewer = challenger.correct < holder.correct
    return fewer | ((challenger.correct == holder.correct) & (challenger.margin > holder.margin))
