"""Rate coding with independent Bernoulli spikes."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import Encoder

__all__ = ["Gradient", "Poisson"]

Gradient = Literal["straight_through", "none"]


class Poisson(Encoder):
    r"""Rate coding: :math:`s_t = [u_t < x]` with :math:`u_t` uniform in [0, 1), fresh for every step and element.

    The declared gradient is the identity straight-through, :math:`\partial s_t / \partial x = 1`: it is the gradient of
    the expectation, and it equals the hand-written input gradient of Sharmin et al. 2020 (time-summed at the first layer).

    Args:
        time_steps: T.
        gradient: ``"straight_through"``, or ``"none"`` for a gradient of exactly zero, which is what the encoders of other
            libraries pass and what makes gradient attacks fail without a word. It exists to show and to detect that.

    Raises:
        ValueError: a value outside [0, 1].
    """

    def __init__(self, time_steps: int, gradient: Gradient = "straight_through") -> None:
        super().__init__(time_steps)
        self.gradient = checks.choice("gradient", gradient, get_args(Gradient))

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return self.bernoulli(x, steps, start, value=0.0 * x if self.gradient == "none" else x)
