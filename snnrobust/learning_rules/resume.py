"""The whole state of a training in one safetensors file: weights, optimizer, history. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust.learning_rules.trainer import History
from snnrobust.models.checkpoint import read_tensors, write_tensors

__all__ = ["Weights", "check_identity", "load_state", "put_back", "save_state", "weights_of"]

Weights = Mapping[str, Tensor]
_REMEDY = "give another checkpoint path, or remove the file to start again"


def weights_of(model: nn.Module, learnt: nn.Module | None = None) -> dict[str, Tensor]:
    """The states of both, under ``model.`` and ``learnt.``; not copied."""
    parts = {"model": model, "learnt": nn.Module() if learnt is None else learnt}
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def put_back(weights: Weights, model: nn.Module, learnt: nn.Module | None = None) -> None:
    """Give both the states that :func:`weights_of` found."""
    model.load_state_dict(_named(weights, "model."))
    if learnt is not None:
        learnt.load_state_dict(_named(weights, "learnt."))


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    history: History,
    learnt: nn.Module | None = None,
    best: Weights | None = None,
) -> None:
    """Atomic: a kill at any moment leaves the old file or the new one.

    Args:
        path: The file.
        model, optimizer, history: What is kept.
        identity: Says which training this is.
        learnt: What the rule learns beside the model.
        best: :func:`weights_of` the best epoch so far.
    """
    tensors = weights_of(model, learnt) | {f"best.{name}": t for name, t in (best or {}).items()}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:  # SGD without momentum keeps None
                numbers[f"{index}.{name}"] = value
    content = {"identity": identity, "numbers": numbers, "records": history.records}
    write_tensors(path, "training state", tensors, content)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    learnt: nn.Module | None = None,
) -> tuple[History, dict[str, Tensor] | None]:
    """Put ``model``, ``optimizer`` and ``learnt`` back to where :func:`save_state` found them; the history and the best weights.

    Raises:
        ValueError: the file is damaged, or is of another model or another training. Nothing is changed then.
    """
    tensors, content = read_tensors(path, "training state")
    check_identity(path, content["identity"], identity)
    stored = {name: t for name, t in tensors.items() if name.startswith(("model.", "learnt."))}
    if {name: t.shape for name, t in stored.items()} != {n: t.shape for n, t in weights_of(model, learnt).items()}:
        raise ValueError(f"{path} is of another model: {_REMEDY}")
    put_back(stored, model, learnt)
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**_named(tensors, "optimizer."), **content["numbers"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return History(content["records"]), _named(tensors, "best.") or None


def check_identity(path: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise ValueError, naming what differs, if the file at ``path`` is of another training."""
    if found != identity:
        differing = {k for k in identity.keys() | found.keys() if identity.get(k) != found.get(k)}
        raise ValueError(f"{path} is of another training ({', '.join(sorted(differing))} differ): {_REMEDY}")


def _named(tensors: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
