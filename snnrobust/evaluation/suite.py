"""Running a suite of attacks stage by stage, each on the samples that are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnrobust.attacks import Backprop, Goal, Stage, Standard, cross_entropy
from snnrobust.attacks.selection import Measurement, better, measure
from snnrobust.draws import Stream, derive, device_of, evaluating
from snnrobust.evaluation.cell import Cell, Draws, run_cell
from snnrobust.evaluation.report import CONTROL, DOUBLED

__all__ = ["Estimate", "Found", "Job", "estimate", "run_suite"]


class Job(NamedTuple):
    """What all stages have in common."""

    model: nn.Module
    x: Tensor
    y: Tensor
    seed: int
    draws: Draws
    batch_size: int
    folder: Path | None


class Estimate(NamedTuple):
    """What a suite costs at most: passes for each image that no stage breaks, and the time for all images."""

    gradients: int
    forwards: int
    seconds: float


def estimate(job: Job, stages: Sequence[Stage]) -> Estimate:
    """Declared costs times the time that a gradient and a forward pass take now, on a batch."""
    gradients, forwards = (
        sum(getattr(s, kind) for s in stages if s.attack is not None) for kind in ("gradients", "forwards")
    )
    device = device_of(job.model)
    x, y = job.x[: job.batch_size].to(device), job.y[: job.batch_size].to(device)
    stream = Stream(0, torch.arange(len(x)))
    spent = []
    with evaluating(job.model):
        for call in (
            lambda: measure(job.model, x, Goal(y), stream, 1),
            lambda: Backprop()(job.model, x, y, cross_entropy, stream),
        ):
            try:
                call()  # the first call allocates
                began = time.perf_counter()
                call()
                spent.append((time.perf_counter() - began) / len(x))
            except ValueError:  # no gradient: the stages go round it, at the cost of a forward pass and a backward one
                spent.append(3 * spent[0])
    return Estimate(gradients, forwards, len(job.x) * (forwards * spent[0] + gradients * spent[1]))


def _run_stages(
    job: Job, stages: Sequence[Stage], start: Cell, labels: tuple[object, ...], done: Callable[[str, int], None]
) -> tuple[Cell, list[dict[str, Any]]]:
    """From ``start``, the standing candidates, to those after all stages, not judged; and a record of each stage.

    ``done(name, left)`` is called after each that is run. Every stage is a cell of its own, so that an interrupted run goes on.
    """
    winner = Cell(
        start.x_adv.clone(),
        Measurement(*(t.clone() for t in start.selection)),
        start.judgement,
        start.distance.clone(),
        0,
        0,
        0.0,
    )
    records = []
    for stage in stages:
        left = (winner.selection.correct > 0).nonzero()[:, 0]
        before, cell = len(left), None
        if stage.attack is not None and before:
            cell = run_cell(
                job.model, stage.attack, job.x[left], job.y[left], seed=job.seed, draws=replace(job.draws, judgement=0),
                batch_size=job.batch_size, labels=(*labels, stage.name), ids=left, folder=job.folder,
            )  # fmt: skip
            _enter(winner, cell, left)
            winner = winner._replace(
                forwards=winner.forwards + cell.forwards,
                gradients=winner.gradients + cell.gradients,
                seconds=winner.seconds + cell.seconds,
            )
        after = int((winner.selection.correct > 0).sum())
        records.append(
            {
                "stage": stage.name, "skipped": stage.skipped if stage.attack is None else "", "tried": before if cell else 0,
                "broken": before - after, "left": after,
                "accuracy": float((winner.selection.correct / job.draws.selection).mean()),
                "most_gradients": stage.gradients, "most_forwards": stage.forwards,
                "gradients": cell.gradients if cell else 0, "forwards": cell.forwards - cell.gradients if cell else 0,
                "seconds": cell.seconds if cell else 0.0,
            }
        )  # fmt: skip
        if stage.attack is not None:
            done(stage.name, after)
    return winner, records


def _enter(winner: Cell, cell: Cell, left: Tensor) -> None:
    """Put in what is worse for the model than the standing candidates at ``left``."""
    wins = better(cell.selection, Measurement(*(t[left] for t in winner.selection)))
    at = left[wins]
    winner.x_adv[at], winner.distance[at] = cell.x_adv[wins], cell.distance[wins]
    for old, new in zip(winner.selection, cell.selection, strict=True):
        old[at] = new[wins]


def _judged(job: Job, winner: Cell) -> Cell:
    """``winner`` with the measurement on the judgement draws."""
    parts = []
    with evaluating(job.model):
        for index in torch.arange(len(job.x)).split(job.batch_size):
            x_adv, y = (t[index].to(device_of(job.model)) for t in (winner.x_adv, job.y))
            parts.append(
                measure(job.model, x_adv, Goal(y), Stream(derive(job.seed, "judge"), index), job.draws.judgement)
            )
    return winner._replace(judgement=Measurement(*(torch.cat(t).cpu() for t in zip(*parts, strict=True))))


class Found(NamedTuple):
    """The worst that a suite found, a record of each stage, and by their lines in the report what its controls found."""

    cell: Cell
    records: list[dict[str, Any]]
    controls: dict[str, Cell]


def run_suite(
    job: Job, suite: Standard, clean: Cell, labels: tuple[object, ...], controls: bool, say: Callable[[str], None]
) -> Found:
    """All stages of ``suite`` and, if asked, its controls (:data:`CONTROL` and :data:`DOUBLED`)."""
    name, few = str(labels[0]), job.x[:16].to(device_of(job.model))
    stages = suite.stages(job.model, few)
    cost = estimate(job, stages)
    eps = suite.threat.eps
    say(
        f"{name}, version {suite.version}, at eps {eps:.4g}: {sum(s.attack is not None for s in stages)} stages, at most "
        f"{cost.gradients:,} gradients and {cost.forwards:,} forward passes for each image that none breaks; "
        f"{_time(cost.seconds)} for {len(job.x)} images if no stage breaks any"
        + (f", and {_time(3 * cost.seconds)} for the two controls" if controls else "")
    )

    def announce(stage: str, left: int) -> None:
        say(f"  {stage}: {left} of {len(job.x)} left")

    winner, records = _run_stages(job, stages, clean, (*labels, "suite"), announce)
    records = [{"suite": name, "version": suite.version, **r} for r in records]
    found: dict[str, Cell] = {}
    if controls:
        for line, planned, start in (
            (CONTROL, suite.control(job.model, few, cost.gradients, cost.forwards), clean),
            (DOUBLED, replace(suite, effort=2 * suite.effort).stages(job.model, few), winner),
        ):
            if all(stage.attack is None for stage in planned):
                say(f" {line}: not run ({planned[0].skipped})")
                continue
            say(f" {line}")
            cell, told = _run_stages(job, planned, start, (*labels, line), announce)
            found[line] = _judged(job, cell)
            records += [{"suite": line, "version": "", **r} for r in told]
    return Found(_judged(job, winner), records, found)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
