"""The whole state of a training in one safetensors file: weights, optimizer, history. No pickle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust.learning_rules.trainer import History
from snnrobust.models.checkpoint import read_tensors, write_tensors

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any], history: History
) -> None:
    """Atomic: a kill at any moment leaves the old file or the new one. ``identity`` says which training this is."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    write_tensors(path, "training state", tensors, {"identity": identity, "numbers": numbers, **asdict(history)})


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> History:
    """Put ``model`` and ``optimizer`` back to where :func:`save_state` found them.

    Raises:
        ValueError: the file is damaged, or is of another model or another training.
    """
    tensors, content = read_tensors(path, "training state")
    remedy = "give another checkpoint path, or remove the file to start again"
    if content["identity"] != identity:
        differing = {
            k for k in identity.keys() | content["identity"].keys() if identity.get(k) != content["identity"].get(k)
        }
        raise ValueError(f"{path} is of another training ({', '.join(sorted(differing))} differ): {remedy}")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in model.state_dict().items()}:
        raise ValueError(f"{path} is of another model: {remedy}")
    model.load_state_dict(weights)
    state: dict[int, dict[str, Any]] = {}
    named = {k.removeprefix("optimizer."): t for k, t in tensors.items() if k.startswith("optimizer.")}
    for key, value in {**named, **content["numbers"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return History(content["records"])
