"""Modules as data: ``build(describe(module))`` has the same structure, with fresh weights.

A description is JSON made of the constructor arguments of known classes, so reading a stranger's runs none of their code.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnrobust import checks
from snnrobust.encoders import ENCODERS
from snnrobust.layers import (
    BNTT,
    QCFS,
    READOUTS,
    TDBN,
    TEBN,
    ActivationNoise,
    Chunked,
    Concat,
    Dropout,
    EventConv2d,
    EventLinear,
    Normalise,
    OrdinaryActivationNoise,
    OrdinaryConcat,
    OrdinaryDropout,
    OrdinaryResidual,
    Residual,
    Sequential,
)
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.models.early_exit import EarlyExit
from snnrobust.models.ensemble import Ensemble
from snnrobust.neurons import NEURONS, Recurrent
from snnrobust.neurons.surrogate import SURROGATES, Surrogate
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.weights import WeightQuantizer, quantize_weight, weight_quantizer

__all__ = ["MODULES", "build", "describe"]

_TORCH: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Dropout2d, nn.LSTM, nn.GRU, nn.RNN,
)  # fmt: skip
_OURS: tuple[type[nn.Module], ...] = (
    BNTT, TDBN, TEBN, Normalise, Recurrent, Residual, Concat, OrdinaryResidual, OrdinaryConcat, OrdinaryDropout, Dropout, Chunked,
    QCFS, ActivationNoise, OrdinaryActivationNoise, SpikingClassifier, EarlyExit, QuantizedMembrane, SignalQuantizer,
)  # fmt: skip
_QUANTIZED = "Quantized"  # a layer whose weight is

MODULES: dict[str, type[nn.Module]] = {f"torch.{c.__name__}": c for c in _TORCH} | {c.__name__: c for c in _OURS}
"""Classes that a description may name, besides neurons, encoders, readouts and containers. Add your own here: each
constructor argument must be an attribute of the same name, or an item of what its method ``arguments()`` returns."""

# The constructors of torch's recurrent layers take *args.
_RECURRENT = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
_OWN = {nn.LSTM: ["proj_size"], nn.GRU: [], nn.RNN: ["nonlinearity"]}
_DEEPEST = 1000  # layers of a recurrent module: each costs memory even on the meta device

_CONTAINERS: dict[str, type[nn.Module]] = {
    "torch.Sequential": nn.Sequential,
    "Sequential": Sequential,
    "Ensemble": Ensemble,
}


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
    if (quantizer := weight_quantizer(module)) is not None:
        return _describe_quantized(module, quantizer)
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
        raise TypeError("a model on a chip is no plain model: save it with hardware.save, or save the original")
    if isinstance(module, EventConv2d | EventLinear):
        raise TypeError(
            "event-driven layers are chosen for a machine and its inputs and are not saved: save the original, "
            "and call event_driven on it where it is used"
        )
    raise TypeError(
        f"{type(module).__name__} cannot be described: add its class to snnrobust.models.description.MODULES, "
        "or keep its state_dict() yourself"
    )


def _describe_quantized(layer: nn.Module, quantizer: WeightQuantizer) -> dict[str, Any]:
    kind = parametrize.type_before_parametrizations(layer)
    for name, known in _classes().items():
        if kind is known:
            plain = {"type": name, **{p: _value(layer, p) for p in _parameters(kind)}}
            return {"type": _QUANTIZED, "layer": plain, "weights": quantizer.recipe.describe()}
    raise TypeError(f"{kind.__name__} with quantized weights cannot be described: its class is not registered")


def _build_quantized(arguments: dict[str, Any]) -> nn.Module:
    if arguments.keys() != {"layer", "weights"}:
        raise ValueError(f"{_QUANTIZED} in a module description needs a layer and weights, and nothing else")
    layer = _build(arguments["layer"])
    if not isinstance(getattr(layer, "weight", None), Tensor) or parametrize.is_parametrized(layer):
        raise ValueError(f"{_QUANTIZED} in a module description: {type(layer).__name__} has no weight to quantize")
    return quantize_weight(layer, Quantizer.build(arguments["weights"], f"weights of {_QUANTIZED}"))


def _parameters(kind: type) -> list[str]:
    if kind in _OWN:
        return [*_RECURRENT, *_OWN[kind]]
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("device", "dtype")]


def _value(module: nn.Module, parameter: str) -> Any:
    own: dict[str, Any] = getattr(module, "arguments", dict)()
    value = own[parameter] if parameter in own else getattr(module, parameter)
    if parameter == "bias" and not isinstance(value, bool):
        return value is not None
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, Quantizer):
        return value.describe()
    if isinstance(value, Surrogate):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    if isinstance(value, Tensor):
        return value.tolist()
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
    if name in _CONTAINERS:
        if arguments.keys() != {"modules"} or not isinstance(arguments["modules"], list):
            raise ValueError(f"{name} in a module description needs a list of modules and nothing else")
        return _call(_CONTAINERS[name], *map(_build, arguments["modules"]))
    if name == _QUANTIZED:
        return _build_quantized(arguments)
    classes = _classes()
    checks.choice("module type", name, [*classes, *_CONTAINERS, _QUANTIZED])
    return _call(classes[name], **{p: _argument(p, value) for p, value in arguments.items()})


def _call(kind: type[nn.Module], /, *modules: nn.Module, **arguments: Any) -> nn.Module:
    for name in arguments:
        checks.choice(f"argument of {kind.__name__}", name, _parameters(kind))
    try:
        return kind(*modules, **arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{kind.__name__} in a module description: {error}") from error


def _argument(parameter: str, value: Any) -> Any:
    if parameter == "recipe":
        return Quantizer.build(value, "recipe in a module description")
    if isinstance(value, dict) and (parameter == "surrogate" or str(value.get("type")) in SURROGATES):
        name = checks.choice("surrogate", str(value.get("type")), SURROGATES)
        try:
            return SURROGATES[name](**{k: v for k, v in value.items() if k != "type"})
        except TypeError as error:
            raise ValueError(f"surrogate {name}: {error}") from error
    if isinstance(value, dict):
        return _build(value)
    if parameter == "num_layers" and isinstance(value, int) and value > _DEEPEST:
        raise ValueError(f"num_layers in a module description must be at most {_DEEPEST}, got {value}")
    return tuple(value) if isinstance(value, list) else value
