"""PGD with 10 steps through a small convolutional SNN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import OURS, Case, DisagreementError
from benchmarks.peers import SNNTORCH, TIME_STEPS
from snnrobust.attacks import PGD, Linf

__all__ = ["by_hand", "cases"]

EPS = 8 / 255
STEPS = 10
SIZE = 2.5 * EPS / STEPS


def cases(tiny: bool = False) -> Iterator[Case]:
    size = 2 if tiny else 64
    x, y = peers.batch(size)
    ours, theirs = peers.our_network().eval(), peers.optional(lambda: peers.snntorch_network().eval())
    pgd = PGD(Linf(EPS), steps=STEPS, step_size=SIZE, random_start=False)
    _check(pgd(ours, x[:8], y[:8], seed=0), by_hand(ours, x[:8], y[:8]))
    yield Case(
        f"PGD-{STEPS}, small conv SNN, T = {TIME_STEPS}, batch of {size}",
        {
            OURS: partial(pgd, ours, x, y, seed=0),
            SNNTORCH: None if theirs is None else partial(by_hand, theirs, x, y),
        },
        reference=SNNTORCH,
        unit="ms a sample",
        scale=1e3 / size,
        remarks=(
            "Same weights, steps, budget and start (at x), float32, no early stop.",
            f"{SNNTORCH}: attacked by hand with loss.backward(), which computes weight gradients too.",
            f"{OURS} attacked by hand gives the same images as its PGD (checked).",
        ),
    )


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loop that is in most papers' code."""
    x_adv = x.clone()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        model.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        with torch.no_grad():
            x_adv = x_adv + SIZE * x_adv.grad.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def _check(ours: Tensor, by_hand: Tensor) -> None:
    """Rounding turns a few signs, and so a few pixels."""
    differ = float(((ours - by_hand).abs() > 1e-6).float().mean())
    if differ > 0.01:
        raise DisagreementError(f"PGD and the loop by hand differ in {differ:.1%} of the pixels")
