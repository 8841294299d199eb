"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.faults import (
    BitErrors,
    DeadNeurons,
    NeuronVariation,
    SpikeInsertion,
    SpikeLoss,
    StuckNeurons,
)
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.training import on_chips
from snnrobust.hardware.vulnerability import Vulnerability, neuron_vulnerability

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "BitErrors",
    "Chain",
    "DeadNeurons",
    "GaussianNoise",
    "NeuronVariation",
    "Operation",
    "SpikeInsertion",
    "SpikeLoss",
    "StuckNeurons",
    "Vulnerability",
    "deploy",
    "effects",
    "fleet",
    "neuron_vulnerability",
    "on_chips",
]
