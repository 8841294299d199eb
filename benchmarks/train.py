"""Training steps: forward, backward and Adam, of whole networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks, peers
from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.networks import SMALL, VGG6, Architecture
from benchmarks.peers import JELLY, SNNTORCH
from benchmarks.targets import Target
from snnrobust.layers import event_driven
from snnrobust.learning_rules import BPTT

__all__ = ["BF16", "cases", "epoch"]

LR = 1e-3
BF16, EVENTS, FIT = f"{OURS}, bf16", f"{OURS}, event-driven", f"{OURS}, BPTT.fit"

Forward = Callable[[Tensor], Tensor]


def cases(tiny: bool = False) -> Iterator[Case]:
    yield _case(SMALL.tiny() if tiny else SMALL, 2, 1.8, 2.9)
    yield _case(VGG6.tiny() if tiny else VGG6, 1, 1.4, 2.5)


def _case(architecture: Architecture, steps: int, wanted: float, wanted_bf16: float) -> Case:
    size = architecture.batch
    x, y = networks.batch(architecture, size * steps)
    makers = {OURS: networks.ours, JELLY: networks.jelly, SNNTORCH: networks.snntorch}
    contenders: dict[str, Run | str | None] = {}
    for name, make in makers.items():
        contenders[name] = _loop(partial(make, architecture), x, y, size, bf16=False)
        contenders[f"{name}, bf16"] = _loop(partial(make, architecture), x, y, size, bf16=True)
        if name == OURS:
            contenders[EVENTS] = epoch(_event_driven(architecture, x[:size]), x, y, size)
    _check(architecture, x[: min(size, 4)], y[: min(size, 4)])
    if architecture.name == SMALL.name:
        contenders = {**contenders, FIT: _fit(architecture, x, y), f"{FIT}, bf16": _fit_bf16(architecture, x, y)}
    row = f"training step, {architecture.name}"
    return Case(
        f"Training step, {architecture.name}, T = {architecture.time_steps}, batch of {size}",
        contenders,
        reference=SNNTORCH,
        targets=(
            Target(f"{row}, float32", OURS, SNNTORCH, wanted),
            Target(f"{row}, bf16", BF16, SNNTORCH, wanted_bf16),
            Target(f"{row}, event-driven", EVENTS, SNNTORCH, wanted),
        ),
        unit="ms a step",
        scale=1e3 / steps,
        remarks=(
            f"Forward, backward and Adam; same weights and data; {steps} of them a call, in one plain loop, but for BPTT.fit,",
            "which also checks its input and records a history. bf16: the forward pass under torch.autocast.",
            f"{OURS} and {JELLY} have equal losses in float64 (checked). {SNNTORCH} normalises each step by itself, and",
            "by default resets one step later. All targets are beside its float32.",
            f"{EVENTS}: float32, after layers.event_driven has timed each layer on the batch.",
        ),
        figure="speed",
    )


def _event_driven(architecture: Architecture, x: Tensor) -> nn.Module:
    """Its layers event-driven where that is faster on ``x``, once running statistics are near those of the batch."""
    model = networks.ours(architecture).train()
    with torch.no_grad():
        for _ in range(20 if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else 0):
            model(x)
    return event_driven(model, x)[0]


def _loop(make: Callable[[], nn.Module], x: Tensor, y: Tensor, size: int, bf16: bool) -> Run | None:
    model = peers.optional(make)
    return None if model is None else epoch(model, x, y, size, bf16)


def epoch(model: nn.Module, x: Tensor, y: Tensor, size: int, bf16: bool = False) -> Callable[[], None]:
    """A plain training loop over ``x``."""
    forward: Forward = networks.in_bf16(model) if bf16 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def run() -> None:
        model.train()
        for x_batch, y_batch in zip(x.split(size), y.split(size), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(forward(x_batch), y_batch).backward()
            optimizer.step()

    return run


def _fit(architecture: Architecture, x: Tensor, y: Tensor, **settings: str) -> Run:
    rule = BPTT(lr=LR, batch_size=architecture.batch, **settings)  # type: ignore[arg-type]
    return partial(rule.fit, networks.ours(architecture), (x, y), epochs=1, progress=False)


def _fit_bf16(architecture: Architecture, x: Tensor, y: Tensor) -> Run | str:
    if "precision" not in {field.name for field in fields(BPTT)}:
        return "BPTT has no precision"
    return _fit(architecture, x, y, precision="bfloat16")


@torch.no_grad()
def _check(architecture: Architecture, x: Tensor, y: Tensor) -> None:
    """Equal losses in float64, where no rounding is carried over a threshold; finite and near them in float32 and bf16."""

    def losses(make: Callable[[Architecture], nn.Module]) -> list[float]:
        model = make(architecture)
        single, half = (F.cross_entropy(f(x), y) for f in (model, networks.in_bf16(model)))
        return [float(F.cross_entropy(make(architecture).double()(x.double()), y)), float(single), float(half)]

    mine = losses(networks.ours)
    theirs = peers.optional(lambda: losses(networks.jelly))
    if theirs is not None and abs(mine[0] - theirs[0]) > 1e-6 * abs(theirs[0]):
        raise DisagreementError(f"{OURS} begins at a loss of {mine[0]:.6f}, {JELLY} at {theirs[0]:.6f}")
    for losses_of in (mine, theirs or mine):
        if not all(abs(loss - losses_of[0]) <= 0.25 * abs(losses_of[0]) for loss in losses_of[1:]):
            raise DisagreementError(
                "the losses in float64, float32 and bf16 differ: " + ", ".join(f"{v:.4f}" for v in losses_of)
            )
