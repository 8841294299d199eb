"""What the declared gradient is for: an attack that follows it is not beaten by one that does not."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from snnrobust import SpikingClassifier
from snnrobust.attacks import PGD, Linf
from snnrobust.draws import draws
from snnrobust.encoders import (
    ENCODERS,
    Delta,
    Direct,
    Frames,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.neurons import LIF

T, STEPS, EPS = 6, 20, 0.1
CASES = {
    "Direct": Direct(T),
    "Poisson": Poisson(T),
    "SignedPoisson": SignedPoisson(T),
    "Phase": Phase(T, 4),
    "Population": Population(T, 3),
    "Delta": Delta(T, 0.3),
    "Delta, channels": Delta(T, 0.3, polarity="channels"),
    "Delta, first": Delta(T, 0.3, before="first"),
    "LevelCrossing": LevelCrossing(T, 0.3),
    "LevelCrossing, channels": LevelCrossing(T, 0.3, polarity="channels"),
    "Frames": Frames(T),
    "Rows": Rows(T),
}


def test_every_encoder_but_one_is_tried():
    """``Latency`` has a stand-in for a gradient, which random search may beat: docs/encoders.md says so."""
    assert {type(encoder) for encoder in CASES.values()} == {k for n, k in ENCODERS.items() if n != "Latency"}


def _right(model, x, y):
    """Whether the mean logits over some draws are right, ``[B]``."""
    logits = []
    with torch.no_grad():
        for key in range(8 if model.encoder.stochastic else 1):
            with draws(model, key):
                logits.append(model(x))
    return torch.stack(logits).mean(0).argmax(1) == y


def _robust(encoder, hidden, seed):
    """Shares that stay right under PGD, and under as many random signs as PGD has steps."""
    torch.manual_seed(seed)
    x = torch.rand(32, 1, 6, 6)
    if isinstance(encoder, Delta | Frames):  # frames that move a little
        x = (x[:, None] + 0.15 * torch.randn(32, T, 1, 6, 6).cumsum(1)).clamp(0, 1)
    size = prod(encoder.output_shape(x.shape[1:]))
    layers = [nn.Linear(size, 32), LIF(0.9, 0.5), nn.Linear(32, 4)] if hidden else [nn.Linear(size, 4)]
    model = SpikingClassifier(encoder, Sequential(nn.Flatten(), *layers), MeanOutput()).eval()
    with torch.no_grad(), draws(model, 0):
        y = model(x).argmax(1)
    attacked = PGD(Linf(EPS), steps=STEPS)(model, x, y, seed=1)
    survivors = _right(model, x, y)
    for _ in range(STEPS):
        survivors &= _right(model, (x + EPS * torch.randn_like(x).sign()).clamp(0, 1), y)
    return _right(model, attacked, y).float().mean(), survivors.float().mean()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pgd_is_not_beaten_by_random_signs(case, hidden):
    shares = torch.tensor([_robust(CASES[case], hidden, seed) for seed in range(3)])
    pgd, random = shares.mean(0)
    assert pgd <= random
