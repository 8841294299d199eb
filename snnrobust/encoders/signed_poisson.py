"""Rate coding of normalised inputs with spikes of both signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import FINITE, Encoder
from snnrobust.encoders.poisson import Gradient

__all__ = ["SignedPoisson"]

PerChannel = float | tuple[float, ...]


class SignedPoisson(Encoder):
    r"""Signed rate coding: :math:`z = (x - \mu) / \sigma`, :math:`s_t = \mathrm{sign}(z) [u_t < |z| / c]`, in {-1, 0, 1}.

    The declared gradient is straight-through, :math:`\partial s_t / \partial x = 1 / (c \sigma)`, everywhere. It is the gradient
    of the expectation where :math:`|z| < c`; beyond, the rate is saturated at 1 and the expectation has none.

    Args:
        time_steps: T.
        mean: :math:`\mu`, a number or one for each channel (the first axis after the batch).
        std: :math:`\sigma` > 0, likewise.
        scale: :math:`c` > 0, the :math:`|z|` at which every step spikes. The authors of BNTT use 2.
        gradient: ``"straight_through"``, or ``"none"`` for a gradient of exactly zero (see :class:`Poisson`).

    Raises:
        ValueError: a value that is not finite, or another number of channels than ``mean`` and ``std`` have.

    Source: the input of Kim and Panda 2021 (BNTT).
    """

    bounds = FINITE

    def __init__(
        self,
        time_steps: int,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        scale: float = 1.0,
        gradient: Gradient = "straight_through",
    ) -> None:
        super().__init__(time_steps)
        self.mean, self.std = _per_channel("mean", mean), _per_channel("std", std, positive=True)
        self.scale = checks.number("scale", scale, 0.0, exclusive_low=True)
        self.gradient = checks.choice("gradient", gradient, get_args(Gradient))
        if len({len(value) for value in (self.mean, self.std) if isinstance(value, tuple)}) > 1:
            raise ValueError(f"mean and std must be for the same channels, got {self.mean} and {self.std}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and (not shape or shape[0] != len(value)):
                raise ValueError(
                    f"{name} has {len(value)} channels, but a sample has the shape {tuple(shape)}: "
                    "give one value for each channel, or one number for all"
                )
        return tuple(shape)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        rate = (x - _along_channels(self.mean, x)) / (_along_channels(self.std, x) * self.scale)
        return self.bernoulli(rate, steps, start, signed=True, value=0.0 * x if self.gradient == "none" else rate)


def _per_channel(name: str, value: float | Sequence[float], positive: bool = False) -> PerChannel:
    low = 0.0 if positive else -math.inf
    if not isinstance(value, list | tuple):
        return checks.number(name, value, low, exclusive_low=positive)  # type: ignore[arg-type]
    if not value:
        raise ValueError(f"{name} must be a number or one for each channel, got {value!r}")
    return tuple(checks.number(f"{name}[{i}]", v, low, exclusive_low=positive) for i, v in enumerate(value))


def _along_channels(value: PerChannel, x: Tensor) -> Tensor | float:
    return x.new_tensor(value).view(-1, *[1] * (x.dim() - 2)) if isinstance(value, tuple) else value
