"""What a chip does to a synaptic layer: the contract of every device model and quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks, draws
from snnrobust.draws import Stochastic
from snnrobust.hardware.operation import Operation

__all__ = ["BACKENDS", "Array", "At", "Backend", "Chain", "Drawn", "Gradient", "effects"]

Drawn = Literal["chip", "inference", "step"]
"""When a random effect is drawn: once when the chip is made, once a forward pass, or at every time step."""

Gradient = Literal["exact", "straight-through", "none"]
"""What an effect passes back to the input: its derivative, that of a declared stand-in, or nothing."""

At = Literal["product", "after_norm"]
"""Where an effect reads: at the product of the array, or after the normalisation that follows it."""

BACKENDS: dict[str, type[Backend]] = {}


class Array(Stochastic):
    """What is stored of one layer, and its product with an input. Subclasses may tile it, slice its bits or look it up.

    Args:
        weight: As in the layer that it came from.
        operation: What the layer does with it.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, operation: Operation) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.operation = operation

    @property
    def stochastic(self) -> bool:
        return False

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        """``[T, B, *] -> [T, B, *]``, where ``start`` is the first time step of ``x``."""
        y: Tensor = self.operation(x.flatten(0, 1), self.weight, bias).unflatten(0, x.shape[:2])
        return y


class Backend(Stochastic):
    """One effect of a chip. Override what it changes; subclasses register themselves by name.

    - ``program`` once a chip: what the array stores;
    - ``drive`` at every product: what reaches the array, ``[T, B, *]``;
    - ``read`` at every product: what is read from it, ``[T, B, *]``, where ``start`` is the first time step of ``y``;
    - ``neuron`` once a chip: what becomes of a neuron.

    An instance is a recipe. :func:`~snnrobust.hardware.deploy` gives each layer and each neuron a copy of its own. Constructor
    arguments are plain values, kept as attributes of the same names.

    Attributes:
        drawn: When its randomness is drawn; None where it has none.
        gradient: What it passes back to the input.
        at: Where ``read`` acts.
    """

    drawn: Drawn | None = None
    gradient: Gradient = "exact"
    at: At = "product"
    _chip: Tensor | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        BACKENDS[cls.__name__] = cls

    @property
    def stochastic(self) -> bool:
        """Whether it draws anything in a forward pass."""
        return self.drawn in ("inference", "step")

    def program(self, array: Array) -> Array:
        return array

    def drive(self, x: Tensor) -> Tensor:
        return x

    def read(self, y: Tensor, start: int) -> Tensor:
        return y

    def neuron(self, neuron: nn.Module) -> nn.Module:
        """A spiking neuron (or ``nn.ReLU``) as it is on the chip: a :class:`~snnrobust.temporal.Temporal` module for one."""
        return neuron

    def noise(self, like: Tensor, start: int, drawn: Drawn) -> Tensor:
        """Standard normal noise for ``like`` ``[T, B, *]``, drawn as declared and broadcast over the rest."""
        key, sample_ids, rows, start = self.source(like, start, drawn)
        return draws.normal(key, sample_ids, (*rows, *like.shape[2:]), start).to(like.dtype)

    def source(self, like: Tensor, start: int, drawn: Drawn) -> tuple[Tensor, Tensor, tuple[int, int], int]:
        """Where noise for ``like`` ``[T, B, *]`` comes from: key, ids, steps and samples that are drawn, the first step."""
        checks.choice("drawn", drawn, get_args(Drawn))
        if drawn == "step":
            return *self._state(like.shape, like.device), (like.shape[0], like.shape[1]), start
        if drawn == "inference":
            return *self._state(like.shape, like.device), (1, like.shape[1]), 0
        return self.chip_key(like.device), torch.zeros(1, dtype=torch.int64, device=like.device), (1, 1), 0

    def chip_key(self, device: torch.device | None = None) -> Tensor:
        """The key of what is drawn once a chip: for ``draws.normal(key, ids, shape)`` and its like."""
        if self._chip is None:
            raise RuntimeError(
                f"{type(self).__name__} is on no chip yet: use hardware.deploy(model, backend, seed=...)"
            )
        return self._chip.to(device)


class Chain(Backend):
    """Backends one after the other: ``Chain(Uniform(bits=4), GaussianNoise(multiplicative=0.2))``."""

    def __init__(self, *backends: Backend) -> None:
        super().__init__()
        for backend in backends:
            if not isinstance(backend, Backend):
                raise TypeError(f"backends of a Chain must be Backend instances, got {type(backend).__name__}")
        self.backends = nn.ModuleList(backends)

    def each(self) -> list[Backend]:
        """Its backends, in order."""
        return [b for b in self.backends if isinstance(b, Backend)]

    @property
    def stochastic(self) -> bool:
        return False  # its parts speak for themselves

    def program(self, array: Array) -> Array:
        for backend in self.each():
            array = backend.program(array)
        return array

    def drive(self, x: Tensor) -> Tensor:
        for backend in self.each():
            x = backend.drive(x)
        return x

    def read(self, y: Tensor, start: int) -> Tensor:
        for backend in self.each():
            y = backend.read(y, start)
        return y

    def neuron(self, neuron: nn.Module) -> nn.Module:
        for backend in self.each():
            neuron = backend.neuron(neuron)
        return neuron


def effects(backend: Backend) -> Iterator[Backend]:
    """The single effects of ``backend``, in order; chains are looked into."""
    if isinstance(backend, Chain):
        for inner in backend.each():
            yield from effects(inner)
    else:
        yield backend
