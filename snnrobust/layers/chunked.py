"""Less memory over many time steps: the steps are taken in chunks, and a chunk is computed again when its gradient is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snnrobust import checks, temporal
from snnrobust.draws import held
from snnrobust.layers.fused import hooked
from snnrobust.layers.readout import Readout
from snnrobust.layers.sequential import Sequential
from snnrobust.layers.tebn import TEBN
from snnrobust.temporal import State, Temporal

__all__ = ["Chunked"]


class Chunked(Temporal):
    r"""``network`` over a sequence ``[T, B, *]``, in chunks of ``steps`` whose activations are not kept for the backward pass.

    Outputs and gradients are those of ``network`` under the same draws. Kept are the states between chunks and the activations
    of one chunk, which grow as :math:`T / c + c`, so :math:`\sqrt{T}` at best; the price is one more forward pass of all
    chunks but the last. Without gradients the chunks save memory at no price.

    Args:
        network: A temporal module, such as :class:`~snnrobust.layers.Sequential`.
        steps: c, or None for :math:`\lceil \sqrt{T} \rceil`.
        truncated: Cut the gradient between chunks, as in truncated backpropagation through time.

    Raises:
        TypeError: a network that is not temporal, or that holds a readout.
        RuntimeError: training a network that normalises over all time steps (``nn.BatchNorm``, ``TDBN``, ``TEBN``).

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """

    def __init__(self, network: Temporal, steps: int | None = None, truncated: bool = False) -> None:
        super().__init__()
        if not isinstance(network, Temporal):
            raise TypeError(f"network must be a temporal module such as Sequential, got {type(network).__name__}")
        if any(isinstance(m, Readout) for m in network.modules()):
            raise TypeError("network holds a readout, which ends the sequence: put it after Chunked")
        self.network = network
        self.steps = steps if steps is None else checks.count("steps", steps)
        self.truncated = checks.boolean("truncated", truncated)

    def initial_state(self, x_t: Tensor) -> State:
        return self.network.initial_state(x_t)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        return self.network.step(x_t, state)

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.network.advance(x, state)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        if self._whole(steps) or type(self.network) is not Sequential:
            return super().shown(x, steps)
        size = self._size(steps)
        lengths = [min(size, steps - first) for first in range(0, steps, size)]
        return self._run([x] * len(lengths), x, lengths)

    def forward(self, x: Tensor) -> Tensor:
        T = len(checks.sequence("x", x))
        if self._whole(T):
            return self.network(x)  # type: ignore[no-any-return]
        chunks = x.split(self._size(T))
        return self._run(chunks, x[0], [0] * len(chunks))

    def _size(self, T: int) -> int:
        return self.steps or math.isqrt(T - 1) + 1

    def _whole(self, T: int) -> bool:
        if self.truncated:  # what is asked for is another gradient, whoever watches
            return self._size(T) >= T
        watched = torch.compiler.is_compiling() or any(hooked(m) for m in self.network.modules())
        return watched or self._size(T) >= T

    def _run(self, chunks: Sequence[Tensor], x_t: Tensor, lengths: Sequence[int]) -> Tensor:
        """The chunks one after the other: sequences, or what is the same at each of ``lengths`` steps."""
        self.refuse()
        again = held(self.network)
        state, outputs = self.network.initial_state(x_t), []
        for index, (chunk, steps) in enumerate(zip(chunks, lengths, strict=True)):
            run = _Chunk(self.network, partial(again, index), steps)
            if torch.is_grad_enabled() and index < len(chunks) - 1:
                y, state = checkpoint(run, chunk, state, use_reentrant=False)
            else:
                y, state = run(chunk, state)
            outputs.append(y)
            state = _detached(state) if self.truncated else state
        return torch.cat(outputs)

    def refuse(self, training: bool = False) -> None:
        """Raise RuntimeError if the network cannot be taken in chunks, or could not in train mode, when ``training``."""
        for name, module in self.network.named_modules():
            if (training or module.training) and isinstance(module, nn.modules.batchnorm._BatchNorm | TEBN):
                raise RuntimeError(
                    f"{name} ({type(module).__name__}) normalises over all time steps while training, so they cannot be taken in "
                    "chunks: use BNTT, train without Chunked, or put that layer into eval mode"
                )

    def extra_repr(self) -> str:
        return f"steps={self.steps}" + (", truncated=True" if self.truncated else "")


def _detached(state: State) -> State:
    """``state`` without its history; see :data:`~snnrobust.temporal.State` for what it may be."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: _detached(value) for key, value in state.items()}
    if isinstance(state, tuple):
        parts = map(_detached, state)
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


class _Chunk:
    """A chunk under its draws; from the second time on in the modes of the first, and running statistics stay as they are."""

    def __init__(self, network: Temporal, draws: Callable[[], AbstractContextManager[None]], steps: int) -> None:
        self.network, self.draws, self.steps = network, draws, steps
        self.ran, self.modes = False, _modes(network)

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        first, self.ran = not self.ran, True
        with self.draws(), nullcontext() if first else _again(self.network, self.modes):
            if self.steps and type(self.network) is Sequential:
                return self.network.advance_shown(x, self.steps, state)
            return temporal.advance(self.network, x, state)


_Modes = list[tuple[nn.Module, dict[str, Any]]]


def _modes(network: nn.Module) -> _Modes:
    """What may be set between the forward and the backward pass: whether modules train, and their surrogates."""
    return [
        (m, {name: vars(m)[name] for name in ("training", "surrogate") if name in vars(m)}) for m in network.modules()
    ]


@contextmanager
def _again(network: nn.Module, modes: _Modes) -> Iterator[None]:
    """Inside, modules are in ``modes``; afterwards modes and buffers are as they were before."""
    now = _modes(network)
    for module, mode in modes:
        vars(module).update(mode)
    buffers = [(b, b.clone()) for m in network.modules() if m.training for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for module, mode in now:
            vars(module).update(mode)
        for buffer, value in buffers:
            buffer.data.copy_(value)  # unnoticed by autograd: other graphs have saved this buffer, which ends as it was
