"""One cell of an evaluation: one attack on one model, crafted, checked, selected and judged. Pure, so it can be stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnrobust.attacks import Attack, Goal
from snnrobust.attacks.selection import Measurement, measure
from snnrobust.draws import Stream, derive, device_of, evaluating
from snnrobust.evaluation.fingerprint import fingerprint, models_in
from snnrobust.models.checkpoint import read_tensors, write_tensors

__all__ = ["Cell", "Draws", "run_cell"]

_KIND = "evaluation cell"


@dataclass(frozen=True)
class Draws:
    """How many draws select and judge; both are 1 for a model without randomness. Without judgement that is 0."""

    selection: int
    judgement: int


class Cell(NamedTuple):
    x_adv: Tensor
    selection: Measurement
    judgement: Measurement
    distance: Tensor
    forwards: int  # samples through a model, those of gradients included
    gradients: int
    seconds: float


class _Cost:
    forwards = 0
    gradients = 0


def run_cell(
    model: nn.Module,
    attack: Attack | None,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    draws: Draws,
    batch_size: int,
    labels: tuple[object, ...],
    ids: Tensor | None = None,
    folder: Path | None = None,
) -> Cell:
    """Craft with ``attack`` (None: the clean input), then measure on selection draws and on judgement draws of their own.

    The three use independent streams. ``ids`` are the identities of the samples, default 0, 1, 2, ... With ``folder`` the cell
    is read from there, or computed and written.
    """
    compute = partial(
        _compute, model, attack, x, y, torch.arange(len(x)) if ids is None else ids, seed, draws, batch_size
    )
    if folder is None:
        return compute(labels)
    named = labels if ids is None else (*labels, tuple(ids.tolist()))
    path = folder / f"{fingerprint(model, attack, x, y, seed, draws, named)}.safetensors"
    if path.exists():
        cell = _read(path)
        if attack is not None:
            attack.threat.validate(x, cell.x_adv)  # validity is recomputed from what is stored
        return cell
    cell = compute(labels)
    _write(path, cell)
    return cell


def _compute(
    model: nn.Module,
    attack: Attack | None,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    seed: int,
    draws: Draws,
    batch_size: int,
    labels: tuple[object, ...],
) -> Cell:
    began = time.perf_counter()
    cost = _Cost()
    parts = []
    for index in torch.arange(len(x)).split(batch_size):
        at, true, named = x[index].to(device_of(model)), y[index].to(device_of(model)), ids[index]
        x_adv = at
        if attack is not None:
            with _counting([model, *models_in(attack)], cost):
                x_adv = attack(model, at, true, seed=derive(seed, "craft", *labels), sample_ids=named)
        with evaluating(model):
            selection = measure(model, x_adv, Goal(true), Stream(derive(seed, "select"), named), draws.selection)
            judgement = measure(model, x_adv, Goal(true), Stream(derive(seed, "judge"), named), draws.judgement)
        parts.append((x_adv.cpu(), _to_cpu(selection), _to_cpu(judgement)))
    x_adv = torch.cat([p[0] for p in parts])
    distance = torch.zeros(len(x), dtype=torch.float64) if attack is None else attack.threat.distance(x, x_adv)
    return Cell(
        x_adv,
        Measurement(*(torch.cat(t) for t in zip(*(p[1] for p in parts), strict=True))),
        Measurement(*(torch.cat(t) for t in zip(*(p[2] for p in parts), strict=True))),
        distance,
        cost.forwards,
        cost.gradients,
        time.perf_counter() - began,
    )


def _to_cpu(measured: Measurement) -> Measurement:
    return Measurement(*(t.cpu() for t in measured))


@contextmanager
def _counting(models: list[nn.Module], cost: _Cost) -> Iterator[None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cost.forwards += len(inputs[0])
        cost.gradients += len(inputs[0]) if torch.is_grad_enabled() and inputs[0].requires_grad else 0

    handles = [m.register_forward_hook(count) for m in {id(m): m for m in models}.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _write(path: Path, cell: Cell) -> None:
    tensors = {"x_adv": cell.x_adv, "distance": cell.distance}
    for name, measured in (("selection", cell.selection), ("judgement", cell.judgement)):
        tensors |= {f"{name}.{field}": value for field, value in measured._asdict().items()}
    numbers = {"forwards": cell.forwards, "gradients": cell.gradients, "seconds": cell.seconds}
    write_tensors(path, _KIND, tensors, numbers)


def _read(path: Path) -> Cell:
    tensors, numbers = read_tensors(path, _KIND)
    selection, judgement = (
        Measurement(*(tensors[f"{name}.{field}"] for field in Measurement._fields))
        for name in ("selection", "judgement")
    )
    return Cell(tensors["x_adv"], selection, judgement, tensors["distance"], **numbers)
