"""What a training step costs as T grows: time and peak memory, with and without recomputation in chunks of time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt

import torch
import torch.nn.functional as F
from torch import nn

import snnrobust.layers
from benchmarks import memory, networks, train
from benchmarks.harness import Case, DisagreementError, Run
from benchmarks.networks import SMALL, Architecture
from benchmarks.targets import Target
from snnrobust import SpikingClassifier

__all__ = ["cases", "peaks", "step_of"]

STEPS = (8, 16, 32, 64, 128)
BATCH = 16


def _chunked(model: SpikingClassifier, steps: int) -> nn.Module | str:
    """``model``, whose network keeps states between chunks of ``steps`` time steps only, and runs each chunk again backwards."""
    made = getattr(snnrobust.layers, "Chunked", None)
    if made is None or "steps" not in inspect.signature(made).parameters:
        return "snnrobust.layers has no Chunked"
    return SpikingClassifier(model.encoder, made(model.network, steps=steps), model.readout)


def chunk(time_steps: int) -> int:
    """The root of ``time_steps``, rounded up, which is the default of ``Chunked``."""
    return isqrt(time_steps - 1) + 1


def cases(tiny: bool = False) -> Iterator[Case]:
    lengths = (3, 6) if tiny else STEPS
    _check(_architecture(lengths[0], True))
    contenders: dict[str, Run | str | None] = {_name(t): _step(t, False, tiny) for t in lengths}
    contenders |= {_name(t, True): _step(t, True, tiny) for t in lengths}
    first, last = lengths[0], lengths[-1]
    yield Case(
        f"Training step as T grows, small conv SNN, batch of {BATCH}: time",
        contenders,
        reference=_name(first),
        targets=(
            Target(
                f"time of a time step, T = {last} and {first}",
                _name(last),
                _name(first),
                1.1,
                most=True,
                per=last / first,
            ),
            Target(f"time of chunked recomputation, T = {last}", _name(last, True), _name(last), 1.35, most=True),
        ),
        unit="ms a step",
        remarks=("Linear is a ratio of 1 for each time step; 1.1 allows for the spread of the measurement.",),
        figure="steps",
        at={_name(t, chunked): t for t in lengths for chunked in (False, True)},
    )


def peaks(tiny: bool = False) -> Iterator[Case]:
    lengths = (3, 6) if tiny else STEPS
    contenders: dict[str, Run | str | None] = {}
    for chunked in (False, True):
        for t in lengths:
            made = _step(t, chunked, True)
            contenders[_name(t, chunked)] = (
                made if isinstance(made, str) else memory.measured(step_of, t, chunked, tiny)
            )
    first, last = lengths[0], lengths[-1]
    root = (last / first) ** 0.5
    yield Case(
        f"Training step as T grows, small conv SNN, batch of {BATCH}: peak memory",
        contenders,
        reference=_name(first),
        targets=(
            Target(
                f"memory of a time step, T = {last} and {first}",
                _name(last),
                _name(first),
                1.1,
                most=True,
                per=last / first,
            ),
            Target(
                f"memory, chunked, T = {last} and {first}: root is {root:.3g}x",
                _name(last, True),
                _name(first, True),
                1.25 * root,
                most=True,
            ),
        ),
        unit="MiB",
        scale=2.0**-20,
        clock="peak",
        remarks=(
            "By how much resident memory grows in the first training step, in a new process for each.",
            "Chunked: chunks of the root of T, rounded up. The growth of the root is allowed 1.25 times.",
        ),
        figure="steps memory",
        at={_name(t, chunked): t for t in lengths for chunked in (False, True)},
    )


def _name(time_steps: int, chunked: bool = False) -> str:
    return f"T = {time_steps}, chunks of {chunk(time_steps)}" if chunked else f"T = {time_steps}"


def _architecture(time_steps: int, tiny: bool) -> Architecture:
    made = SMALL.tiny() if tiny else replace(SMALL, batch=BATCH)
    return replace(made, time_steps=time_steps)


def step_of(time_steps: int, chunked: bool, tiny: bool) -> Run:
    """One training step; a tiny one came before, so that what is loaded once is there."""
    _there(_step(time_steps, chunked, True))()
    return _there(_step(time_steps, chunked, tiny))


def _there(call: Run | str) -> Run:
    if isinstance(call, str):
        raise RuntimeError(call)
    return call


def _step(time_steps: int, chunked: bool, tiny: bool) -> Run | str:
    architecture = _architecture(time_steps, tiny)
    model: nn.Module | str = networks.ours(architecture)
    if chunked:
        model = _chunked(networks.ours(architecture), chunk(time_steps))
    if isinstance(model, str):
        return model
    x, y = networks.batch(architecture, architecture.batch)
    return train.epoch(model, x, y, architecture.batch)


def _check(architecture: Architecture) -> None:
    """Chunks change neither the loss nor the gradients."""
    model = networks.ours(architecture)
    chunked = _chunked(model, chunk(architecture.time_steps))
    if isinstance(chunked, str):
        return
    x, y = networks.batch(architecture, architecture.batch)
    found = []
    for made in (model, chunked):
        loss = F.cross_entropy(made(x), y)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, by_chunks in zip(*found, strict=True):
        if not torch.allclose(plain, by_chunks, rtol=1e-4, atol=1e-6):
            raise DisagreementError("chunks of time change the loss or its gradients")
