"""What a stored result depends on, as a digest: models by their weights, attacks by their settings."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "models_in"]


def fingerprint(*parts: Any) -> str:
    """A digest that is the same in every process for equal models, tensors, settings and functions."""
    digest = hashlib.blake2b(digest_size=12)
    for piece in _pieces(parts):
        digest.update(piece)
        digest.update(b"\0")
    return digest.hexdigest()


def _pieces(part: Any) -> Iterator[bytes]:
    if isinstance(part, nn.Module):
        yield repr(part).encode()
        for name, tensor in part.state_dict().items():
            yield name.encode()
            yield from _pieces(tensor)
        for name, module in part.named_modules():  # what a chip keeps beside its weights
            chip = getattr(module, "_chip", None)
            if isinstance(chip, Tensor):
                yield name.encode()
                yield from _pieces(chip)
    elif isinstance(part, Tensor):
        yield f"{part.dtype}{tuple(part.shape)}".encode()
        yield part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield type(part).__qualname__.encode()
        for field in dataclasses.fields(part):
            yield field.name.encode()
            yield from _pieces(getattr(part, field.name))
    elif isinstance(part, Mapping):
        for key in part:
            yield from _pieces(key)
            yield from _pieces(part[key])
    elif isinstance(part, list | tuple):
        yield f"{len(part)}".encode()
        for inner in part:
            yield from _pieces(inner)
    elif callable(part) and hasattr(part, "__qualname__"):
        yield f"{part.__module__}.{part.__qualname__}".encode()
    else:
        yield repr(part).encode()


def models_in(part: Any) -> list[nn.Module]:
    """The models that an attack holds, such as the source of a transfer."""
    if isinstance(part, nn.Module):
        return [part]
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return [m for field in dataclasses.fields(part) for m in models_in(getattr(part, field.name))]
    return []
