"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.snr import signal_to_noise
from snnrobust.hardware.storage import load, save
from snnrobust.hardware.training import on_chips

__all__ = [
    "BACKENDS", "Array", "Backend", "Chain", "GaussianNoise", "Operation", "deploy", "effects", "fleet", "load", "on_chips",
    "save", "signal_to_noise",
]  # fmt: skip
