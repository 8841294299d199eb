"""What one training step of each learning rule costs in memory as T grows: that of the online rules should not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import memory
from benchmarks.harness import Case, Run
from benchmarks.targets import Target
from snnrobust.experiments.build import build_model
from snnrobust.experiments.config import ModelSection
from snnrobust.learning_rules import RULES

__all__ = ["peaks", "step_of"]

ONLINE = ("OTTT", "DECOLLE", "EProp")
OFFLINE = ("BPTT", "DFA")
STEPS = (8, 32, 128)
BATCH = 16


def peaks(tiny: bool = False) -> Iterator[Case]:
    lengths = (2, 4) if tiny else STEPS
    first, last = lengths[0], lengths[-1]
    contenders: dict[str, Run | str | None] = {
        _name(rule, t): memory.measured(step_of, rule, t, tiny) for rule in (*OFFLINE, *ONLINE) for t in lengths
    }
    yield Case(
        f"Training step of learning rules as T grows, small conv SNN, batch of {BATCH}: peak memory",
        contenders,
        reference=_name("BPTT", first),
        targets=tuple(
            Target(f"memory of {rule}, T = {last} and {first}", _name(rule, last), _name(rule, first), 1.1, most=True)
            for rule in ONLINE
        ),
        unit="MiB",
        scale=2.0**-20,
        clock="peak",
        remarks=(
            "By how much resident memory grows in the first training step, in a new process for each; the same network, without",
            "normalisation, behind a Poisson encoder. Flat is a ratio of 1; 1.1 allows for the allocator.",
        ),
    )


def _name(rule: str, time_steps: int) -> str:
    return f"T = {time_steps}, {rule}"


def step_of(rule: str, time_steps: int, tiny: bool) -> Run:
    """One training step; a tiny one came before, so that what is loaded once is there."""
    _step(rule, 2, True)()
    return _step(rule, time_steps, tiny)


def _step(rule: str, time_steps: int, tiny: bool) -> Run:
    side, size = (8, 2) if tiny else (28, BATCH)
    given: dict[str, Any] = {"norm": "none", "readout": {"type": "MeanOutput"}, **RULES[rule].needs}
    architecture = "conv-small" if tiny else "conv-mnist"
    encoder = {"type": "Poisson", "time_steps": time_steps}
    section = ModelSection.model_validate({"name": rule, "architecture": architecture, "encoder": encoder, **given})
    model = build_model(section, (1, side, side), 10, seed=0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(size, 1, side, side, generator=generator), torch.arange(size) % 10
    return partial(RULES[rule](batch_size=size).fit, model, (x, y), epochs=1, progress=False)
