"""Running a spiking network step by step with traces, for rules that learn while time goes on and keep no history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnrobust.encoders import Encoder
from snnrobust.kernels.lif import state_dtype
from snnrobust.layers import Dropout, MeanMembrane, Normalise, Readout, SpikeCount
from snnrobust.learning_rules.activity import Activity
from snnrobust.learning_rules.chain import Block, chain
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF, Neuron, Recurrent
from snnrobust.temporal import State, Temporal

__all__ = ["Layer", "Online", "Output", "Unit", "online"]

_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
_LINEAR = (*_POOLS, *_SHAPES)
"""May stand between weights and neuron: the trace of what they give is what they give of the trace."""
_INSTANT = (
    *_LINEAR, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, Dropout, Normalise,
)  # fmt: skip
"""May stand behind a neuron: what they give at a step depends on that step alone."""


@dataclass(frozen=True)
class Unit:
    """One synaptic layer and the neurons that it charges.

    Attributes:
        name: Of the synaptic layer.
        neuron: None for the last layer, if it does not spike.
        before, after: What stands between weights and neurons, and behind them.
        decay: Of the potential that is charged: of the neuron, or of the readout's.
    """

    name: str
    synapse: nn.Linear | nn.modules.conv._ConvNd
    neuron: Neuron | Recurrent | None
    before: tuple[nn.Module, ...]
    after: tuple[nn.Module, ...]
    decay: float


@dataclass(frozen=True)
class Online:
    """``encoder -> head -> unit -> ... -> unit -> readout``.

    Attributes:
        decay: Of the readout's potential; 0 where it remembers nothing.
    """

    encoder: Encoder
    head: tuple[nn.Module, ...]
    units: tuple[Unit, ...]
    readout: Readout
    decay: float

    @property
    def time_steps(self) -> int:
        return self.encoder.time_steps

    def frames(self, x: Tensor) -> Iterator[Tensor]:
        """What reaches the first synaptic layer, step by step, ``[B, *]``."""
        head = _Instant(self.head)
        return map(head, self.encoder.stream(x))


def online(
    model: nn.Module, rule: str, *, kinds: tuple[type[Neuron], ...] = (LIF, IF), recurrent: bool = False
) -> Online:
    """``model`` as ``rule`` runs it.

    Args:
        kinds: Neurons that the rule has traces for.
        recurrent: Whether it takes :class:`~snnrobust.neurons.Recurrent` layers.

    Raises:
        TypeError, ValueError: the rule cannot train it; the error says what to change.
    """
    if not isinstance(model, SpikingClassifier):
        raise TypeError(
            f"{rule} learns from traces of spikes over time, and this {type(model).__name__} has no time: "
            "train a SpikingClassifier, or use BPTT, which is ordinary backpropagation here"
        )
    parts = chain(model, rule, (Recurrent,) if recurrent else ())
    readout = model.readout
    if not isinstance(readout, MeanMembrane | SpikeCount):
        raise TypeError(
            f"{rule} has a loss at each step, and {type(readout).__name__} reads the answer otherwise: use MeanOutput(), "
            "MeanMembrane() or SpikeCount()"
        )
    decay = readout.decay if isinstance(readout, MeanMembrane) else 0.0
    for part in parts.head:
        _allow(part, type(part).__name__, _INSTANT, rule, "before the first weights")
    units = [_unit(b, rule, kinds, b is parts.blocks[-1], decay) for b in parts.blocks]
    return Online(model.encoder, parts.head, tuple(units), readout, decay)


def _unit(block: Block, rule: str, kinds: tuple[type[Neuron], ...], last: bool, readout_decay: float) -> Unit:
    found = [i for i, part in enumerate(block.rest) if isinstance(part, Neuron | Recurrent)]
    if len(found) > 1:
        raise TypeError(f"{rule} needs weights between neurons: {block.names[found[1]]} follows neurons at once")
    if not found and not last:
        raise TypeError(f"{rule} needs neurons between weights: put LIF() behind {block.name}")
    at = found[0] if found else len(block.rest)
    for part, name in zip(block.rest[:at], block.names[:at], strict=True):
        _allow(part, name, _LINEAR, rule, "between weights and neurons")
    for part, name in zip(block.rest[at + 1 :], block.names[at + 1 :], strict=True):
        _allow(part, name, _INSTANT, rule, "behind neurons")
    if not found:
        return Unit(block.name, block.synapse, None, block.rest, (), readout_decay)
    layer, name = block.rest[at], block.names[at]
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    assert isinstance(layer, Neuron | Recurrent)
    assert isinstance(neuron, Neuron)
    decay = _decay(neuron, name, rule, kinds)
    return Unit(block.name, block.synapse, layer, block.rest[:at], block.rest[at + 1 :], decay)


def _decay(neuron: Neuron, name: str, rule: str, kinds: tuple[type[Neuron], ...]) -> float:
    """The decay of a neuron whose potential is linear in the trace of its input."""
    kind = type(neuron)
    if kind not in kinds:
        allowed = " or ".join(f"{k.__name__}()" for k in kinds)
        raise TypeError(f"{rule} has no trace for {name} ({kind.__name__}): use {allowed}, or train this one by BPTT")
    if neuron.reset != "soft":
        raise ValueError(f"{rule} needs reset='soft' at {name}: a hard reset wipes what the trace goes on remembering")
    if not neuron.detach_reset:
        raise ValueError(f"{rule} takes the spike in the reset for a constant: set detach_reset=True at {name}")
    if neuron.refractory:
        raise ValueError(f"{rule} has no refractory period in its traces: set refractory=0 at {name}")
    decay = neuron.decay
    if isinstance(decay, Tensor):
        if decay.min() != decay.max():
            raise ValueError(
                f"{rule} keeps one trace for all neurons of a layer, and {name} has a decay for each channel: "
                "give it one number, or train by BPTT"
            )
        return float(decay.flatten()[0])
    return float(decay)  # type: ignore[arg-type]


def _allow(part: nn.Module, name: str, kinds: tuple[type, ...], rule: str, where: str) -> None:
    if type(part) in kinds:
        return
    hint = "leave it out"
    if "Norm" in type(part).__name__ or type(part).__name__ in ("BNTT", "TDBN", "TEBN"):
        hint = "its statistics change what the trace has stored; build with norm='none'"
    elif isinstance(part, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        hint = "put it behind the neurons, or use average pooling"
    raise TypeError(f"{rule} cannot train through {name} ({type(part).__name__}) {where}: {hint}, or train by BPTT")


class _Instant:
    """Modules without memory, one step after the other; of ours the state is where they are in time."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.states: list[State] = [None] * len(modules)

    def __call__(self, s: Tensor) -> Tensor:
        for i, module in enumerate(self.modules):
            if isinstance(module, Temporal):
                state = module.initial_state(s) if self.states[i] is None else self.states[i]
                s, self.states[i] = module.step(s, state)
            else:
                s = module(s)
        return s


