"""The metrics of NeuroBench by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from snnrobust.energy.count import count_operations
from snnrobust.energy.operations import LayerOperations, Operations

__all__ = ["NeuroBenchMetrics", "neurobench"]

# Operations of one update, soft and hard reset, in NeuroBench's table of snnTorch's neurons: Leaky, Synaptic
_NEURON_OPERATIONS = {"LIF": (4, 4), "IF": (4, 4), "PLIF": (4, 4), "LearnableThresholdLIF": (4, 4), "CuBaLIF": (6, 8)}


@dataclass(frozen=True)
class NeuroBenchMetrics:
    """Attributes have NeuroBench's names in our spelling; operations are means over samples.

    Attributes:
        footprint: Bytes of parameters and buffers.
        parameter_count: Numbers in parameters.
        connection_sparsity: Share of weights that are zero; biases are none.
        activation_sparsity: Share of zeros in the outputs of spiking neurons, ``nn.ReLU`` and ``nn.Sigmoid``; 0 without any.
        dense: Synaptic operations if nothing were zero, padding excluded.
        effective_macs, effective_acs: Products of a nonzero input and a nonzero weight; accumulates where the inputs of the layer
            are all in {-1, 0, 1}.
        membrane_updates: Potentials that changed; at the first step all.
        neuron_operations, neuron_dense: Updates times the operations of one: changed potentials, and all. None if a neuron is
            of a type for which NeuroBench has no number.
    """

    footprint: int
    parameter_count: int
    connection_sparsity: float
    activation_sparsity: float
    dense: float
    effective_macs: float
    effective_acs: float
    membrane_updates: float
    neuron_operations: float | None
    neuron_dense: float | None

    def to_json(self) -> dict[str, Any]:
        """With NeuroBench's own names."""
        return {
            "Footprint": self.footprint,
            "ParameterCount": self.parameter_count,
            "ConnectionSparsity": self.connection_sparsity,
            "ActivationSparsity": self.activation_sparsity,
            "SynapticOperations": {
                "Effective_MACs": self.effective_macs, "Effective_ACs": self.effective_acs, "Dense": self.dense,
            },
            "MembraneUpdates": self.membrane_updates,
            "NeuronOperations": {"Effective Neuron Ops": self.neuron_operations, "Neuron Dense Ops": self.neuron_dense},
        }  # fmt: skip


def neurobench(model: nn.Module, x: Tensor) -> NeuroBenchMetrics:
    """NeuroBench's metrics of ``model`` on the batch ``x``, from one forward pass.

    Equal to NeuroBench 2.3 on networks of plain layers, but for these, where it counts otherwise: a layer accumulates if its
    inputs are in {-1, 0, 1} at all steps of the batch, not step by step, and in a network without spiking neurons only if
    they differ (an image of ones is no spike train); parametrized layers and ``nn.RNN/LSTM/GRU`` are counted; the state
    of neurons is no buffer; sums are exact.

    Args:
        model, x: As in :func:`~snnrobust.energy.count_operations`, which says what is refused.

    Source: Yik et al. 2025, "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems".
    """
    operations = count_operations(model, x, membranes=True)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    weights = sum(layer.weights for layer in operations.layers)
    outputs = [(n.spikes, n.count) for n in operations.neurons]
    outputs += [(e.nonzero, e.count) for e in operations.elementwise if e.role == "activation"]
    total = sum(int(count.sum()) for _, count in outputs)
    macs = acs = dense = 0.0
    for layer in operations.layers:
        dense += _mean(layer.synapses)
        if _accumulates(layer, operations):
            acs += _mean(layer.effective)
        else:
            macs += _mean(layer.effective)
    changed, every = _neuron_operations(operations)
    return NeuroBenchMetrics(
        footprint=sum(tensor.numel() * tensor.element_size() for tensor in (*parameters, *buffers)),
        parameter_count=sum(parameter.numel() for parameter in parameters),
        connection_sparsity=sum(layer.zeros for layer in operations.layers) / weights,
        activation_sparsity=1 - sum(int(nonzero.sum()) for nonzero, _ in outputs) / total if total else 0.0,
        dense=dense,
        effective_macs=macs,
        effective_acs=acs,
        membrane_updates=sum(_mean(n.changed) for n in operations.neurons if n.changed is not None),
        neuron_operations=changed,
        neuron_dense=every,
    )


def _accumulates(layer: LayerOperations, operations: Operations) -> bool:
    spikes = layer.magnitude in (0.0, 1.0)
    return spikes and (bool(operations.neurons) or layer.low != layer.high)


def _neuron_operations(operations: Operations) -> tuple[float | None, float | None]:
    changed = every = 0.0
    for neuron in operations.neurons:
        if neuron.type not in _NEURON_OPERATIONS or neuron.changed is None:
            return None, None
        one = _NEURON_OPERATIONS[neuron.type][0 if neuron.soft else 1]
        changed += one * _mean(neuron.changed)
        every += one * _mean(neuron.count)
    return changed, every


def _mean(count: Tensor) -> float:
    return float(count.double().mean(1).sum())
