"""What every module with a memory over time has in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks

__all__ = ["State", "Temporal", "advance", "advances", "shown"]

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

    def shown(self, x: Tensor, steps: int) -> Tensor:
        """``forward`` of the same ``x`` ``[B, *]`` at each of ``steps`` time steps; what is alike at all is computed once.

        The gradient of ``x`` is that of all steps together.
        """
        return self(x.expand(steps, *x.shape))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x)
        return self.advance(x, self.initial_state(x[0]))[0]


def shown(module: Temporal, x: Tensor, steps: int) -> Tensor:
    """``module.shown(x, steps)``; of a class with a ``forward`` of its own, that."""
    own = _home(module, "shown") is _home(module, "forward")
    return module.shown(x, steps) if own else module(x.expand(steps, *x.shape))


def advance(module: Temporal, x: Tensor, state: State) -> tuple[Tensor, State]:
    """``module.advance(x, state)``; of a class with a ``step`` of its own, step by step."""
    return module.advance(x, state) if advances(module) else Temporal.advance(module, x, state)


def advances(module: Temporal) -> bool:
    """Whether ``module.advance`` is what its ``step`` is, several times; not of a class with a newer ``step``."""
    return _home(module, "advance") is _home(module, "step")


def _home(module: Temporal, method: str) -> type:
    """The class that defines a method."""
    return next(kind for kind in type(module).__mro__ if method in vars(kind))
