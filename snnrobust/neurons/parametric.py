"""Leaky integrate-and-fire neurons whose leak or threshold is learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.kernels.lif import state_dtype
from snnrobust.neurons.lif import lif, lif_from, lif_shown
from snnrobust.neurons.neuron import Constant, Membrane, Neuron, Reset, along_channels, continues, heard, shown
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["PLIF", "LearnableThresholdLIF"]


class PLIF(Neuron):
    r"""Parametric LIF: the leak :math:`\beta = \sigma(a)` is learnt; the rest as in :func:`~snnrobust.neurons.lif`.

    Args:
        decay: Where :math:`\beta` starts, in (0, 1); a number, or one per channel, which learns one leak per channel.
        threshold: :math:`\theta` > 0, a number or one per channel.
        features: C learns one leak per channel of ``[T, B, C, *]``, None one for the layer if ``decay`` is a number.
        decay_input: Scale the input by :math:`1 - \beta`, as in the paper: :math:`h_t = v_{t-1} + (x_t - v_{t-1}) / \tau` with
            :math:`\beta = 1 - 1 / \tau`.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant".
    """

    def __init__(
        self,
        decay: Constant = 0.5,
        threshold: Constant = 1.0,
        features: int | None = None,
        decay_input: bool = False,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self.features = features
        self.decay_input = checks.boolean("decay_input", decay_input)
        self.logit_decay = nn.Parameter(_starting("decay", decay, features, 1.0).logit())
        self._constant("threshold", threshold, 0.0, math.inf, positive=True)
        self.start = {"decay": _start(features, decay=decay, threshold=threshold)["decay"]}

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that are no attributes: where the learnt values started."""
        return dict(self.start)

    @property
    def decay(self) -> Tensor:
        return torch.sigmoid(self.logit_decay)

    def _current(self, x: Tensor, decay: float | Tensor) -> Tensor:
        return x.to(state_dtype(x.dtype)) * (1.0 - decay) if self.decay_input else x

    def forward(self, x: Tensor) -> Tensor:
        decay = self.decay
        current = self._current(checks.sequence("x", x), along_channels("decay", decay, x[0]))
        spikes = lif(current, decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory)
        return spikes.to(x.dtype)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        decay, rule = self.decay, (self.reset, self.surrogate, self.detach_reset, self.refractory)
        current = self._current(checks.sequence("x", x[None])[0], along_channels("decay", decay, x))
        return lif_shown(current, steps, decay, self.threshold, *rule).to(x.dtype)

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def advance(self, x: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        decay, rule = self.decay, (self.reset, self.surrogate, self.detach_reset, self.refractory)
        current = self._current(checks.sequence("x", x), along_channels("decay", decay, x[0]))
        spikes, state = lif_from(current, state, decay, self.threshold, *rule)
        return spikes.to(x.dtype), state

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        decay = along_channels("decay", self.decay, x_t)
        current = heard(self._current(continues(x_t, state.v), decay), state.quiet, self.refractory)
        return self._fire(
            state.v * decay + current, along_channels("threshold", self.threshold, x_t), state.quiet, x_t.dtype
        )

    def extra_repr(self) -> str:
        own = f"decay={shown(self.start['decay'])}, features={self.features}" + ", decay_input=True" * self.decay_input
        return f"{own}, {self._described('threshold')}"


class LearnableThresholdLIF(Neuron):
    r"""LIF whose threshold :math:`\theta = e^b` is learnt, and its leak :math:`\beta = \sigma(a)` too if asked.

    Learning both is what DIET-SNN does (Rathi and Roy 2021), which learns them directly; these forms keep
    :math:`\theta > 0` and :math:`0 < \beta < 1`.

    Args:
        decay: Leak in [0, 1], or where it starts, in (0, 1).
        threshold: Where :math:`\theta` starts, > 0. Both: a number or one per channel, which is then learnt per channel.
        features: C learns one value per channel of ``[T, B, C, *]``, None one for the layer where a number is given.
        learn_decay: Learn the leak as well.
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.
    """

    fixed_decay: float | Tensor

    def __init__(
        self,
        decay: Constant = 0.95,
        threshold: Constant = 1.0,
        features: int | None = None,
        learn_decay: bool = False,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self.features = features
        self.learn_decay = checks.boolean("learn_decay", learn_decay)
        if learn_decay:
            self.logit_decay = nn.Parameter(_starting("decay", decay, features, 1.0).logit())
        else:
            self._constant("decay", decay, 0.0, 1.0, positive=False, attribute="fixed_decay")
        self.log_threshold = nn.Parameter(_starting("threshold", threshold, features, math.inf).log())
        self.start = _start(features, decay=decay, threshold=threshold)

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that are no attributes: where the learnt values started."""
        return dict(self.start)

    @property
    def decay(self) -> float | Tensor:
        return torch.sigmoid(self.logit_decay) if self.learn_decay else self.fixed_decay

    @property
    def threshold(self) -> Tensor:  # type: ignore[override]
        return self.log_threshold.exp()

    def forward(self, x: Tensor) -> Tensor:
        return lif(x, self.decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return lif_shown(x, steps, self.decay, self.threshold, *rule)

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def advance(self, x: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return lif_from(x, state, self.decay, self.threshold, *rule)

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        x_t = heard(continues(x_t, state.v), state.quiet, self.refractory)
        h = state.v * along_channels("decay", self.decay, x_t) + x_t
        return self._fire(h, along_channels("threshold", self.threshold, x_t), state.quiet, x_t.dtype)

    def extra_repr(self) -> str:
        own = [f"{name}={shown(value)}" for name, value in self.start.items()]
        own += [f"features={self.features}", *["learn_decay=True"] * self.learn_decay]
        return ", ".join([*own, self._described()])


def _numbers(value: Constant) -> float | tuple[float, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value  # a tensor or an array
    return tuple(value) if isinstance(value, list | tuple) else value  # type: ignore[return-value]


def _starting(name: str, value: Constant, features: int | None, high: float) -> Tensor:
    """``value``, strictly within (0, high) after rounding too, as a scalar or one per channel."""
    shape = () if features is None else (checks.count("features", features),)
    given = _numbers(value)
    numbers = given if isinstance(given, tuple) else (given,)
    if not numbers:
        raise ValueError(f"{name} must be a number or one number per channel [C], got {value!r:.80}")
    for number in numbers:
        checks.number(name, number, 0.0, high, exclusive_low=True)
    rounded = torch.tensor(numbers, dtype=torch.get_default_dtype(), device="cpu").tolist()  # not on the meta device
    for number, as_stored in zip(numbers, rounded, strict=True):
        if not 0.0 < as_stored < high:
            raise ValueError(
                f"{name} must be between 0 and {high:g}, and not round to either, to be learnt, got {number}"
            )
    return torch.tensor(rounded) if isinstance(given, tuple) else torch.full(shape, rounded[0])


def _start(features: int | None, **values: Constant) -> dict[str, float | tuple[float, ...]]:
    """The numbers that were given, as a checkpoint keeps them; all that are one per channel have as many."""
    given = {name: _numbers(value) for name, value in values.items()}
    sizes = {name: len(value) for name, value in given.items() if isinstance(value, tuple)}
    sizes |= {} if features is None else {"features": features}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(
            f"all must be for the same channels, but {shown}: leave out features, or give one value a channel"
        )
    return {n: tuple(map(float, v)) if isinstance(v, tuple) else float(v) for n, v in given.items()}
