"""From operations to energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.energy.cost import CMOS45, FLOAT, Costs, _bits
from snnrobust.energy.operations import Elementwise, LayerOperations, NeuronUpdates, Operations
from snnrobust.energy.report import EnergyReport, Part

__all__ = ["Precision", "estimate"]


_METHODS = ("multiply", "add", "weight_access", "value_access", "membrane_access")


class Precision(Protocol):
    """Bits of a layer, as :func:`snnrobust.quantization.precision` gives them; 32 is not quantized."""

    @property
    def weights(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def membranes(self) -> int: ...


def estimate(
    operations: Operations,
    costs: Costs = CMOS45(),  # noqa: B008 (frozen: safe to share)
    *,
    bits: Mapping[str, Precision | tuple[int, int, int]] | None = None,
    event_driven: bool = True,
    reuse: bool = False,
) -> EnergyReport:
    r"""The energy of one sample in pJ, in three groups that are never mixed.

    ======================  =====================================================================================
    group                   what
    ======================  =====================================================================================
    ``usual``               :math:`n_{MAC} (E_\times + E_+)` and :math:`n_{AC} E_+` of the synaptic layers
    ``traffic``             a weight read for each of these operations; each input written once and read once
    ``forgotten``           leaks, charge, comparison and soft reset of neurons; their states read and written at each
                            step; biases, those too that a folded normalisation leaves; normalisations that do not
                            fold into weights; encoders
    ======================  =====================================================================================

    A spike has one bit, a signed spike two, whatever the inputs of its layer have. Early exit: pass ``operations.upto(steps)``.
    Sums of one layer at one step stay in registers, as do biases.

    Args:
        operations: From :func:`~snnrobust.energy.count_operations`.
        costs: :class:`CMOS45`, :class:`PrecisionScalable`, or what has their methods.
        bits: For each layer its bits of weights, inputs and membranes; a layer that is missing has 32 of each, floats.
            Membranes are those of the neurons behind the layer, which may also be named themselves. ``precision(model)``
            gives it.
        event_driven: Skip zero inputs. If not, every multiplication of the dense product is made, padding included.
        reuse: Read a weight once a step and sample at most, as if a memory without cost kept it; default is once for each
            operation. The two bound what a real device does.

    Raises:
        TypeError: a value of ``bits`` that is neither a precision nor three integers.
        ValueError: ``bits`` names a layer that did not run, or holds numbers outside 1..32.
    """
    if not isinstance(operations, Operations):
        raise TypeError(f"operations must come from count_operations(model, x), got {type(operations).__name__}")
    if isinstance(costs, type) or not all(hasattr(costs, method) for method in _METHODS):
        raise TypeError(f"costs must be an instance such as CMOS45(), got {costs!r:.80}")
    checks.boolean("event_driven", event_driven)
    checks.boolean("reuse", reuse)
    names = [layer.name for layer in operations.layers] + [neuron.name for neuron in operations.neurons]
    widths = {}
    for name, value in (bits or {}).items():
        if name not in names:
            raise ValueError(f"bits names {name!r}, which did not run: the layers are {', '.join(map(repr, names))}")
        widths[name] = _widths(name, value)
    parts: list[Part] = []
    for layer in operations.layers:
        parts += _layer(layer, costs, widths.get(layer.name, (FLOAT,) * 3), event_driven, reuse)
    for neuron in operations.neurons:
        own = widths.get(neuron.name, widths.get(neuron.after, (FLOAT,) * 3))
        parts += _neuron(neuron, costs, own[2])
    for other in operations.elementwise:
        parts += _elementwise(other, costs)
    return EnergyReport(operations.samples, operations.time_steps, costs, event_driven, reuse, tuple(parts))


def _widths(name: str, value: Precision | tuple[int, int, int]) -> tuple[int, int, int]:
    if not isinstance(value, tuple):
        if not all(hasattr(value, part) for part in ("weights", "inputs", "membranes")):
            raise TypeError(
                f"bits[{name!r}] must be (weight bits, input bits, membrane bits) or an entry of precision(model), "
                f"got {value!r:.80}"
            )
        value = (value.weights, value.inputs, value.membranes)
    elif len(value) != 3:
        raise TypeError(f"bits[{name!r}] must be (weight bits, input bits, membrane bits), got {value!r:.80}")
    weights, inputs, membranes = (_bits(f"bits[{name!r}]", one) for one in value)
    return weights, inputs, membranes


def _layer(
    layer: LayerOperations, costs: Costs, widths: tuple[int, int, int], event_driven: bool, reuse: bool
) -> Iterator[Part]:
    weight, value = widths[:2]
    accumulates = layer.kind == "AC"
    spike = 2 if layer.low < 0 else 1
    value = min(value, spike) if accumulates else value
    done = layer.events if event_driven else layer.dense
    one = costs.add(weight) if accumulates else costs.multiply(weight, value) + costs.add(weight, value)
    yield _part(layer, layer.kind, "usual", done, max(weight, value), one)
    reads = done.clamp(max=layer.weights) if reuse else done
    yield _part(layer, "weights", "traffic", reads, weight, costs.weight_access(weight))
    yield _part(layer, "inputs", "traffic", 2 * layer.inputs, value, costs.value_access(value))
    yield _part(layer, "biases", "forgotten", layer.biases, weight, costs.add(weight))


def _neuron(neuron: NeuronUpdates, costs: Costs, bits: int) -> Iterator[Part]:
    additions = neuron.additions * neuron.count + neuron.spikes * neuron.soft
    yield _part(neuron, "leaks", "forgotten", neuron.multiplications * neuron.count, bits, costs.multiply(bits, bits))
    yield _part(neuron, "updates", "forgotten", additions, bits, costs.add(bits))
    yield _part(neuron, "membranes", "forgotten", 2 * neuron.states * neuron.count, bits, costs.membrane_access(bits))


def _elementwise(other: Elementwise, costs: Costs) -> Iterator[Part]:
    add = costs.add(FLOAT)
    if other.shift:
        yield _part(other, "biases", "forgotten", other.count, FLOAT, add)
    if other.folded or other.role == "activation":
        return
    one = add if other.role == "encoder" else costs.multiply(FLOAT, FLOAT) + add
    yield _part(other, other.role, "forgotten", other.count, FLOAT, one)


def _part(
    of: LayerOperations | NeuronUpdates | Elementwise, what: str, group: str, count: Tensor, bits: int, one: float
) -> Part:
    mean = float(count.to(torch.float64).mean(1).sum())
    return Part(of.name, of.type, what, group, mean, bits, mean * one)  # type: ignore[arg-type]
