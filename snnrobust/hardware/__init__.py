"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.lookup import LookupTable
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.pcm import PCM
from snnrobust.hardware.rram import RRAM
from snnrobust.hardware.snr import signal_to_noise
from snnrobust.hardware.storage import load, save
from snnrobust.hardware.training import on_chips

__all__ = [
    "BACKENDS", "PCM", "RRAM", "Array", "Backend", "Chain", "GaussianNoise", "LookupTable", "Operation", "deploy", "effects",
    "fleet", "load", "on_chips", "save", "signal_to_noise",
]  # fmt: skip
