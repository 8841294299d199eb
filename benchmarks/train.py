"""Training steps of a small convolutional SNN: forward, backward and Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import OURS, Case, DisagreementError
from benchmarks.peers import JELLY, SNNTORCH, TIME_STEPS
from snnrobust.learning_rules import BPTT

__all__ = ["cases"]

LR = 1e-3


def cases(tiny: bool = False) -> Iterator[Case]:
    size, steps = (2, 2) if tiny else (64, 4)
    x, y = peers.batch(size * steps)
    models = {
        OURS: peers.our_network(),
        JELLY: peers.optional(peers.jelly_network),
        SNNTORCH: peers.optional(peers.snntorch_network),
    }
    _check(models[OURS], models[JELLY], x[:size], y[:size])
    fit = partial(BPTT(lr=LR, batch_size=size).fit, peers.our_network(), (x, y), epochs=1, progress=False)
    loops = {name: None if model is None else _epoch(model, x, y, size) for name, model in models.items()}
    yield Case(
        f"Training step, small conv SNN, T = {TIME_STEPS}, batch of {size}",
        {f"{OURS}, BPTT.fit": fit, **loops},
        reference=SNNTORCH,
        unit="ms a step",
        scale=1e3 / steps,
        remarks=(
            f"Same weights and data, float32, {steps} steps a call, in the same plain loop,",
            "but for BPTT.fit, which also checks its input and records a history.",
            f"{OURS} and {JELLY} begin at the same loss (checked).",
        ),
    )


def _epoch(model: nn.Module, x: Tensor, y: Tensor, size: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def epoch() -> None:
        model.train()
        for x_batch, y_batch in zip(x.split(size), y.split(size), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x_batch), y_batch).backward()
            optimizer.step()

    return epoch


@torch.no_grad()
def _check(ours: nn.Module | None, theirs: nn.Module | None, x: Tensor, y: Tensor) -> None:
    if ours is None or theirs is None:
        return
    losses = [F.cross_entropy(model(x), y) for model in (ours, theirs)]
    if not torch.isclose(losses[0], losses[1], rtol=1e-3, atol=0.0):
        raise DisagreementError(f"{OURS} begins at a loss of {losses[0]:.4f}, {JELLY} at {losses[1]:.4f}")
