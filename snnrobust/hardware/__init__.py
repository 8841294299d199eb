"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.calibration import calibrate_adc, recalibrate
from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.export import conductances, export_conductances, read_conductances
from snnrobust.hardware.faults import BitErrors, DeadNeurons, NeuronVariation, SpikeInsertion, SpikeLoss, StuckNeurons
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.layerwise import deploy_each
from snnrobust.hardware.lookup import LookupTable
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.pcm import PCM
from snnrobust.hardware.rram import RRAM
from snnrobust.hardware.snr import signal_to_noise
from snnrobust.hardware.sram import SRAM, bit_error_rate
from snnrobust.hardware.storage import load, save
from snnrobust.hardware.training import on_chips
from snnrobust.hardware.variation import WeightVariation
from snnrobust.hardware.vulnerability import Vulnerability, neuron_vulnerability

__all__ = [
    "BACKENDS",
    "PCM",
    "RRAM",
    "SRAM",
    "Array",
    "Backend",
    "BitErrors",
    "Chain",
    "Crossbar",
    "DeadNeurons",
    "GaussianNoise",
    "LookupTable",
    "NeuronVariation",
    "Operation",
    "SpikeInsertion",
    "SpikeLoss",
    "StuckNeurons",
    "Vulnerability",
    "WeightVariation",
    "bit_error_rate",
    "calibrate_adc",
    "conductances",
    "deploy",
    "deploy_each",
    "effects",
    "export_conductances",
    "fleet",
    "load",
    "neuron_vulnerability",
    "on_chips",
    "read_conductances",
    "recalibrate",
    "save",
    "signal_to_noise",
]
