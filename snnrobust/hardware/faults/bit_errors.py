"""Weights in a memory whose bits flip."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from snnrobust import checks, draws
from snnrobust.hardware.backend import Array, Backend, Drawn
from snnrobust.hardware.bits import store, width
from snnrobust.hardware.sram import StoredArray, TransientArray
from snnrobust.kernels.bit_errors import bit_errors

__all__ = ["BitErrors"]


class BitErrors(Backend):
    r"""Weights are stored as integers of k bits, each bit of which is flipped with probability r.

    .. math:: \tilde w = \operatorname{value}\big(\operatorname{word}(w) \oplus m\big), \quad m_i \sim \operatorname{Bernoulli}(r)

    The words are those of :mod:`snnrobust.hardware.bits`; with r = 0 the weights are those of ``quantization.Uniform(bits)``.
    Biases are not stored there. The gradient with respect to the input is exact for the stored weights. For error rates by
    voltage and by position see :class:`~snnrobust.hardware.SRAM`.

    Args:
        rate: r in [0, 1], for each bit.
        bits: k, 2 to 8.
        drawn: ``"chip"`` (the cells that fail are fixed), ``"inference"`` (others in each forward pass) or ``"step"`` (at each
            of its time steps, with a product for each). Samples share them: an array has one content at a time. They depend on
            the key and on no sample id, so they are the same for any batch size.
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
        if type(array) is not Array:
            raise TypeError(
                f"BitErrors stores the weights themselves, got an array that is a {type(array).__name__}: put BitErrors before "
                "the other memories of a Chain, or leave those out"
            )
        written = store(array.weight, self.bits, axis=0 if self.per_channel else None)
        rates = (self.rate,) * self.bits
        if self.drawn == "chip":
            nothing = torch.zeros_like(written.words)
            return StoredArray(array, written, bit_errors(nothing, rates, self.chip_key()) if self.rate else nothing)
        return (SteppedArray if self.drawn == "step" else TransientArray)(array, written, rates)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, bits={self.bits}, drawn={self.drawn!r}" + ", per_channel=True" * self.per_channel


class SteppedArray(TransientArray):
    """Weights some of whose bits are read wrong, others at each time step."""

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        key, _ = self._state(x.shape, None)
        steps = (self.operation(x_t, self.read(_of_step(key, start + t)), bias) for t, x_t in enumerate(x.unbind(0)))
        return torch.stack(list(steps))


def _of_step(key: Tensor, t: int) -> Tensor:
    """Another key for each time step."""
    zero = torch.zeros((), dtype=torch.int64)
    return torch.stack(draws.philox(key, (zero + t, zero, zero, zero))[:2])
