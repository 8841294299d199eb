"""What is looked at before work is wasted on it, and what tells one training from another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import deque
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snnrobust import checks
from snnrobust.data import Data, batches
from snnrobust.draws import device_of, draws, evaluating
from snnrobust.models import SpikingClassifier
from snnrobust.models.description import describe

__all__ = ["digest", "plain", "preflight", "streamed", "structure"]


def preflight(model: nn.Module, data: Data, what: str = "") -> Tensor:
    """Find bad data: all of it where it is in memory, else its first batch. Returns one input, ``[1, *]``.

    Args:
        what: Which data that is, before the names in messages.
    """
    tensors = data if isinstance(data, tuple) else data.tensors if isinstance(data, TensorDataset) else None
    if tensors is None:
        first = next(iter(batches(data, 2)))
        tensors = (first.x, first.y)
    x, y = tensors[0], tensors[1]
    checks.pixels(f"{what}inputs", x, bounds=(-math.inf, math.inf))
    device = device_of(model)
    with torch.no_grad(), evaluating(model), draws(model, 0):
        try:
            logits = streamed(model, x[:1].to(device), steps=1)
        except RuntimeError as error:
            given = f"shape {tuple(x.shape)} and {x.dtype}"
            raise ValueError(f"the model does not take inputs of {given}: {error}") from error
    checks.labels(f"{what}labels", y, len(x), logits.shape[1] if logits.dim() == 2 else None)
    checks.logits(logits, y[:1])
    return x[:1].to(device)


def streamed(model: nn.Module, x: Tensor, steps: int | None = None) -> Tensor:
    """``model(x)`` in the memory of one time step; of a spiking classifier after ``steps`` of them, if that is given."""
    if not isinstance(model, SpikingClassifier):
        return model(x)  # type: ignore[no-any-return]
    return deque(islice(model.stream(x), steps), maxlen=1)[0]


def structure(model: nn.Module) -> Any:
    """What tells models of equal shapes apart, such as the constants of their neurons."""
    try:
        return describe(model)
    except (TypeError, AttributeError):  # of classes that have no description
        return str(model)


def digest(data: Data) -> str:
    """Of data in memory the content, else the number of samples or batches."""
    tensors = data if isinstance(data, tuple) else data.tensors if isinstance(data, TensorDataset) else None
    if tensors is None:
        return f"{len(data)}" if hasattr(data, "__len__") else "unknown"
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def plain(rule: Any) -> dict[str, Any]:
    """A rule's settings as JSON gives them back; objects in it, such as surrogates, with their type."""
    values = {f.name: _plain(getattr(rule, f.name)) for f in dataclasses.fields(rule)}
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **plain(value)}
    if isinstance(value, nn.Module):
        return structure(value)
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value
