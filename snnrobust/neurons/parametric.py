"""Leaky integrate-and-fire neurons whose leak or threshold is learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.neurons.lif import lif
from snnrobust.neurons.neuron import Membrane, Neuron, Reset, along_channels
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["PLIF", "LearnableThresholdLIF"]


class PLIF(Neuron):
    r"""Parametric LIF: the leak :math:`\beta = \sigma(a)` is learnt; the rest as in :func:`~snnrobust.neurons.lif`.

    Args:
        decay: Where :math:`\beta` starts, in (0, 1).
        threshold: :math:`\theta` > 0.
        features: None learns one leak for the layer; C learns one per channel of ``[T, B, C, *]``.
        decay_input: Scale the input by :math:`1 - \beta`, as in the paper: :math:`h_t = v_{t-1} + (x_t - v_{t-1}) / \tau` with
            :math:`\beta = 1 - 1 / \tau`.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant".
    """

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        features: int | None = None,
        decay_input: bool = False,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self.features, self._start = features, decay
        self.decay_input = checks.boolean("decay_input", decay_input)
        self.logit_decay = nn.Parameter(_starting("decay", decay, features, 1.0).logit())
        self.threshold = checks.number("threshold", threshold, 0.0, exclusive_low=True)

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that are no attributes: where the learnt values started."""
        return {"decay": self._start}

    @property
    def decay(self) -> Tensor:
        return torch.sigmoid(self.logit_decay)

    def _current(self, x: Tensor, decay: float | Tensor) -> Tensor:
        return x * (1.0 - decay) if self.decay_input else x

    def forward(self, x: Tensor) -> Tensor:
        decay = self.decay
        x = self._current(checks.sequence("x", x), along_channels("decay", decay, x[0]))
        return lif(x, decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory)

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        decay = along_channels("decay", self.decay, x_t)
        h = state.v * decay + self._input(self._current(x_t, decay), state.quiet)
        return self._fire(h, self.threshold, state.quiet)

    def extra_repr(self) -> str:
        own = f"features={self.features}" + (", decay_input=True" if self.decay_input else "")
        return f"{own}, {self._described('threshold')}"


class LearnableThresholdLIF(Neuron):
    r"""LIF whose threshold :math:`\theta = e^b` is learnt, and its leak :math:`\beta = \sigma(a)` too if asked.

    Learning both is what DIET-SNN does (Rathi and Roy 2021), which learns them directly; these forms keep
    :math:`\theta > 0` and :math:`0 < \beta < 1`.

    Args:
        decay: Leak in [0, 1], or where it starts, in (0, 1).
        threshold: Where :math:`\theta` starts, > 0.
        features: None learns one value for the layer; C learns one per channel of ``[T, B, C, *]``.
        learn_decay: Learn the leak as well.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.
    """

    def __init__(
        self,
        decay: float = 0.95,
        threshold: float = 1.0,
        features: int | None = None,
        learn_decay: bool = False,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self.features, self._start = features, (decay, threshold)
        self.learn_decay = checks.boolean("learn_decay", learn_decay)
        if learn_decay:
            self.logit_decay = nn.Parameter(_starting("decay", decay, features, 1.0).logit())
        else:
            checks.number("decay", decay, 0.0, 1.0, hint="use decay=1.0 for integrate-and-fire")
        self.log_threshold = nn.Parameter(_starting("threshold", threshold, features, math.inf).log())

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that are no attributes: where the learnt values started."""
        return dict(zip(("decay", "threshold"), self._start, strict=True))

    @property
    def decay(self) -> float | Tensor:
        return torch.sigmoid(self.logit_decay) if self.learn_decay else self._start[0]

    @property
    def threshold(self) -> Tensor:  # type: ignore[override]
        return self.log_threshold.exp()

    def forward(self, x: Tensor) -> Tensor:
        return lif(x, self.decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory)

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        h = state.v * along_channels("decay", self.decay, x_t) + self._input(x_t, state.quiet)
        return self._fire(h, along_channels("threshold", self.threshold, x_t), state.quiet)

    def extra_repr(self) -> str:
        own = f"features={self.features}" + (", learn_decay=True" if self.learn_decay else f", decay={self.decay}")
        return f"{own}, {self._described()}"


def _starting(name: str, value: float, features: int | None, high: float) -> Tensor:
    """``value``, strictly within (0, high) after rounding too, as a scalar or one per channel."""
    shape = () if features is None else (checks.count("features", features),)
    checks.number(name, value, 0.0, high, exclusive_low=True)
    rounded = torch.tensor(value, dtype=torch.get_default_dtype(), device="cpu").item()  # not on the meta device
    if not 0.0 < rounded < high:
        raise ValueError(f"{name} must be between 0 and {high:g}, and not round to either, to be learnt, got {value}")
    return torch.full(shape, rounded)
