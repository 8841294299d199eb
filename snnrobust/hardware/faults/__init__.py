"""Faults of neurons, spikes and weight bits, as backends."""

from snnrobust.hardware.faults.bit_errors import BitErrors
from snnrobust.hardware.faults.outputs import DeadNeurons, SpikeInsertion, SpikeLoss, StuckNeurons
from snnrobust.hardware.faults.variation import NeuronVariation

__all__ = ["BitErrors", "DeadNeurons", "NeuronVariation", "SpikeInsertion", "SpikeLoss", "StuckNeurons"]
