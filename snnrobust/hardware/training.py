"""Train a model through chips: its layers run on a backend for a while, and their own parameters learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import draws
from snnrobust.hardware.backend import Array, Backend
from snnrobust.hardware.deploy import (
    SYNAPTIC,
    _begin_forward,
    _refuse,
    _sees_time,
    _WithoutTime,
    folded,
    imprint,
    key_of,
)
from snnrobust.temporal import Temporal

__all__ = ["demand_learnable", "on_chips"]

_Layer = nn.Linear | nn.modules.conv._ConvNd
_Module = TypeVar("_Module", bound=nn.Module)


class LearningLayer(Temporal):
    """A synaptic layer whose forward pass is that of a chip, ``[T, B, *] -> [T, B, *]``; in eval mode it is the layer alone.

    The gradient passes :meth:`Backend.program` straight through to the layer's weight.
    """

    array: Array

    def __init__(self, layer: _Layer, backend: Backend) -> None:
        super().__init__()
        self._of = (layer,)  # in a tuple it is no part of the module tree: its parameters keep their names
        self.operation = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        self.backend, self.planar = backend, isinstance(layer, nn.Conv2d)

    def make(self, key: int) -> None:
        """A new chip of the weights as they are now."""
        weight = self._of[0].weight
        imprint(self.backend, key)
        with draws(self.backend, key), torch.no_grad():
            self.array = self.backend.program(Array(weight, self.operation))
        _forget(self.array)

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        return self._run(x_t[None], state)[0], state + 1

    def advance(self, x: Tensor, state: int) -> tuple[Tensor, int]:
        return self._run(x, state, whole=True), state + x.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, 0, whole=True)

    def _run(self, x: Tensor, start: int, whole: bool = False) -> Tensor:
        planar = whole and self.planar
        if not self.training:
            layer = self._of[0]
            y = self.operation(folded(x, planar), layer.weight, layer.bias)
            return torch.unflatten(y, 0, (x.shape[0], -1))
        x = self.backend.drive(x)
        y = self._product(folded(x, planar))
        return self.backend.read(y.unflatten(0, (x.shape[0], -1)), start)

    def _product(self, x: Tensor) -> Tensor:
        weight, bias = self._of[0].weight, self._of[0].bias
        through = weight - weight.detach()  # zero, with the gradient of the identity
        if type(self.array).product is Array.product:
            return self.array.operation(x, self.array.weight + through, bias)
        without = None if bias is None else torch.zeros_like(bias)
        return self.array.product(x, bias) + self.operation(x.detach(), through, without)


class _LearningWithoutTime(_WithoutTime):
    """A :class:`LearningLayer` where there is no time axis."""


@contextmanager
def on_chips(model: nn.Module, backend: Backend) -> Iterator[Callable[[int], None]]:
    """Inside, ``model`` runs on chips while it is in train mode, and what it learns are its own parameters.

    Yields ``make``: ``make(seed)`` puts the weights, as they are then, on the chip that ``deploy(model, backend, seed=seed)``
    gives, and has to be called before the first forward pass. In eval mode the model is without chip.

    .. math:: y = \\operatorname{read}(W_c \\operatorname{drive}(x) + b), \\quad W_c = \\operatorname{program}(W), \\quad
        \\partial W_c / \\partial W := 1

    Names of parameters and buffers are those outside. Afterwards all modules are where they were.

    Args:
        model: Spiking or ordinary.
        backend: A recipe, of which each layer gets a copy.

    Raises:
        TypeError, ValueError: as :func:`~snnrobust.hardware.deploy`; weights that are computed from other parameters; a backend
            with parameters of its own.
    """
    demand_learnable(model, backend)
    placed: list[tuple[nn.Module, str, _Layer, nn.Module]] = []
    layers: dict[str, LearningLayer] = {}
    handle = model.register_forward_pre_hook(_begin_forward)
    try:
        for name, layer in _synaptic(model).items():
            learning = LearningLayer(layer, _forget(deepcopy(backend)).to(layer.weight.device))
            layers[name] = learning
            seat: nn.Module = learning if _sees_time(model, name) else _LearningWithoutTime(learning)
            for part in ("weight", "bias"):
                seat.register_parameter(part, getattr(layer, part))
            parent_name, _, child = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            placed.append((parent, child, layer, seat))
            setattr(parent, child, seat.train(layer.training))

        def make(seed: int) -> None:
            checks.count("seed", seed, low=0)
            for name, learning in layers.items():
                learning.make(key_of(seed, name))
            _begin_forward(model, None)

        yield make
    finally:
        handle.remove()
        for parent, child, layer, seat in placed:
            setattr(parent, child, layer.train(seat.training))


def demand_learnable(model: nn.Module, backend: Backend) -> None:
    """Raise what :func:`on_chips` raises."""
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend must be a hardware Backend such as GaussianNoise(multiplicative=0.2), got {backend!r:.80}"
        )
    if next(backend.parameters(), None) is not None:
        raise TypeError(
            f"{type(backend).__name__} has parameters of its own, which training through chips does not learn"
        )
    found = _synaptic(checks.module("model", model))
    _refuse(model, dict(found))
    for name, layer in found.items():
        if not name:
            raise TypeError("the model is a single layer: wrap it in nn.Sequential")
        _sees_time(model, name)
        if "weight" not in layer._parameters:
            raise TypeError(
                f"{name} ({type(layer).__name__}) computes its weight from other parameters: make that permanent first, as by "
                "torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
            )


def _synaptic(model: nn.Module) -> dict[str, _Layer]:
    return {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, SYNAPTIC)}


def _forget(module: _Module) -> _Module:
    """What a chip stores is no part of the model's state."""
    for part in module.modules():
        part._non_persistent_buffers_set.update(part._buffers)
    return module
