"""What every module with a memory over time has in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks

__all__ = ["State", "Temporal"]

State = Any
"""Whatever a temporal module carries from one step to the next: a tensor, a time index, or a tuple of states."""


class Temporal(nn.Module):
    """A module over whole sequences, ``[T, B, *] -> [T, B, *]``, always from the zero state.

    There is no hidden state and nothing to reset. Streaming is explicit::

        state = module.initial_state(x[0])
        for x_t in x.unbind(0):
            y_t, state = module.step(x_t, state)
    """

    def initial_state(self, x_t: Tensor) -> State:
        """The zero state for a batch like ``x_t`` ``[B, *]``."""
        raise NotImplementedError

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step, ``[B, *] -> [B, *]``."""
        raise NotImplementedError

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Several steps ``[t, B, *]`` on from ``state``: their outputs, and the state after the last."""
        checks.sequence("x", x)
        outputs = []
        for x_t in x.unbind(0):
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs), state

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x)
        return self.advance(x, self.initial_state(x[0]))[0]
