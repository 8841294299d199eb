"""Objects named in an experiment file: ``{ type = "PGD", steps = 20 }``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from snnrobust import checks
from snnrobust.hardware import BACKENDS, Backend, Chain
from snnrobust.neurons.surrogate import SURROGATES

__all__ = ["Component", "make"]


class Component(BaseModel):
    """A class by its registered name, and arguments of its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def make(component: Component, registry: Mapping[str, Any], what: str, **given: Any) -> Any:
    """The object that ``component`` describes; ``given`` are arguments that the file does not set.

    Raises:
        ValueError: an unknown type or argument (the nearest valid one is named), or a value that the class refuses.
    """
    kind = registry[checks.choice(f"{what}.type", component.type, registry)]
    accepted = [p for p in inspect.signature(kind).parameters if p not in given]
    arguments: dict[str, Any] = {}
    for name, value in component.arguments.items():
        if name not in accepted:
            listed = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise ValueError(
                f"{what}.{name}: {component.type} has no argument of this name{checks.nearest(name, accepted)}; {listed}"
            )
        if name == "surrogate" and isinstance(value, dict):
            value = make(Component.model_validate(value), SURROGATES, f"{what}.surrogate")
        if name == "backends":
            value = _backends(value, f"{what}.backends")
        arguments[name] = value
    try:
        return kind(**arguments, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


def _backends(value: Any, what: str) -> tuple[Backend, ...]:
    """Effects of a chip, in order."""
    if not isinstance(value, list) or not all(isinstance(v, dict) and isinstance(v.get("type"), str) for v in value):
        raise ValueError(
            f'{what} must be a list such as [{{ type = "GaussianNoise", multiplicative = 0.2 }}], got {value!r:.80}'
        )
    effects = {name: kind for name, kind in BACKENDS.items() if kind is not Chain}
    return tuple(make(Component.model_validate(v), effects, f"{what}[{i}]") for i, v in enumerate(value))
