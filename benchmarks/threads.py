"""Two threads beside one, for whole training steps, in wall time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from benchmarks import networks, train
from benchmarks.harness import OURS, Case, Run
from benchmarks.networks import SMALL, VGG6
from benchmarks.targets import Target

__all__ = ["cases"]

ONE, TWO = f"{OURS}, 1 thread", f"{OURS}, 2 threads"


def cases(tiny: bool = False) -> Iterator[Case]:
    for architecture in (SMALL,) if tiny else (SMALL, VGG6):
        made = architecture.tiny() if tiny else architecture
        x, y = networks.batch(made, made.batch)
        step = train.epoch(networks.ours(made), x, y, made.batch)
        several = (os.cpu_count() or 1) > 1
        yield Case(
            f"Training step on threads, {made.name}, T = {made.time_steps}, batch of {made.batch}",
            {ONE: on(1, step), TWO: on(2, step) if several else "this machine has one core"},
            reference=ONE,
            targets=(Target(f"2 threads, training step, {made.name}", TWO, ONE, 1.6),),
            unit="ms a step",
            clock="wall",
            remarks=("Wall time, float32. On a machine that does other work too this says nothing: see the load.",),
        )


def on(threads: int, call: Run) -> Run:
    """``call`` on so many threads of torch."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            call()
        finally:
            torch.set_num_threads(before)

    return run