class Synapse:
    r"""Weights whose gradient is taken with the trace of their input.

    .. math:: y_t = W s_t + b, \quad a_t = \beta a_{t-1} + s_t, \quad \partial y_t / \partial W := a_t

    The gradient of :math:`s_t` is :math:`W^\top`, as always; the trace of what a bias multiplies is :math:`\sum_k \beta^k`.
    """

    def __init__(self, synapse: nn.Linear | nn.modules.conv._ConvNd, decay: float) -> None:
        self.synapse, self.decay = synapse, decay
        self.trace: Tensor | None = None
        self.ones = 0.0

    def __call__(self, s: Tensor) -> Tensor:
        of, given = self.synapse, s.detach()
        self.trace = given.to(state_dtype(s.dtype)) if self.trace is None else self.trace * self.decay + given
        self.ones = self.ones * self.decay + 1.0
        trace = self.trace
        if isinstance(of, nn.modules.conv._ConvNd) and _padded(of):
            mode = "constant" if of.padding_mode == "zeros" else of.padding_mode
            s, trace = (F.pad(t, of._reversed_padding_repeated_twice, mode=mode) for t in (s, trace))
        return _Traced.apply(s, trace, self.ones, of.weight, of.bias, of)  # type: ignore[no-any-return, no-untyped-call]


