"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.layerwise import deploy_each
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.snr import signal_to_noise
from snnrobust.hardware.sram import SRAM, bit_error_rate
from snnrobust.hardware.storage import load, save
from snnrobust.hardware.training import on_chips

__all__ = [
    "BACKENDS", "SRAM", "Array", "Backend", "Chain", "GaussianNoise", "Operation", "bit_error_rate", "deploy", "deploy_each",
    "effects", "fleet", "load", "on_chips", "save", "signal_to_noise",
]  # fmt: skip
