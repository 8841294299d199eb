"""What a chip does to a synaptic layer: the contract of every device model and quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks, draws
from snnrobust.draws import Stochastic

__all__ = ["BACKENDS", "Array", "Backend", "Chain", "Drawn"]

Drawn = Literal["chip", "inference", "step"]
"""When a random effect is drawn: once when the chip is made, once a forward pass, or at every time step."""

BACKENDS: dict[str, type[Backend]] = {}


class Array(nn.Module):
    """What is stored of one layer, and its product with an input. Subclasses may tile it, slice its bits or look it up.

    Args:
        weight: As in the layer that it came from.
        operation: ``(x, weight, bias) -> y`` for a batch, such as ``F.linear``.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, operation: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.operation = operation

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.operation(x, self.weight, bias)


class Backend(Stochastic):
    """One effect of a chip. Override what it changes; subclasses register themselves by name.

    - ``program`` once a chip: what the array stores;
    - ``drive`` at every product: what reaches the array, ``[T, B, *]``;
    - ``read`` at every product: what is read from it, ``[T, B, *]``, where ``start`` is the first time step of ``y``.

    An instance is a recipe. :func:`~snnrobust.hardware.deploy` gives each layer a copy of its own.
    """

    _chip: Tensor | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        BACKENDS[cls.__name__] = cls

    @property
    def stochastic(self) -> bool:
        return False

    def program(self, array: Array) -> Array:
        return array

    def drive(self, x: Tensor) -> Tensor:
        return x

    def read(self, y: Tensor, start: int) -> Tensor:
        return y

    def noise(self, like: Tensor, start: int, drawn: Drawn) -> Tensor:
        """Standard normal noise for ``like`` ``[T, B, *]``, drawn as declared and broadcast over the rest."""
        key, sample_ids, rows, start = self.source(like, start, drawn)
        return draws.normal(key, sample_ids, (*rows, *like.shape[2:]), start).to(like.dtype)

    def source(self, like: Tensor, start: int, drawn: Drawn) -> tuple[Tensor, Tensor, tuple[int, int], int]:
        """Where noise for ``like`` ``[T, B, *]`` is drawn from: key, ids, steps and samples that are drawn, first step."""
        checks.choice("drawn", drawn, get_args(Drawn))
        if drawn == "step":
            return *self._state(like.shape, like.device), (like.shape[0], like.shape[1]), start
        if drawn == "inference":
            return *self._state(like.shape, like.device), (1, like.shape[1]), 0
        if self._chip is None:
            raise RuntimeError(
                f"{type(self).__name__} is on no chip yet: use hardware.deploy(model, backend, seed=...)"
            )
        one = torch.zeros(1, dtype=torch.int64, device=like.device)
        return self._chip.to(like.device), one, (1, 1), 0


class Chain(Backend):
    """Backends one after the other: ``Chain(Uniform(bits=4), GaussianNoise(multiplicative=0.2))``."""

    def __init__(self, *backends: Backend) -> None:
        super().__init__()
        for backend in backends:
            if not isinstance(backend, Backend):
                raise TypeError(f"backends of a Chain must be Backend instances, got {type(backend).__name__}")
        self.backends = nn.ModuleList(backends)

    def _each(self) -> list[Backend]:
        return [b for b in self.backends if isinstance(b, Backend)]

    def program(self, array: Array) -> Array:
        for backend in self._each():
            array = backend.program(array)
        return array

    def drive(self, x: Tensor) -> Tensor:
        for backend in self._each():
            x = backend.drive(x)
        return x

    def read(self, y: Tensor, start: int) -> Tensor:
        for backend in self._each():
            y = backend.read(y, start)
        return y
