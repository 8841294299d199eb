"""Counts of what is neither a synaptic layer nor a neuron: normalisations, encoders, activations; and what an update costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from snnrobust.encoders import Direct, Encoder, Frames, Rows
from snnrobust.energy.operations import Elementwise
from snnrobust.hardware.deploy import DIGITAL
from snnrobust.layers import BNTT, TDBN, TEBN, Normalise
from snnrobust.neurons import ALIF, CuBaLIF, Neuron
from snnrobust.temporal import State

__all__ = ["ElementTally", "elementwise", "steps_of", "update_cost"]

_FOLDS = (nn.modules.batchnorm._BatchNorm, TDBN)  # one affine map for all steps; BNTT and TEBN have one for each
_COPIES = (Direct, Rows, Frames)  # what they emit is what they got


class ElementTally:
    """Counts of one such module over the calls of a forward pass."""

    def __init__(self, name: str, module: nn.Module, steps: int, batch: int) -> None:
        self.name, self.module, self.steps = name, module, steps
        self.count, self.nonzero = torch.zeros(2, steps, batch, dtype=torch.int64).unbind(0)
        self.calls, self.folded, self.shift = 0, True, False

    @property
    def role(self) -> Literal["normalisation", "encoder", "activation"]:
        if isinstance(self.module, Encoder):
            return "encoder"
        return "activation" if isinstance(self.module, nn.ReLU | nn.Sigmoid) else "normalisation"

    def see(self, x: Tensor, y: Tensor, before: Tensor | None, biased: bool) -> None:
        """``before``: the last output of a synaptic layer, with or without bias, into which a normalisation of it folds."""
        start, y = steps_of(self, y, temporal=isinstance(self.module, Encoder | BNTT | TEBN))
        part = slice(start, start + len(y))
        self.count[part] += math.prod(y.shape[2:])
        self.nonzero[part] += (y != 0).flatten(2).sum(2).cpu()
        if self.role == "normalisation":
            follows = before is not None and x.data_ptr() == before.data_ptr() and x.numel() == before.numel()
            self.folded &= isinstance(self.module, _FOLDS) and follows
            self.shift |= not biased
        elif self.role == "encoder":
            self.folded = isinstance(self.module, _COPIES)
        self.calls += 1

    def result(self) -> Elementwise:
        kind, shift = type(self.module).__name__, self.shift and self.folded
        return Elementwise(self.name, kind, self.role, self.folded, shift, self.count, self.nonzero)


def elementwise(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules to count, by name."""
    for name, module in model.named_modules():
        if isinstance(module, (*DIGITAL, Normalise, Encoder, nn.ReLU, nn.Sigmoid)):
            yield name, module


def steps_of(tally: ElementTally, y: Tensor, *, temporal: bool) -> tuple[int, Tensor]:
    """The first step and ``[steps, B, *]`` of an output: all steps, all of them folded into the batch, or one."""
    steps, batch = tally.count.shape
    if temporal and y.shape[:2] == (steps, batch):
        return 0, y
    if steps > 1 and len(y) == steps * batch:
        return 0, y.unflatten(0, (steps, batch))
    if len(y) != batch or tally.calls >= steps > 1:
        raise ValueError(
            f"{tally.name} ({type(tally.module).__name__}) gave {tuple(y.shape)} at its call {tally.calls + 1}, but the model "
            f"has T = {steps} steps of B = {batch} samples: it must give [T * B, ...] or, T times, [B, ...]"
        )
    return tally.calls % steps, y[None]


def update_cost(neuron: Neuron, state: State) -> tuple[int, int, int]:
    """States, multiplications and additions of one neuron at one step, without the reset.

    A leak of 1 multiplies nothing. Additions: the charge and the comparison with the threshold; a current, or an adaptation
    and the threshold that it raises, are more.
    """
    leaks = (getattr(neuron, name, 1.0) for name in ("decay", "current_decay", "adaptation_decay"))
    multiplications = sum(bool((torch.as_tensor(leak) != 1).any()) for leak in leaks)
    multiplications += bool(getattr(neuron, "decay_input", False))
    multiplications += isinstance(neuron, ALIF)
    additions = 2 + isinstance(neuron, CuBaLIF) + 2 * isinstance(neuron, ALIF)
    return _numbers(state, neuron.potential(state).shape, bool(neuron.refractory)), multiplications, additions


def _numbers(state: State, shape: torch.Size, refractory: bool) -> int:
    """Tensors of a state. The time since the last spike belongs to the device only if the neuron is refractory."""
    if isinstance(state, Tensor):
        return int(state.shape == shape)
    if isinstance(state, tuple):
        fields = getattr(state, "_fields", range(len(state)))
        kept = (part for name, part in zip(fields, state, strict=True) if name != "quiet" or refractory)
        return sum(_numbers(part, shape, refractory) for part in kept)
    return 0
