"""Synaptic layers on a chip."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust.draws import derive, draws
from snnrobust.hardware.backend import Array, Backend, Chain, effects
from snnrobust.hardware.operation import Operation
from snnrobust.kernels.layout import for_convolution
from snnrobust.temporal import State, Temporal

__all__ = [
    "AfterNorm",
    "Counting",
    "DeployedLayer",
    "WithoutTime",
    "imprint",
    "is_after",
    "reads_after",
    "reads_before",
]


class Counting(Temporal):
    """A layer without memory whose draws depend on the time step: its state is that number."""

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        return self._run(x_t[None], state)[0], state + 1

    def advance(self, x: Tensor, state: int) -> tuple[Tensor, int]:
        return self._run(x, state, whole=True), state + x.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, 0, whole=True)

    def _run(self, x: Tensor, start: int, whole: bool = False) -> Tensor:
        """``[T, B, *] -> [T, B, *]`` from the time step ``start`` on; ``whole`` where a sequence is run at once."""
        raise NotImplementedError


class DeployedLayer(Counting):
    """A synaptic layer on a chip, ``[T, B, *] -> [T, B, *]``: drive, product, read.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv*``.
        backend: Its own, with the patterns of the chip.
        key: Of the chip.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Module, backend: Backend, key: int) -> None:
        super().__init__()
        weight, bias, operation = layer.weight, layer.bias, Operation.of(layer)
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        self.backend, self.planar = backend, operation.planar
        self.inputs, self.axis = (weight.shape[1] * operation.groups, 2) if operation.kernel else (weight.shape[1], -1)
        imprint(backend, key)
        with draws(backend, key), torch.no_grad():
            self.array = backend.program(Array(weight, operation))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def _run(self, x: Tensor, start: int, whole: bool = False) -> Tensor:
        if x.dim() < 3 or x.shape[self.axis] != self.inputs:  # a tile would fill up what is missing
            raise RuntimeError(  # as torch's layers do
                f"x must have {self.inputs} {'channels' if self.axis == 2 else 'features'} in [T, B, ...], got {tuple(x.shape)}"
            )
        x = channels_last(self.backend.drive(x), whole and self.planar)
        return self.backend.read(self.array.product(x, self.bias, start), start)


def channels_last(x: Tensor, planar: bool) -> Tensor:
    """Images ``[T, B, *]`` as in a Sequential, so that an ideal chip has the bits of the model."""
    if not planar or torch.compiler.is_compiling():
        return x
    y: Tensor = for_convolution(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return y


class AfterNorm(Temporal):
    """A normalisation on a chip whose backend reads after it, ``[T, B, *] -> [T, B, *]``."""

    def __init__(self, norm: nn.Module, backend: Backend) -> None:
        super().__init__()
        self.norm, self.backend = norm, backend

    def initial_state(self, x_t: Tensor) -> tuple[int, State]:
        return 0, self.norm.initial_state(x_t) if isinstance(self.norm, Temporal) else None

    def step(self, x_t: Tensor, state: tuple[int, State]) -> tuple[Tensor, tuple[int, State]]:
        t, inner = state
        if isinstance(self.norm, Temporal):
            y, inner = self.norm.step(x_t, inner)
        else:
            y = self.norm(x_t)
        return self._read(y[None], t)[0], (t + 1, inner)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (
            self.norm(x) if isinstance(self.norm, Temporal) else self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        )
        return self._read(y, 0)

    def _read(self, y: Tensor, start: int) -> Tensor:
        return self.backend.read(y, start)


class WithoutTime(nn.Module):
    """A temporal module of a chip where there is no time axis: in an ordinary network, ``[B, *] -> [B, *]``.

    Each call in a forward pass of the chip counts as a step, so that a layer called twice meets fresh noise.
    """

    def __init__(self, layer: Temporal) -> None:
        super().__init__()
        self.layer = layer
        self._state: State = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.layer.initial_state(x) if self._state is None else self._state
        y, self._state = self.layer.step(x, state)
        return y

    def reset(self) -> None:
        """Before another forward pass; interop calls it."""
        self._state = None


def is_after(module: nn.Module) -> bool:
    """Whether a normalisation is on the chip already: a block that stands in two places has one."""
    return isinstance(module.layer if isinstance(module, WithoutTime) else module, AfterNorm)


def imprint(backend: Backend, key: int) -> None:
    """Give ``backend`` the patterns of the chip ``key``."""
    for path, part in backend.named_modules():
        if isinstance(part, Backend):
            word = derive(key, "pattern", path)
            part._chip = torch.tensor([word & 0xFFFFFFFF, word >> 32])


def reads_before(backend: Backend) -> Backend:
    """A copy of ``backend`` for a layer that a normalisation follows: without what reads after it."""
    if not any(part.at == "after_norm" for part in effects(backend)):
        return deepcopy(backend)
    return Chain(*(deepcopy(part) for part in effects(backend) if part.at == "product"))


def reads_after(backend: Backend) -> Backend | None:
    """A copy of what in ``backend`` reads after a normalisation; None if nothing does."""
    late = [deepcopy(part) for part in effects(backend) if part.at == "after_norm"]
    return Chain(*late) if late else None
