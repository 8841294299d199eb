"""What every encoder is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.draws import Stochastic

__all__ = ["ENCODERS", "FINITE", "Encoder", "repeat"]

ENCODERS: dict[str, type[Encoder]] = {}

_LARGEST = torch.finfo(torch.float32).max
FINITE = (-_LARGEST, _LARGEST)
"""Bounds of an encoder that takes any value: infinities lie outside."""


class Encoder(Stochastic):
    """From a batch to a sequence, ``[B, *] -> [T, B, *]``; subclasses register themselves by name.

    Args:
        time_steps: T, at least 1.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Where the values of an input may lie."""

    truncatable: ClassVar[bool] = True
    """Whether the same encoder with fewer time steps gives the first of them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.free_name(ENCODERS, cls)
        ENCODERS[cls.__name__] = cls

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        self.time_steps = checks.count("time_steps", time_steps)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        """What :meth:`encode` returns; ``x`` and the steps have been checked."""
        raise NotImplementedError

    def _stream(self, x: Tensor) -> Iterator[Tensor]:
        """What :meth:`stream` yields; ``x`` has been checked."""
        for t in range(self.time_steps):
            yield self._encode(x, t, 1)[0]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one time step of the output, for one sample of ``shape``."""
        return tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(self._checked(x), 0, self.time_steps)

    def encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        """Time steps ``start`` to ``start + steps``, ``[steps, B, *]``: those of ``forward`` under the same draws.

        Raises:
            ValueError: steps outside 0..T, or an input that ``forward`` refuses.
        """
        checks.count("start", start, 0)
        checks.count("steps", steps)
        if start + steps > self.time_steps:
            raise ValueError(
                f"start + steps must be at most the {self.time_steps} time steps, got {start} + {steps} = {start + steps}"
            )
        return self._encode(self._checked(x), start, steps)

    def step(self, x: Tensor, t: int) -> Tensor:
        """What reaches the network at step ``t``, ``[B, *]``; equal to ``forward(x)[t]`` under the same draws."""
        if checks.integer("t", t) not in range(self.time_steps):
            raise ValueError(f"t must be one of the {self.time_steps} time steps from 0 on, got {t}")
        return self._encode(self._checked(x), t, 1)[0]

    def stream(self, x: Tensor) -> Iterator[Tensor]:
        """The time steps one after the other, each ``[B, *]``. ``x`` is checked once, and no step reads all of it again."""
        return self._stream(self._checked(x))

    def _checked(self, x: Tensor) -> Tensor:
        """``x`` with floating values within :attr:`bounds` and a shape that :meth:`output_shape` takes."""
        checks.pixels("x", x, bounds=self.bounds)
        self.output_shape(x.shape[1:])
        return x

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)


def repeat(x: Tensor, steps: int) -> Tensor:
    """A view ``[steps, B, *]``."""
    return torch.broadcast_to(x, (steps, *x.shape))
