"""Run a model once and count."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from snnrobust import checks
from snnrobust.draws import evaluating
from snnrobust.encoders import Encoder
from snnrobust.energy.fan_out import Product, fan_out
from snnrobust.energy.operations import LayerOperations, NeuronUpdates, Operations, joint_magnitude
from snnrobust.energy.tally import ElementTally, elementwise, update_cost
from snnrobust.hardware.deploy import DIGITAL, PLAIN_FORWARDS, SYNAPTIC
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.recurrent import Unrolled
from snnrobust.hardware.synapses import DeployedLayer, WithoutTime
from snnrobust.neurons import Neuron, Recurrent
from snnrobust.quantization.signals import QuantizedMembrane
from snnrobust.temporal import Temporal

__all__ = ["count_operations"]

_CHUNK = 1 << 22  # inputs a chunk, so that their float64 copy stays small


def count_operations(model: nn.Module, x: Tensor, *, membranes: bool = False) -> Operations:
    r"""The operations of ``model`` for the batch ``x``, for each synaptic layer, time step and sample.

    .. math:: \text{events} = \sum_{i:\, x_i \ne 0} f_i

    with :math:`f_i` the synapses of input i (see :func:`~snnrobust.energy.fan_out.fan_out`). An event is an accumulate (AC)
    in a layer whose inputs in this batch are zero or of a single magnitude, else a multiply-accumulate (MAC): a convolution
    after average pooling makes MACs.

    Counted are ``nn.Linear``, ``nn.Conv*``, ``nn.LSTM/GRU/RNN`` and deployed layers (by their input before ``drive``), each at
    every step: see :meth:`Operations.hoisted`. A layer may be parametrized (``torch.nn.utils.parametrize``), as a quantized one
    is. Apart from them stand biases, the neurons' own operations, normalisations and encoders. Not counted are pooling, sums of
    branches and the gates of recurrent layers. The model runs once, in eval mode, under the draws of its context; its
    modes are restored.

    Args:
        model: A classifier; T is its encoder's. An ordinary network counts as one step. Or a temporal module, T from ``x``.
        x: A batch ``[B, *]``, or ``[T, B, *]`` for a temporal module.
        membranes: Count the potentials that change as well, by a second pass through the neurons.

    Raises:
        TypeError: a layer with weights whose operations are not known.
        ValueError: no synaptic layer ran, or one sees a batch that is not made of B samples at one or at all steps.
    """
    checks.module("model", model)
    checks.boolean("membranes", membranes)
    if isinstance(model, Temporal):
        checks.sequence("x", x)
    checks.pixels("x", x, bounds=(-math.inf, math.inf))
    steps, batch = _time(model, x)
    layers = {name: _Layer(name, m, steps, batch) for name, m in _synaptic(model)}
    neurons = {name: _Neurons(name, m, steps, batch, membranes) for name, m in _spiking(model)}
    others = {name: ElementTally(name, m, steps, batch) for name, m in elementwise(model)}
    tallies: list[_Layer | _Neurons | ElementTally] = [*layers.values(), *neurons.values(), *others.values()]
    watch = _Watch()
    order = watch.order
    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for tally in tallies:
            handle = tally.module.register_forward_hook(partial(_seen, tally, watch), with_kwargs=True)
            hooks.callback(handle.remove)
        model(x)
    counted = [layers[name].result() for name in order if name in layers]
    if not counted:
        raise ValueError(
            "no synaptic layer of the model ran: nn.Linear, nn.Conv* and nn.LSTM/GRU/RNN modules are counted, not functions"
        )
    updated = [neurons[name].result() for name in order if name in neurons]
    if neurons and not updated:
        raise ValueError(
            "the model only stepped its neurons, as a stream or an early exit does: "
            "count the classifier itself and take upto(the steps of each sample)"
        )
    touched = [others[name].result() for name in order if name in others]
    return Operations(batch, steps, tuple(counted), tuple(updated), tuple(touched))


def _time(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Steps and samples of a forward pass."""
    if isinstance(model, Temporal):
        return x.shape[0], x.shape[1]
    found = {m.time_steps for m in model.modules() if isinstance(m, Encoder)}
    if len(found) > 1:
        raise ValueError(f"the model holds encoders of {sorted(found)} time steps: count each part on its own")
    return next(iter(found), 1), x.shape[0]


