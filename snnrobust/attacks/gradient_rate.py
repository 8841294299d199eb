"""Gradient sources that put another backward pass in the place of each neuron's own: by rates, or averaged over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.attacks.gradient import Around, Backprop, GradientSource, registered
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream
from snnrobust.neurons import PLIF, CuBaLIF, Neuron, Recurrent, leaky_integral
from snnrobust.neurons import surrogate as surrogates
from snnrobust.neurons.neuron import along_channels
from snnrobust.temporal import Temporal

__all__ = ["BPTR", "HART", "RGA"]


@registered
@dataclass(frozen=True)
class RGA(Around):
    r"""Rate gradient: neurons pass gradients on as their firing rate would, a function of their mean input.

    .. math::

        \frac{\partial L}{\partial x_t} = \frac{\phi(\bar x / \theta)}{\theta} \frac{\partial L}{\partial s_t}, \quad
        \phi(c) = \begin{cases} \gamma & 0 \le c < 1 - \beta \\
        (1 - \gamma + \gamma \beta) / (1 + \beta) & 1 - \beta \le c \le 2 \\ 0 & \text{else} \end{cases}

    with :math:`\bar x` the mean over time of the neuron's input (of the synaptic current, in ``CuBaLIF``; with what the layer
    sends itself, in ``Recurrent``), :math:`\theta` its threshold (at rest) and :math:`\beta` its leak.

    Args:
        gamma: :math:`\gamma` in [0, 1].
        source: What is called while neurons pass gradients on so.

    Raises:
        ValueError: a model without spiking neurons, or one that does not show them whole sequences.

    Source: Bu et al. 2023, "Rate gradient approximation attack threats deep spiking neural networks" (CVPR), after its code,
    which has :math:`\theta = 1`; for other thresholds the potential is measured in them.
    """

    spiking: ClassVar[bool] = True

    gamma: float = 0.2
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.number("gamma", self.gamma, 0.0, 1.0)
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with _lent(model, self._backward, "RGA"):
            return self.source(model, x, y, loss, stream)

    def _backward(self, layer: Temporal, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        s = _spikes(x, forward)
        current, neuron = _current(layer, x, s), _neuron(layer)
        threshold = along_channels("threshold", neuron.threshold, s[0])
        decay = along_channels("decay", getattr(neuron, "decay", 1.0), s[0])
        mean = current.detach().mean(0) / threshold
        inner, outer = torch.full_like(mean, self.gamma), (1 - self.gamma + self.gamma * decay) / (1 + decay)
        slope = torch.where(mean < 1 - decay, inner, outer * torch.ones_like(mean)) * ((mean >= 0) & (mean <= 2))
        return _as_said(current, s, (slope / threshold).detach().expand_as(s), average=False)


@registered
@dataclass(frozen=True)
class BPTR(Around):
    r"""Backpropagation through the rate: gradients pass neurons that fired at all, :math:`\partial L / \partial x_t =
    [\sum_{t'} s_{t'} > 0] \, \partial L / \partial s_t`.

    Args:
        source: What is called while neurons pass gradients on so.

    Raises:
        ValueError: a model without spiking neurons, or one that does not show them whole sequences.

    Source: Ding et al. 2022, "SNN-RAT: robustness-enhanced spiking neural network through regularized adversarial training"
    (NeurIPS), after its code.
    """

    spiking: ClassVar[bool] = True

    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with _lent(model, self._backward, "BPTR"):
            return self.source(model, x, y, loss, stream)

    def _backward(self, layer: Temporal, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        s = _spikes(x, forward)
        fired = (s > 0).any(0).to(s.dtype)
        return _as_said(_current(layer, x, s), s, fired.expand_as(s), average=False)


@registered
@dataclass(frozen=True)
class HART(Around):
    r"""Rate and time together: gradients are averaged over time before each neuron, whose own past passes none on.

    .. math::

        \frac{\partial L}{\partial x_t} = \frac{1}{T} \sum_{t'} \psi(u_{t'}) \frac{\partial L}{\partial s_{t'}}, \quad
        \psi(u) = \frac{1}{w^2} \max(0, w - |u|)

    with :math:`u` the potential less the threshold.

    Args:
        width: :math:`w` > 0. The authors choose it among 48 values in 0.10, ..., 2.45 by the success of the attack on the data
            that they report: whoever does so has to say it.
        source: What is called while neurons pass gradients on so.

    Raises:
        ValueError: a model without spiking neurons, or one that does not show them whole sequences.

    Source: "Threaten spiking neural networks through combining rate and temporal information" (ICLR 2024), after its code.
    """

    spiking: ClassVar[bool] = True

    width: float = 1.0
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.number("width", self.width, 0.0, exclusive_low=True)
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with _lent(model, self._backward, "HART"):
            return self.source(model, x, y, loss, stream)

    def _backward(self, layer: Temporal, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        s, u = _potentials(layer, x, forward)
        slope = surrogates.Triangle(1 / self.width, self.width).derivative(u) * _awake(s, _neuron(layer).refractory)
        if isinstance(neuron := _neuron(layer), PLIF) and neuron.decay_input:
            slope = slope * (1 - along_channels("decay", neuron.decay.detach(), s[0]))
        return _as_said(x, s, slope, average=True)


def _neuron(layer: Temporal) -> Neuron:
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    assert isinstance(neuron, Neuron)
    return neuron


def _current(layer: Temporal, x: Tensor, s: Tensor) -> Tensor:
    """What charges the neurons that emit ``s``, as a function of ``x`` to be differentiated."""
    neuron = _neuron(layer)
    if isinstance(layer, Recurrent):
        with torch.no_grad():
            own = layer.recurrent(torch.cat([torch.zeros_like(s[:1]), s[:-1]]))
        x = x + own
    if isinstance(neuron, CuBaLIF):
        return leaky_integral(x, neuron.current_decay)
    return (
        x * (1 - along_channels("decay", neuron.decay, x[0])) if isinstance(neuron, PLIF) and neuron.decay_input else x
    )


def _spikes(x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        return forward(x)


def _potentials(layer: Temporal, x: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Spikes, and potentials less the threshold, ``[T, B, *]``: those that a surrogate is asked for."""
    seen = _Seen([], [])
    leaf = x.detach().requires_grad_()
    with torch.enable_grad(), surrogates.lend(layer, lambda _: seen):
        s = forward(leaf)
        torch.autograd.grad(s, leaf, torch.ones_like(s))
    return s.detach(), torch.stack(seen.steps) if seen.steps else seen.whole[0]


@dataclass(frozen=True, eq=False)
class _Seen(surrogates.Surrogate, registered=False):
    """Keeps what it is asked for."""

    whole: list[Tensor]
    steps: list[Tensor]

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        self.whole.append(u)
        return torch.ones_like(u)

    def observed(self, u: Tensor) -> surrogates.Surrogate:
        self.steps.append(u)
        return surrogates.StraightThrough()


def _awake(s: Tensor, refractory: int) -> Tensor:
    """0 where a neuron is in its refractory period, else 1."""
    fired, awake = s > 0, torch.ones_like(s)
    for after in range(1, min(refractory, len(s) - 1) + 1):
        awake[after:] *= (~fired[:-after]).to(s.dtype)
    return awake


class _AsSaid(torch.autograd.Function):
    """``s``, whose gradient is passed on to ``current`` by a factor for each element, averaged over time or not."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, s: Tensor, slope: Tensor, average: bool) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.average, ctx.dtype = average, current.dtype
        return s.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        through = grad * slope
        through = through.mean(0, keepdim=True).expand_as(through) if ctx.average else through
        return through.to(ctx.dtype), None, None, None


def _as_said(current: Tensor, s: Tensor, slope: Tensor, average: bool) -> Tensor:
    return _AsSaid.apply(current, s.detach(), slope, average)  # type: ignore[no-any-return, no-untyped-call]


Backward = Callable[[Temporal, Tensor, Callable[[Tensor], Tensor]], Tensor]
_NAMES = ("forward", "step", "advance")


@contextmanager
def _lent(model: nn.Module, backward: Backward, name: str) -> Iterator[None]:
    """Within this context each layer of neurons has another backward pass.

    ``backward(layer, x, forward)`` gives the layer's spikes with it, from its input and its own forward pass.
    """
    recurrent = [m for m in model.modules() if isinstance(m, Recurrent)]
    inner = {m.neuron for m in recurrent}
    layers = [*recurrent, *(m for m in model.modules() if isinstance(m, Neuron) and m not in inner)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no neurons of snnrobust, so {name} has no backward pass to replace: use a Surrogate"
        )
    before = [{n: m.__dict__[n] for n in _NAMES if n in m.__dict__} for m in layers]
    reached: set[nn.Module] = set()

    def lend(layer: Temporal) -> None:
        own = {n: getattr(layer, n) for n in _NAMES}

        def whole(x: Tensor) -> Tensor:
            reached.add(layer)
            restore(layer)
            try:
                return backward(layer, x, own["forward"])
            finally:
                layer.__dict__.update(lent)

        def refuse(*_: Any) -> Any:
            raise ValueError(
                f"{name} needs whole sequences, but {type(layer).__name__} is run step by step: is it in EarlyExit?"
            )

        lent = {"forward": whole, "step": refuse, "advance": refuse}
        layer.__dict__.update(lent)

    def restore(layer: Temporal) -> None:
        for n in _NAMES:
            layer.__dict__.pop(n, None)
        layer.__dict__.update(before[layers.index(layer)])

    try:
        for layer in layers:
            lend(layer)
        yield
        missed = [path for path, m in model.named_modules() if m in layers and m not in reached]
        if missed:  # they may have been run by other means, with their own backward pass
            raise ValueError(
                f"{name} was lent to {type(model).__name__}, but the forward pass of {missed[0]} was not called: is it in "
                "Chunked with truncated=True, or never used?"
            )
    finally:
        for layer in layers:
            restore(layer)
