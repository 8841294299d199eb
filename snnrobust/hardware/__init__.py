"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain, effects
from snnrobust.hardware.calibration import calibrate_adc, recalibrate
from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.deploy import deploy, fleet
from snnrobust.hardware.export import conductances, export_conductances, read_conductances
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.snr import signal_to_noise
from snnrobust.hardware.storage import load, save
from snnrobust.hardware.training import on_chips

__all__ = [
    "BACKENDS", "Array", "Backend", "Chain", "Crossbar", "GaussianNoise", "Operation", "calibrate_adc",
    "conductances", "deploy", "effects", "export_conductances", "fleet", "load", "on_chips", "read_conductances", "recalibrate",
    "save", "signal_to_noise",
]  # fmt: skip