def _padded(conv: nn.modules.conv._ConvNd) -> bool:
    """Whether padding is a step of its own."""
    return conv.padding_mode != "zeros" or isinstance(conv.padding, str)


_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _convolution(of: nn.modules.conv._ConvNd) -> tuple[Any, ...]:
    padding = (0,) * len(of.kernel_size) if _padded(of) else of.padding
    return of.stride, padding, of.dilation, False, (0,) * len(of.kernel_size), of.groups


class _Traced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, trace: Tensor, ones: float, weight: Tensor, bias: Tensor | None, of: Any
    ) -> Tensor:
        ctx.save_for_backward(trace, weight)
        ctx.ones, ctx.of, ctx.dtype = ones, of, s.dtype
        if isinstance(of, nn.Linear):
            return F.linear(s, weight, bias)
        stride, padding, dilation, _, _, groups = _convolution(of)
        return _CONVOLVE[s.dim() - 2](s, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        trace, weight = ctx.saved_tensors
        a, w, of = trace.to(grad.dtype), weight.to(grad.dtype), ctx.of
        of_s, _, _, of_weight, of_bias, _ = ctx.needs_input_grad
        if isinstance(of, nn.Linear):
            found_s = grad @ w if of_s else None
            found_w = grad.flatten(0, -2).T @ a.flatten(0, -2) if of_weight else None
            found_b = grad.flatten(0, -2).sum(0) if of_bias else None
        else:
            found_s, found_w, found_b = torch.ops.aten.convolution_backward.default(
                grad, a, w, [w.shape[0]], *_convolution(of), [of_s, of_weight, of_bias]
            )
        return (
            found_s.to(ctx.dtype) if of_s and found_s is not None else None,
            None,
            None,
            found_w.to(weight.dtype) if of_weight and found_w is not None else None,
            found_b.to(weight.dtype) * ctx.ones if of_bias and found_b is not None else None,
            None,
        )


class Layer:
    """A :class:`Unit` over the time steps of one batch: the gradient of a step reaches its weights and its input at that step."""

    def __init__(self, unit: Unit, activity: Activity | None = None) -> None:
        self.unit, self.activity = unit, activity
        self.synapse = Synapse(unit.synapse, unit.decay)
        self.before, self.after = _Instant(unit.before), _Instant(unit.after)
        self.recurrent: Synapse | None = None
        self.neuron: Neuron | None = None
        if isinstance(unit.neuron, Recurrent):
            self.recurrent, self.neuron = Synapse(unit.neuron.recurrent, unit.decay), unit.neuron.neuron
        else:
            self.neuron = unit.neuron
        self.state: State = None
        self.spikes: Tensor | None = None

    def step(self, s: Tensor) -> Tensor:
        """What the unit gives at this step; what came before counts as a constant."""
        y = self.before(self.synapse(s))
        if self.neuron is None:
            return y
        if self.recurrent is not None:
            y = y + self.recurrent(torch.zeros_like(y) if self.spikes is None else self.spikes)
        return self.after(self.fire(y))

    def fire(self, y: Tensor) -> Tensor:
        assert self.neuron is not None
        assert self.unit.neuron is not None
        s, state = self.neuron.step(y, self.neuron.initial_state(y) if self.state is None else self.state)
        self.state = type(state)(*(None if part is None else part.detach() for part in state))
        self.spikes = s.detach()
        if self.activity is not None and self.activity.on:
            self.activity.see(self.unit.neuron, self.spikes)
        return s


class Output:
    """The readout of one batch: what each step's loss is of, and the model's own logits."""

    def __init__(self, net: Online) -> None:
        self.net = net
        self.state: State = None
        self.before: Tensor | None = None
        self.logits = torch.empty(0)

    def read(self, y: Tensor) -> Tensor:
        r"""The potential :math:`o_t = \kappa o_{t-1} + y_t`, where the past counts as a constant."""
        given, readout = y.detach(), self.net.readout
        self.logits, self.state = readout.step(
            given, readout.initial_state(given) if self.state is None else self.state
        )
        output = y if self.before is None or self.net.decay == 0 else y + self.net.decay * self.before
        self.before = output.detach()
        return output
