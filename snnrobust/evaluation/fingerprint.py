"""What a stored result depends on, as a digest: models by their weights, attacks by their settings."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import __version__

__all__ = ["fingerprint", "models_in"]


def fingerprint(*parts: Any) -> str:
    """A digest that is the same in every process for equal models, tensors, settings and functions.

    It covers weights, plain attributes, the byte code of functions and the version of snnrobust, but not the source of a
    user's classes. An object that is none of these counts by its ``repr``: if that holds an address, nothing is read back.
    """
    digest = hashlib.blake2b(__version__.encode(), digest_size=12)
    for piece in _pieces(parts):
        digest.update(piece)
        digest.update(b"\0")
    return digest.hexdigest()


def _pieces(part: Any, inside: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """``inside``: the modules that are being described, which may hold themselves, as the owners of their own methods."""
    if isinstance(part, nn.Module) and id(part) in inside:
        yield type(part).__qualname__.encode()
    elif isinstance(part, nn.Module):
        inside = inside | {id(module) for module in part.modules()}
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):  # a state_dict leaves some buffers out
            yield name.encode()
            yield from _pieces(tensor, inside)
        for name, module in part.named_modules(remove_duplicate=False):
            yield f"{name} {type(module).__module__}.{type(module).__qualname__}".encode()
            for key, value in vars(module).items():  # thresholds, sizes, the pattern of a chip
                if (not key.startswith("_") or key == "_chip") and key != "training":
                    yield key.encode()
                    yield from _pieces(value, inside)
            if callable(arguments := getattr(module, "arguments", None)):  # those that are no attributes
                yield from _pieces(arguments(), inside)
    elif isinstance(part, Tensor):
        yield f"{part.dtype}{tuple(part.shape)}".encode()
        yield part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(part, np.ndarray):
        yield f"{part.dtype}{part.shape}".encode()
        yield part.tobytes()
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield type(part).__qualname__.encode()
        for field in dataclasses.fields(part):
            yield field.name.encode()
            yield from _pieces(getattr(part, field.name), inside)
    elif isinstance(part, Mapping):
        for key in part:
            yield from _pieces(key, inside)
            yield from _pieces(part[key], inside)
    elif isinstance(part, list | tuple):
        yield f"[{len(part)}".encode()
        for inner in part:
            yield from _pieces(inner, inside)
    elif isinstance(part, partial):
        yield from _pieces((part.func, part.args, part.keywords), inside)
    elif isinstance(part, MethodType):
        yield from _pieces((part.__func__, part.__self__), inside)
    elif isinstance(part, FunctionType):
        yield f"{part.__module__}.{part.__qualname__}".encode()
        yield from _pieces(
            (part.__code__.co_code, part.__code__.co_names, part.__defaults__, part.__kwdefaults__), inside
        )
        yield from _pieces([c for c in part.__code__.co_consts if not isinstance(c, CodeType)], inside)
        yield from _pieces([cell.cell_contents for cell in part.__closure__ or ()], inside)
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
    if isinstance(part, Mapping):
        return [m for value in part.values() for m in models_in(value)]
    return []
