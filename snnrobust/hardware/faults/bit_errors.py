"""Weights in a memory whose bits flip."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from snnrobust import checks, draws
from snnrobust.hardware.backend import Array, Backend, Drawn
from snnrobust.hardware.bits import StoredWeights, store, width
from snnrobust.hardware.faults.outputs import of_chip

__all__ = ["BitErrors"]


class BitErrors(Backend):
    r"""Weights are stored as integers of k bits, each bit of which is flipped with probability r.

    .. math:: \tilde w = \operatorname{value}\big(\operatorname{word}(w) \oplus m\big), \quad m_i \sim \operatorname{Bernoulli}(r)

    The words are those of :mod:`snnrobust.hardware.bits`; with r = 0 the weights are those of ``quantization.Uniform(bits)``.
    Biases are not stored there. The gradient with respect to the input is exact for the stored weights.

    Args:
        rate: r in [0, 1], for each bit.
        bits: k, 2 to 8.
        drawn: ``"chip"`` (the memory cells that fail are fixed), ``"inference"`` (each sample reads the memory once) or
            ``"step"`` (once for each of its time steps). These two multiply with a weight for each sample (and step): slow.
        per_channel: A quantization step for each output channel instead of one for the layer.
    """

    def __init__(self, rate: float, bits: int = 8, drawn: Drawn = "chip", per_channel: bool = False) -> None:
        super().__init__()
        self.rate = checks.number("rate", rate, 0.0, 1.0)
        self.bits = width(bits)
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]
        self.per_channel = checks.boolean("per_channel", per_channel)

    @property
    def stochastic(self) -> bool:
        return self.drawn != "chip" and self.rate > 0

    def program(self, array: Array) -> Array:
        stored = store(array.weight, self.bits, axis=0 if self.per_channel else None)
        dtype = array.weight.dtype
        if self.stochastic:
            return UnreliableArray(array, stored, self.rate, self.drawn == "step")
        if self.rate > 0:
            u = of_chip(self, draws.uniform, (1, 1, *stored.words.shape, self.bits), stored.words.device)
            stored = struck(stored, u[0, 0] < self.rate)
        array.weight = stored.values(dtype)
        return array

    def extra_repr(self) -> str:
        return f"rate={self.rate}, bits={self.bits}, drawn={self.drawn!r}" + ", per_channel=True" * self.per_channel


def struck(stored: StoredWeights, mask: Tensor) -> StoredWeights:
    """With the bits flipped that ``mask`` ``[*words.shape, k]`` names, the least significant first."""
    where = mask.flatten().nonzero().flatten()
    return stored.flip(where // stored.bits, where % stored.bits)


class UnreliableArray(Array):
    """Weights of which each sample, or each of its time steps, reads other bits wrongly."""

    words: Tensor
    largest: Tensor

    def __init__(self, array: Array, stored: StoredWeights, rate: float, every_step: bool) -> None:
        super().__init__(stored.values(array.weight.dtype), array.operation)
        self.register_buffer("words", stored.words)
        self.register_buffer("largest", stored.largest)
        self.bits, self.rate, self.every_step = stored.bits, rate, every_step

    @property
    def stochastic(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        key, ids = self._state(x.shape, x.device)
        samples = []
        for b, x_b in enumerate(x.unbind(1)):
            if self.every_step:
                steps = (
                    self.operation(x_t[None], self._read(key, ids[b], start + t), bias)[0] for t, x_t in enumerate(x_b)
                )
                samples.append(torch.stack(list(steps)))
            else:
                samples.append(self.operation(x_b, self._read(key, ids[b], 0), bias))
        return torch.stack(samples, 1)

    def _read(self, key: Tensor, sample: Tensor, t: int) -> Tensor:
        u = draws.uniform(key, sample[None], (1, 1, *self.words.shape, self.bits), t)[0, 0]
        return struck(StoredWeights(self.words, self.largest, self.bits), u < self.rate).values(self.weight.dtype)
