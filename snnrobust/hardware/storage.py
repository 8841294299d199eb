"""Chips as files: what was deployed, on what, and all that the arrays hold. No pickle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnrobust import checks
from snnrobust.hardware.backend import BACKENDS, Backend, Chain

__all__ = ["Recipe", "blank", "build_backend", "describe_backend", "load", "save"]

_KIND = "chip"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a chip was made; kept on it by :func:`~snnrobust.hardware.deploy`.

    Args:
        model: The description of the original, or why there is none.
        backend: Likewise.
        seed: Of the chip.
        layers: Those on the chip; None for all.
    """

    model: dict[str, Any] | str
    backend: dict[str, Any] | str
    seed: int
    layers: tuple[str, ...] | None

    @classmethod
    def of(cls, model: nn.Module, backend: Backend, seed: int, layers: tuple[str, ...] | None) -> Recipe:
        from snnrobust.models.description import describe  # models import hardware

        return cls(_or_why(lambda: describe(model)), _or_why(lambda: describe_backend(backend)), seed, layers)


def _or_why(describe: Callable[[], dict[str, Any]]) -> dict[str, Any] | str:
    try:
        return describe()
    except TypeError as error:
        return str(error)


def describe_backend(backend: Backend) -> dict[str, Any]:
    """The type and the constructor arguments of a backend, as JSON has them.

    Raises:
        TypeError: an argument is no plain value, or no attribute of the same name.
    """
    name = type(backend).__name__
    if isinstance(backend, Chain):
        return {"type": name, "backends": [describe_backend(part) for part in backend.each()]}
    arguments = {}
    for argument, parameter in inspect.signature(type(backend)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):  # of nn.Module
            continue
        value = getattr(backend, argument, inspect.Parameter.empty)
        try:
            arguments[argument] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} cannot be described: {argument} must be kept as an attribute that holds plain values"
            ) from error
    return {"type": name, **arguments}


def build_backend(description: Any) -> Backend:
    """The backend of :func:`describe_backend`.

    Raises:
        ValueError: an unknown type or argument, or a value that is refused.
    """
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise ValueError(f"the description of a backend must be an object with a type, got {description!r:.80}")
    arguments = {k: v for k, v in description.items() if k != "type"}
    name = checks.choice("backend", description["type"], BACKENDS)
    try:
        if name == Chain.__name__:
            return Chain(*map(build_backend, arguments["backends"]))
        return BACKENDS[name](**arguments)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"backend {name}: {error}") from error


def save(chip: nn.Module, path: str | Path) -> None:
    """Write a chip that :func:`~snnrobust.hardware.deploy` made: its recipe and every tensor that it holds, atomically.

    Raises:
        TypeError: no chip, one of a model or a backend that cannot be described, or one that was changed after it was made.
    """
    from snnrobust.models.checkpoint import write_tensors

    recipe = getattr(checks.module("chip", chip), "_recipe", None)
    if not isinstance(recipe, Recipe):
        raise TypeError(
            "chip must come from hardware.deploy(model, backend, seed=...); a model is saved by models.save"
        )
    for what in (recipe.model, recipe.backend):
        if isinstance(what, str):
            raise TypeError(f"this chip cannot be saved: {what}")
    content = {"model": recipe.model, "backend": recipe.backend, "seed": recipe.seed, "layers": recipe.layers}
    content["dtype"] = str(_dtype(chip)).removeprefix("torch.")
    _fit(_rebuilt(content), chip, "the chip was changed after it was made, and cannot be rebuilt: save what made it")
    write_tensors(Path(path), _KIND, chip.state_dict(), content)


def load(path: str | Path) -> nn.Module:
    """The chip of a file, with the very tensors that were saved. No code of the file's author is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, of another kind, or does not fit its own recipe.
    """
    from snnrobust.models.checkpoint import read_tensors

    tensors, content = read_tensors(Path(path), _KIND)
    if not isinstance(content, dict) or content.keys() != {"model", "backend", "seed", "layers", "dtype"}:
        raise ValueError(f"{path} is damaged: its recipe has no model, backend, seed, layers and dtype")
    try:
        chip = _rebuilt(content, sum(t.numel() for t in tensors.values()))
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    expected = chip.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want, have = expected.get(name), tensors.get(name)
        if want is None or have is None or want.shape != have.shape or want.dtype != have.dtype:
            raise ValueError(f"{path} is damaged: {name} does not fit the chip that its recipe makes")
    chip.load_state_dict(tensors, assign=True)
    return chip


def _rebuilt(content: dict[str, Any], most: float = inf) -> nn.Module:
    """The chip with weights of zero: its structure, and what its seed draws. A chip holds about as many numbers as its model."""
    from snnrobust.hardware.deploy import deploy
    from snnrobust.models.description import build

    with torch.device("meta"):  # a hostile description allocates nothing before it is known to be a model
        model = build(content["model"])
    constants = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in model.state_dict()]
    if constants:
        raise TypeError(
            f"the model has constants that its modules do not save: {', '.join(constants)}: let those make them with device='cpu'"
        )
    if sum(t.numel() for t in model.state_dict().values()) > 2 * most:  # two biases of an LSTM are one on the chip
        raise TypeError("the model of its recipe has many more numbers than the file")
    dtype = checks.choice("dtype", str(content["dtype"]), _DTYPES)
    return deploy(
        blank(model).to(_DTYPES[dtype]),
        build_backend(content["backend"]),
        seed=content["seed"],
        layers=content["layers"],
    )


def blank(model: nn.Module) -> nn.Module:
    """``model`` from the meta device with weights and statistics of zero: chips take it as they take a trained one."""
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    return model


def _dtype(chip: nn.Module) -> torch.dtype:
    """That of its weights."""
    from snnrobust.hardware.synapses import DeployedLayer

    return next(m.array.weight.dtype for m in chip.modules() if isinstance(m, DeployedLayer))


def _fit(made: nn.Module, chip: nn.Module, message: str) -> None:
    shapes = [
        {n: (type(m).__name__, str(m) if not list(m.children()) else "") for n, m in part.named_modules()}
        for part in (made, chip)
    ]
    tensors = [{n: (t.shape, t.dtype) for n, t in part.state_dict().items()} for part in (made, chip)]
    if shapes[0] != shapes[1] or tensors[0] != tensors[1]:
        raise TypeError(message)
