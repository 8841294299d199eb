"""Branches that run side by side and are added or concatenated: residual blocks and dense connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnrobust import checks, temporal
from snnrobust.layers.readout import Readout
from snnrobust.temporal import State, Temporal

__all__ = ["Concat", "OrdinaryConcat", "OrdinaryResidual", "Residual"]


class Residual(Temporal):
    r"""Residual connection over a sequence ``[T, B, *]``.

    .. math:: y_t = \text{shortcut}(x)_t + \text{body}(x)_t

    Args:
        body: A temporal module such as :class:`~snnrobust.layers.Sequential`.
        shortcut: Another, where the body changes the shape; None is the identity.

    Raises:
        ValueError: the branches differ in shape. (Broadcast, they would give a sum that nobody meant.)

    Source: He et al. 2016, "Deep residual learning for image recognition".
    """

    def __init__(self, body: Temporal, shortcut: Temporal | None = None) -> None:
        super().__init__()
        self.body = _branch("body", body)
        self.shortcut = None if shortcut is None else _branch("shortcut", shortcut)

    def initial_state(self, x_t: Tensor) -> tuple[State, State]:
        return self.body.initial_state(x_t), None if self.shortcut is None else self.shortcut.initial_state(x_t)

    def step(self, x_t: Tensor, state: tuple[State, State]) -> tuple[Tensor, tuple[State, State]]:
        body, shortcut = state
        y_t, body = self.body.step(x_t, body)
        if self.shortcut is not None:
            x_t, shortcut = self.shortcut.step(x_t, shortcut)
        return _add(x_t, y_t), (body, shortcut)

    def advance(self, x: Tensor, state: tuple[State, State]) -> tuple[Tensor, tuple[State, State]]:
        body, shortcut = state
        y, body = temporal.advance(self.body, x, body)
        if self.shortcut is not None:
            x, shortcut = temporal.advance(self.shortcut, x, shortcut)
        return _add(x, y), (body, shortcut)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        whole = x.expand(steps, *x.shape)
        return _add(
            whole if self.shortcut is None else temporal.shown(self.shortcut, x, steps),
            temporal.shown(self.body, x, steps),
        )

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x)
        return _add(x if self.shortcut is None else self.shortcut(x), self.body(x))


class OrdinaryResidual(nn.Module):
    """:class:`Residual` where there is no time axis: in an ordinary network, ``[B, *] -> [B, *]``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = checks.module("body", body)
        self.shortcut = None if shortcut is None else checks.module("shortcut", shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return _add(x if self.shortcut is None else self.shortcut(x), self.body(x))


class Concat(Temporal):
    r"""Dense connection over a sequence: :math:`y_t = [x_t, \text{body}(x)_t]`, ``[T, B, C, *] -> [T, B, C + C', *]``.

    Args:
        body: A temporal module such as :class:`~snnrobust.layers.Sequential`, from C channels to C'.

    Source: Huang et al. 2017, "Densely connected convolutional networks".
    """

    def __init__(self, body: Temporal) -> None:
        super().__init__()
        self.body = _branch("body", body)

    def initial_state(self, x_t: Tensor) -> State:
        return self.body.initial_state(x_t)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        y_t, state = self.body.step(x_t, state)
        return _concatenate(x_t, y_t, 1), state

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = temporal.advance(self.body, x, state)
        return _concatenate(x, y, 2), state

    def shown(self, x: Tensor, steps: int) -> Tensor:
        checks.sequence("x", x[None], rank=3)
        return _concatenate(x.expand(steps, *x.shape), temporal.shown(self.body, x, steps), 2)

    def forward(self, x: Tensor) -> Tensor:
        checks.sequence("x", x, rank=3)
        return _concatenate(x, self.body(x), 2)


class OrdinaryConcat(nn.Module):
    """:class:`Concat` where there is no time axis: in an ordinary network, ``[B, C, *] -> [B, C + C', *]``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = checks.module("body", body)

    def forward(self, x: Tensor) -> Tensor:
        return _concatenate(x, self.body(x), 1)


def _branch(name: str, value: Temporal) -> Temporal:
    if not isinstance(value, Temporal):
        raise TypeError(
            f"{name} must be a temporal module [T, B, *] -> [T, B, *], got {type(value).__name__}: put it in a Sequential"
        )
    if any(isinstance(inner, Readout) for inner in value.modules()):
        raise TypeError(f"{name} holds a readout, which ends the sequence: put it after the branches")
    return value


def _add(x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        raise ValueError(
            f"the branches of a residual connection must agree: the body gives {tuple(y.shape)} and the shortcut "
            f"{tuple(x.shape)}. Give a shortcut that changes the shape likewise, such as a 1 x 1 convolution"
        )
    return x + y


def _concatenate(x: Tensor, y: Tensor, dim: int) -> Tensor:
    rest = [(*t.shape[:dim], *t.shape[dim + 1 :]) for t in (x, y)]
    if min(x.dim(), y.dim()) <= dim or rest[0] != rest[1]:
        raise ValueError(
            f"the branches of a dense connection may differ in channels only: the body turns {tuple(x.shape)} into "
            f"{tuple(y.shape)}"
        )
    return torch.cat((x, y), dim)
