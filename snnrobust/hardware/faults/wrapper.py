"""A neuron on a chip: the neuron of the model, and what the chip does to it."""

from __future__ import annotations

from torch import nn

from snnrobust.neurons import Neuron
from snnrobust.temporal import Temporal

__all__ = ["OnChip", "neuron_of"]


class OnChip(Temporal):
    """Base of the modules that stand in a neuron's place, ``[T, B, *] -> [T, B, *]``. ``neuron`` may be another one of these."""

    neuron: nn.Module


def neuron_of(module: nn.Module) -> nn.Module:
    """The neuron of the model inside what stands in its place."""
    while isinstance(module, OnChip):
        module = module.neuron
    return module


def demand_neuron(backend: object, module: nn.Module, *, relu: bool, why: str = "") -> None:
    """Raise TypeError if ``module`` is no spiking neuron of ours, nor an ``nn.ReLU`` where that will do."""
    inner = neuron_of(module)
    if not isinstance(inner, Neuron) and not (relu and isinstance(inner, nn.ReLU)):
        known = "the spiking neurons of snnrobust" + (" and nn.ReLU" if relu else "")
        raise TypeError(f"{type(backend).__name__} acts on {known}, got {type(inner).__name__}{why}")
