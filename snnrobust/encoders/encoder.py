"""What every encoder is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.draws import Stochastic

__all__ = ["ENCODERS", "Encoder"]

ENCODERS: dict[str, type[Encoder]] = {}


class Encoder(Stochastic):
    """From a batch to a sequence, ``[B, *] -> [T, B, *]``; subclasses register themselves by name.

    Args:
        time_steps: T, at least 1.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ENCODERS[cls.__name__] = cls

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        self.time_steps = checks.count("time_steps", time_steps)

    def encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        """Time steps ``start`` to ``start + steps`` of the sequence, ``[steps, B, *]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(checks.pixels("x", x), 0, self.time_steps)

    def step(self, x: Tensor, t: int) -> Tensor:
        """What reaches the network at step ``t``, ``[B, *]``; equal to ``forward(x)[t]`` under the same draws."""
        return self.encode(checks.pixels("x", x), t, 1)[0]

    def extra_repr(self) -> str:
        return f"time_steps={self.time_steps}"


def repeat(x: Tensor, steps: int) -> Tensor:
    """A view ``[steps, B, *]``."""
    return torch.broadcast_to(x, (steps, *x.shape))