def _synaptic(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers to count. A layer that would be missed is an error."""
    inside = {id(m.layer) for m in model.modules() if isinstance(m, WithoutTime)}
    for name, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            continue  # of a layer, which shows the weight that it makes
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, Unrolled) or (isinstance(module, Recurrent) and isinstance(module.recurrent, Temporal)):
            raise TypeError(f"{where} is a recurrent layer on a chip, which is not counted: count the original model")
        if isinstance(module, DeployedLayer | WithoutTime):
            if id(module) not in inside:
                yield name, module
        elif isinstance(module, nn.RNNBase):
            if module.bidirectional or module.proj_size:
                raise TypeError(f"{where} is bidirectional or has a projection, which is not counted: use one without")
            _refuse_own_forward(module, where, {kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)})
            yield name, module
        elif isinstance(module, SYNAPTIC):
            _refuse_own_forward(module, where, PLAIN_FORWARDS)
            yield name, module
        elif not isinstance(module, (*DIGITAL, Neuron)) and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            raise TypeError(
                f"{where} has weights, but its operations are not known: "
                "nn.Linear, nn.Conv1d/2d/3d and nn.LSTM/GRU/RNN are counted"
            )


def _refuse_own_forward(module: nn.Module, where: str, known: Collection[Any]) -> None:
    if type(module).forward not in known:
        raise TypeError(f"{where} has a forward of its own, so its operations are not known: use the plain layer")


def _spiking(model: nn.Module) -> Iterator[tuple[str, Neuron | Recurrent | QuantizedMembrane]]:
    inside = {id(m.neuron) for m in model.modules() if isinstance(m, QuantizedMembrane)}
    for name, module in model.named_modules():
        # that inside Recurrent is only stepped
        if isinstance(module, Neuron | Recurrent | QuantizedMembrane) and id(module) not in inside:
            yield name, module


class _Watch:
    """What has run so far.

    Attributes:
        order: Names, in the order in which they first ran.
        layer, biased, output: The synaptic layer that ran last, whether it has a bias, and what it gave; kept, so that its
            memory is not used again.
        paused: While the neurons are run once more.
    """

    def __init__(self) -> None:
        self.order: dict[str, None] = {}
        self.layer, self.biased, self.paused = "", False, False
        self.output: Tensor | None = None


def _seen(
    tally: _Layer | _Neurons | ElementTally,
    watch: _Watch,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    if watch.paused:
        return
    watch.order[tally.name] = None
    given = [*args, *kwargs.values()]
    if isinstance(tally, ElementTally):
        tally.see(given[0], output, watch.output, watch.biased)
        return
    if len(given) > 1 and any(value is not None for value in given[1:]):
        raise ValueError(f"{tally.name} ({type(module).__name__}) got an initial state: only the zero state is counted")
    if isinstance(tally, _Neurons):
        tally.after = watch.layer
        watch.paused = True
        tally.see(given[0], output)
        watch.paused = False
    else:
        tally.see(given[0], output)
        watch.layer, watch.output = tally.name, output if isinstance(output, Tensor) else None
        watch.biased = bool(tally.biases.any())


class _Layer:
    """Counts of one synaptic layer over the calls of a forward pass."""

    def __init__(self, name: str, module: nn.Module, steps: int, batch: int) -> None:
        self.name, self.module, self.steps, self.batch = name, module, steps, batch
        counts = torch.zeros(7, steps, batch, dtype=torch.int64).unbind(0)
        self.dense, self.synapses, self.events, self.effective, self.inputs, self.nonzero, self.biases = counts
        self.magnitude: float | None = 0.0
        self.low, self.high = math.inf, -math.inf
        self.weights = self.zeros = 0
        self.calls, self.constant = 0, not isinstance(module, nn.RNNBase)

    def see(self, x: Tensor, y: Tensor | tuple[Tensor, Any]) -> None:
        if isinstance(self.module, nn.RNNBase):
            assert isinstance(y, tuple)
            self._recurrent(self.module, x, y[0])
        else:
            assert isinstance(y, Tensor)
            start, x = self._unfold(x)
            _, y = self._unfold(y)
            product, weight, bias = _product(self.module)
            zeros = int((weight == 0).sum())
            synapses = fan_out(product, weight, x.shape[2:])
            effective = fan_out(product, weight, x.shape[2:], zeros=False) if zeros else synapses
            outputs = math.prod(y.shape[2:])
            self._add(start, x, synapses, effective, outputs * weight[0].numel(), outputs * bias)
            self.weights, self.zeros = weight.numel(), zeros
            self.shapes = tuple(x.shape[2:]), tuple(y.shape[2:])
            self.constant &= len(x) == self.steps > 1 and all(torch.equal(x_t, x[0]) for x_t in x[1:])
        self.calls += 1

    def _unfold(self, x: Tensor) -> tuple[int, Tensor]:
        """The first step and ``[steps, B, *]`` of what a layer saw: all steps folded into the batch, or one of them."""
        if isinstance(self.module, DeployedLayer) and x.shape[:2] == (self.steps, self.batch):
            return 0, x
        if self.steps > 1 and len(x) == self.steps * self.batch:
            return 0, x.unflatten(0, (self.steps, self.batch))
        if len(x) != self.batch or self.calls >= self.steps > 1:
            raise ValueError(
                f"{self.name} ({type(self.module).__name__}) saw {tuple(x.shape)} at its call {self.calls + 1}, but the model "
                f"has T = {self.steps} steps of B = {self.batch} samples: it must see [T * B, ...] or, T times, [B, ...]"
            )
        return self.calls % self.steps, x[None]

    def _recurrent(self, rnn: nn.RNNBase, x: Tensor, y: Tensor) -> None:
        """Each layer multiplies its input and its own last output with the weights of all gates."""
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise ValueError(
                f"{self.name} ({type(rnn).__name__}) must get a batch of sequences of rank 3 to be counted"
            )
        if rnn.batch_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        if x.shape[1] != self.batch or len(x) != self.steps > 1:
            raise ValueError(
                f"{self.name} ({type(rnn).__name__}) saw {len(x)} steps of {x.shape[1]} samples, but the model has "
                f"T = {self.steps} of B = {self.batch}"
            )
        self.weights = self.zeros = 0
        for sequence, weight in _recurrent_products(rnn, x):
            synapses = torch.full(sequence.shape[2:], len(weight), device=x.device)
            effective = (weight != 0).sum(0)
            if self.steps == 1:  # an ordinary network: the whole sequence counts as its one step
                sequence = sequence.transpose(0, 1)[None]
                synapses, effective = synapses.expand(len(x), -1), effective.expand(len(x), -1)
            times = len(x) // self.steps
            self._add(0, sequence, synapses, effective, weight.numel() * times, len(weight) * times * rnn.bias)
            self.weights += weight.numel()
            self.zeros += int((weight == 0).sum())
        self.shapes = tuple(x.shape[2:]), tuple(y.shape[2:])

    def _add(self, start: int, x: Tensor, synapses: Tensor, effective: Tensor, dense: int, biases: int) -> None:
        if x.isnan().any():
            raise ValueError(
                f"{self.name} ({type(self.module).__name__}) saw NaN inputs: repair the model or its input"
            )
        part = slice(start, start + len(x))
        self.dense[part] += dense
        self.synapses[part] += int(synapses.sum())
        self.inputs[part] += synapses.numel()
        self.biases[part] += biases
        counts = torch.stack([torch.ones_like(synapses), synapses, effective]).flatten(1).double()  # exact: below 2**53
        rows = x.flatten(0, 1).flatten(1)
        nonzero = torch.cat([(r != 0).double() @ counts.T for r in rows.split(max(1, _CHUNK // rows.shape[1]))])
        nonzero, events, used = nonzero.long().cpu().unflatten(0, (len(x), self.batch)).unbind(-1)
        self.nonzero[part] += nonzero
        self.events[part] += events
        self.effective[part] += used
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.magnitude = joint_magnitude(self.magnitude, _magnitude(x))

    def result(self) -> LayerOperations:
        kind = DeployedLayer if isinstance(self.module, WithoutTime) else type_before_parametrizations(self.module)
        return LayerOperations(
            self.name, kind.__name__, *self.shapes, self.magnitude, self.low, self.high, self.constant, self.weights, self.zeros,
            self.dense, self.synapses, self.events, self.effective, self.inputs, self.nonzero, self.biases,
        )  # fmt: skip


class _Neurons:
    """Updates of one layer of neurons."""

    def __init__(
        self, name: str, module: Neuron | Recurrent | QuantizedMembrane, steps: int, batch: int, membranes: bool
    ) -> None:
        self.name, self.module, self.after = name, module, ""
        self.count, self.spikes, changed = torch.zeros(3, steps, batch, dtype=torch.int64).unbind(0)
        self.changed = changed if membranes else None
        self.shape: tuple[int, ...] = ()
        self.cost = 0, 0, 0

    @property
    def neuron(self) -> Neuron:
        found: Any = self.module
        while not isinstance(found, Neuron):  # in a store of its potential, or in an effect of a chip within
            found = found.neuron
        return found

    def see(self, x: Tensor, y: Tensor) -> None:
        self.shape = tuple(y.shape[2:])
        if y.shape[:2] != self.count.shape:
            raise ValueError(
                f"{self.name} ({type(self.module).__name__}) saw {len(y)} steps of {y.shape[1]} samples, but the model has "
                f"T = {self.count.shape[0]} of B = {self.count.shape[1]}"
            )
        self.count += math.prod(self.shape)
        self.spikes += (y != 0).flatten(2).sum(2).cpu()
        self.cost = update_cost(self.neuron, self.neuron.initial_state(x[0]))
        if self.changed is not None:
            v = self.module.membrane(x).flatten(2)
            self.changed[0] += v.shape[2]
            self.changed[1:] += (v[1:] != v[:-1]).sum(2).cpu()

    def result(self) -> NeuronUpdates:
        kind = type(self.neuron if isinstance(self.module, QuantizedMembrane) else self.module).__name__
        soft = self.neuron.reset == "soft"
        counts = self.count, self.spikes, self.changed
        return NeuronUpdates(self.name, kind, self.shape, self.after, *self.cost, soft, *counts)


def _product(module: nn.Module) -> tuple[Product, Tensor, bool]:
    """The operation, the weight, and whether there is a bias."""
    if isinstance(module, WithoutTime):
        module = module.layer
    if isinstance(module, DeployedLayer):
        return module.array.operation, module.array.weight, module.bias is not None
    assert isinstance(module, SYNAPTIC)
    return Operation.of(module), module.weight, module.bias is not None


def _recurrent_products(rnn: nn.RNNBase, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs ``[L, B, F]`` and weights of both products of each layer, for a sequence from the zero state."""
    for layer in range(rnn.num_layers):
        weights: Sequence[Tensor] = [getattr(rnn, name) for name in rnn._all_weights[layer]]
        h = x.new_zeros(1, x.shape[1], rnn.hidden_size)
        function = getattr(torch, rnn.mode.lower())  # lstm, gru, rnn_tanh, rnn_relu
        state = (h, h) if rnn.mode == "LSTM" else h
        y: Tensor = function(x, state, weights, rnn.bias, 1, 0.0, False, False, False)[0]
        yield x, weights[0]
        yield torch.cat([h, y[:-1]]), weights[1]
        x = y


def _magnitude(x: Tensor) -> float | None:
    """The only nonzero magnitude in ``x``; 0 if there is none, None if there are several."""
    a = x.abs()
    largest = a.max()
    return float(largest) if bool(((a == 0) | (a == largest)).all()) else None
