"""Modules as data: ``build(describe(module))`` has the same structure, with fresh weights.

A description is JSON made of the constructor arguments of known classes, so reading a stranger's runs none of their code.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch import nn

from snnrobust import checks
from snnrobust.encoders import ENCODERS
from snnrobust.layers import BNTT, READOUTS, Sequential
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.neurons import NEURONS
from snnrobust.neurons.surrogate import SURROGATES, Surrogate

__all__ = ["MODULES", "build", "describe"]

_TORCH: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Dropout2d,
)  # fmt: skip

MODULES: dict[str, type[nn.Module]] = {f"torch.{c.__name__}": c for c in _TORCH} | {"BNTT": BNTT}
"""Classes that a description may name, besides neurons, encoders, readouts and containers. Add your own here: each
constructor argument must be an attribute of the same name."""

_CONTAINERS: dict[str, type[nn.Module]] = {"torch.Sequential": nn.Sequential, "Sequential": Sequential}


def _classes() -> dict[str, type[nn.Module]]:
    return {**MODULES, **NEURONS, **ENCODERS, **READOUTS}


def describe(module: nn.Module) -> dict[str, Any]:
    """The description of ``module``.

    Raises:
        TypeError: a part of it is of a class that is not registered.
    """
    parametric = [id(m) for _, m in module.named_modules(remove_duplicate=False) if list(m.parameters(recurse=False))]
    if len(set(parametric)) < len(parametric):
        raise TypeError(
            "a layer with weights that stands in two places cannot be described: keep its state_dict() yourself"
        )
    if type(module) is SpikingClassifier:
        parts = {name: describe(part) for name, part in module.named_children()}
        return {"type": "SpikingClassifier", **parts}
    for name, kind in _CONTAINERS.items():
        if type(module) is kind:
            return {
                "type": name,
                "modules": [describe(child) for child in module._modules.values() if child is not None],
            }
    for name, kind in _classes().items():
        if type(module) is kind:
            return {"type": name, **{p: _value(module, p) for p in _parameters(kind)}}
    if type(module).__module__.startswith("snnrobust.hardware"):
        raise TypeError(
            "a model on a chip is not saved: save the original, and deploy it again with the same backend and seed"
        )
    raise TypeError(
        f"{type(module).__name__} cannot be described: add its class to snnrobust.models.description.MODULES, "
        "or keep its state_dict() yourself"
    )


def _parameters(kind: type) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("device", "dtype")]


def _value(module: nn.Module, parameter: str) -> Any:
    if parameter == "bias":
        return module.bias is not None
    value = getattr(module, parameter)
    if isinstance(value, Surrogate):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    return list(value) if isinstance(value, tuple) else value


def build(description: Any) -> nn.Module:
    """The module that ``description`` describes.

    Raises:
        ValueError: an unknown class or argument, or a value that its constructor refuses.
    """
    try:
        return _build(description)
    except RecursionError as error:
        raise ValueError("the module description is nested too deeply") from error


def _build(description: Any) -> nn.Module:
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise ValueError(f"a module description must be an object with a type, got {description!r:.80}")
    arguments = {name: value for name, value in description.items() if name != "type"}
    name = description["type"]
    if name == "SpikingClassifier":
        return _call(SpikingClassifier, **{part: _build(value) for part, value in arguments.items()})
    if name in _CONTAINERS:
        if arguments.keys() != {"modules"} or not isinstance(arguments["modules"], list):
            raise ValueError(f"{name} in a module description needs a list of modules and nothing else")
        return _call(_CONTAINERS[name], *map(_build, arguments["modules"]))
    classes = _classes()
    checks.choice("module type", name, [*classes, *_CONTAINERS, "SpikingClassifier"])
    return _call(classes[name], **{p: _argument(value) for p, value in arguments.items()})


def _call(kind: type[nn.Module], /, *modules: nn.Module, **arguments: Any) -> nn.Module:
    for name in arguments:
        checks.choice(f"argument of {kind.__name__}", name, _parameters(kind))
    try:
        return kind(*modules, **arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{kind.__name__} in a module description: {error}") from error


def _argument(value: Any) -> Any:
    if isinstance(value, dict):
        name = checks.choice("surrogate", str(value.get("type")), SURROGATES)
        try:
            return SURROGATES[name](**{k: v for k, v in value.items() if k != "type"})
        except TypeError as error:
            raise ValueError(f"surrogate {name}: {error}") from error
    return tuple(value) if isinstance(value, list) else value
