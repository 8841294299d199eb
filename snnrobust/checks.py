"""Argument checks. Each error names the argument, what was given and what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

__all__ = [
    "boolean",
    "call",
    "choice",
    "count",
    "demand",
    "fraction",
    "free_name",
    "function",
    "integer",
    "labels",
    "logits",
    "module",
    "nearest",
    "number",
    "pixels",
    "sequence",
    "within",
]


def number(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    exclusive_low: bool = False,
    hint: str = "",
) -> float:
    """``value`` as a finite float within [low, high] (or (low, high])."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}{_hint(hint)}")
    try:
        as_float = float(value)
    except OverflowError:  # an integer of hundreds of digits
        as_float = math.inf
    if not math.isfinite(as_float) or as_float > high or as_float < low or (exclusive_low and as_float <= low):
        bracket = (
            ("finite and " if isinstance(value, float) and math.isinf(value) else "")
            + "in "
            + ("(" if exclusive_low else "[")
        )
        raise ValueError(f"{name} must be {bracket}{low:g}, {high:g}], got {value!r:.80}{_hint(hint)}")
    return as_float


def boolean(name: str, value: bool) -> bool:
    """``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def count(name: str, value: int, low: int = 1, hint: str = "") -> int:
    """``value`` as an integer of at least ``low``."""
    if integer(name, value, hint) < low:
        raise ValueError(f"{name} must be at least {low}, got {value}{_hint(hint)}")
    return value


def integer(name: str, value: int, hint: str = "") -> int:
    """``value`` if it is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}{_hint(hint)}")
    return value


def fraction(name: str, value: float | str, low: float = 0.0, high: float = math.inf) -> float:
    """A number, or a fraction written ``"8/255"``."""
    if isinstance(value, str):
        try:
            value = float(Fraction(value.replace(" ", "")))
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f'{name} must be a number or a fraction such as "8/255", got {value!r}') from error
    return number(name, value, low, high)


def choice(name: str, value: str, options: Iterable[str]) -> str:
    """``value`` if it is one of ``options``; the error names the nearest."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}{nearest(value, options)}")
    return value


def nearest(value: object, options: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing."""
    named = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(value).lower(), list(named), n=1, cutoff=0.5)
    return f" (did you mean {named[close[0]]!r}?)" if close else ""


def sequence(name: str, x: Tensor, rank: int = 2) -> Tensor:
    """A floating tensor with a time axis of at least one step: ``[T, B, *]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [T, B, ...], got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating, got {x.dtype}: convert with {name}.float()")
    if x.dim() < rank or x.shape[0] == 0:
        raise ValueError(f"{name} must be [T, B, ...] with at least one time step, got shape {tuple(x.shape)}")
    return x


def within(name: str, value: Tensor, low: float, high: float, *, exclusive_low: bool = False) -> Tensor:
    """A floating tensor, not empty, with every value finite and within [low, high] (or (low, high])."""
    if not value.is_floating_point() or value.numel() == 0:
        raise ValueError(f"{name} must be a floating tensor that is not empty, got {value.dtype} {tuple(value.shape)}")
    bracket = "(" if exclusive_low else "["
    v = value.detach()
    fits = (v > low if exclusive_low else v >= low) & (v <= high) & v.isfinite()
    demand(
        name,
        fits.all(),
        lambda: f"{name} must be in {bracket}{low:g}, {high:g}], got values from {v.min():g} to {v.max():g}",
    )
    return value


def demand(name: str, holds: Tensor, message: Callable[[], str]) -> None:
    """Raise where ``holds`` is False; in a graph that is being compiled or exported, where no value is known, the graph will."""
    if torch.compiler.is_compiling():
        torch._assert_async(holds, f"{name} contains NaN or values out of range")
    elif not holds:
        raise ValueError(message())


def pixels(name: str, x: Tensor, rank: int = 2, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """A floating batch ``[B, *]``, not empty, every value within ``bounds`` (so none is NaN)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [B, ...], got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating, got {x.dtype}: convert with {name}.float() / 255")
    if x.dim() < rank or x.numel() == 0:
        raise ValueError(f"{name} must be a batch [B, ...] that is not empty, got shape {tuple(x.shape)}")
    if torch.compiler.is_compiling():
        demand(name, ((x >= bounds[0]) & (x <= bounds[1]) & x.isfinite()).all(), str)
        return x
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{name} contains NaN: repair or leave out those samples")
    if math.isinf(low) or math.isinf(high):
        raise ValueError(f"{name} contains infinity: repair or leave out those samples")
    if not (low >= bounds[0] and high <= bounds[1]):
        raise ValueError(
            f"{name} must lie in [{bounds[0]:g}, {bounds[1]:g}], but lies in [{low:g}, {high:g}]: "
            "scale it there, and make normalisation a layer of the model"
        )
    return x


def labels(name: str, y: Tensor, batch: int, classes: int | None = None) -> Tensor:
    """int64 labels ``[B]`` in 0..classes-1."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.dim() != 1:
        given = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{name} must be int64 class labels [B], got {given}: use {name}.long()")
    if len(y) != batch:
        raise ValueError(f"{name} must have one label a sample: {len(y)} labels for {batch} samples")
    if classes is not None and len(y):
        low, high = torch.aminmax(y)
        if low < 0 or high >= classes:
            raise ValueError(f"{name} must lie in 0..{classes - 1}, got {int(low)}..{int(high)}")
    return y


def module(name: str, value: object) -> nn.Module:
    """A ``torch.nn.Module``."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module from inputs to logits, got {type(value).__name__}")
    return value


def free_name(registry: Mapping[str, type], kind: type) -> None:
    """``kind`` may stand in ``registry`` under its name: nothing else does. The same class may be defined again."""
    taken = registry.get(kind.__name__)
    if taken is not None and (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
        raise TypeError(
            f"the name {kind.__name__} is taken by {taken.__module__}.{taken.__qualname__}: "
            f"give {kind.__module__}.{kind.__qualname__} another"
        )


def function(name: str, value: object) -> object:
    """Something that can be called."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} must be a function or an object that can be called, got {value!r}")
    return value


def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``model(x)``, checked by :func:`logits`; an input that the model does not take is named with its shape."""
    version = None if x.is_inference() else x._version
    try:
        value = model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "in-place" in str(error) and "leaf" in str(error):
            raise ValueError(_IN_PLACE) from error
        raise ValueError(f"the model does not take x of shape {tuple(x.shape)}: {error}") from error
    if version is not None and x._version != version:
        raise ValueError(_IN_PLACE)
    return logits(value, y)


_IN_PLACE = (
    "the model changes its input in place, which no attack or measurement survives: let it start with x = x.clone()"
)


def logits(value: Tensor, y: Tensor) -> Tensor:
    """What a model returned for ``len(y)`` samples: ``[B, K]``, no NaN, and ``y`` within its K classes."""
    if not isinstance(value, Tensor) or value.dim() != 2 or len(value) != len(y):
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the model must return logits [B, K] for B = {len(y)}, got {given}")
    if value.detach().isnan().any():
        raise ValueError("the model returned NaN logits")
    labels("y", y, len(value), value.shape[1])
    return value


def _hint(hint: str) -> str:
    return f": {hint}" if hint else ""
