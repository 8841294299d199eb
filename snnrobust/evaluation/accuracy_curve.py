"""Robust accuracy at every budget, from one run of an attack that looks for the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import Attack, MinimalNorm
from snnrobust.attacks.threat import common_eps
from snnrobust.data import Data, take
from snnrobust.draws import device_of, is_stochastic
from snnrobust.evaluation.cell import Draws, run_cell
from snnrobust.statistics import mean_interval

__all__ = ["AccuracyCurve", "Point", "accuracy_curve"]


@dataclass(frozen=True)
class Point:
    """Robust accuracy at one budget, with its interval over samples."""

    eps: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class AccuracyCurve:
    """What an attack found for each sample, all ``[N]``. Misclassified samples count, at distance 0."""

    norm: str
    eps: float
    """The largest budget that was looked at."""
    distance: Tensor
    """float64: of the candidate from ``x``; where none was worse than ``x`` itself, infinity, or 0 where ``x`` is wrong."""
    clean: Tensor
    """float64: share of judgement draws in which ``x`` is right."""
    attacked: Tensor
    """float64: the same for the candidate."""

    def shares(self, eps: float | str) -> Tensor:
        """float64 ``[N]``: the share of draws in which each is right at a budget: that of its candidate, from its distance on."""
        budget = checks.fraction("eps", eps)
        if budget > self.eps:
            raise ValueError(f"eps must be at most {self.eps:g}, the budget that the attack had, got {eps}")
        return torch.where(self.distance <= budget, self.attacked, self.clean)

    def at(self, eps: float | str, confidence: float = 0.95) -> Point:
        """Robust accuracy at one budget: an upper bound, as from every attack."""
        shares = self.shares(eps).numpy()
        low, high = mean_interval(shares, confidence)
        return Point(checks.fraction("eps", eps), float(shares.mean()), low, high)

    def points(self, eps: Sequence[float | str] | None = None) -> list[Point]:
        """The curve at these budgets; default at 0 and wherever it changes."""
        if eps is None:
            found = self.distance[self.distance.isfinite()].numpy()
            eps = [float(e) for e in np.unique(np.append(found, 0.0))]
        return [self.at(e) for e in eps]

    @property
    def median(self) -> float:
        """The median distance of an adversarial input: infinity where half the samples or more have none in the budget."""
        found = torch.where(self.attacked < 0.5, self.distance, torch.inf)
        return float(found.sort().values[(len(found) - 1) // 2])


def accuracy_curve(
    model: nn.Module,
    data: Data,
    attack: Attack,
    *,
    n: int | None = None,
    seed: int = 0,
    selection_draws: int = 32,
    judge_draws: int = 128,
    batch_size: int = 256,
    folder: str | Path | None = None,
) -> AccuracyCurve:
    """The smallest distance at which ``attack`` changes each prediction, up to its budget.

    Args:
        model: Inputs to logits ``[B, K]``.
        data: The first ``n`` samples are used, the misclassified ones included.
        attack: One that looks for small distances (``CW``, ``DeepFool``, ``FAB``, ``MinimalNorm``); any other is run inside
            ``MinimalNorm``.
        n: Number of samples; default all.
        seed: Decides crafting, selection and judgement, which use independent streams.
        selection_draws, judge_draws: For models with randomness. A candidate counts where it is right less often than ``x``
            on selection draws; its share is that of judgement draws.
        batch_size: Changes no draw of snnrobust's modules.
        folder: The finished run is kept there and read back.
    """
    checks.module("model", model)
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an attack such as FAB(Linf('8/255')), got {attack!r:.100}")
    checks.count("seed", seed, low=0)
    checks.count("selection_draws", selection_draws)
    checks.count("judge_draws", judge_draws)
    checks.count("batch_size", batch_size)
    eps = common_eps(attack.threat, "accuracy_curve")
    if not getattr(attack, "minimal", False):
        attack = MinimalNorm(attack, selection_draws=selection_draws)
    x, y = take(data, n)
    attack.threat.check("inputs", x)
    random = is_stochastic(model, x[:16].to(device_of(model)))
    draws = Draws(selection_draws, judge_draws) if random else Draws(1, 1)
    clean, found = (
        run_cell(
            model, one, x, y, seed=seed, draws=draws, batch_size=batch_size, labels=("curve",),
            folder=None if folder is None else Path(folder),
        )
        for one in (None, attack)
    )  # fmt: skip
    fewer = found.selection.correct < clean.selection.correct
    distance = torch.where(fewer, found.distance, torch.inf)
    distance = torch.where(clean.selection.correct == 0, 0.0, distance)
    shares = [cell.judgement.correct.double() / draws.judgement for cell in (clean, found)]
    attacked = torch.where(fewer, shares[1], shares[0])
    return AccuracyCurve(attack.threat.name, eps, distance, shares[0], attacked)
