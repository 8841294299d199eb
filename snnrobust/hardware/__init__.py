"""Imperfect hardware for any network: backends, and ``deploy`` to put a model on a chip."""

from snnrobust.hardware.backend import BACKENDS, Array, Backend, Chain
from snnrobust.hardware.deploy import deploy
from snnrobust.hardware.gaussian import GaussianNoise
from snnrobust.hardware.training import on_chips
from snnrobust.hardware.variation import WeightVariation

__all__ = ["BACKENDS", "Array", "Backend", "Chain", "GaussianNoise", "WeightVariation", "deploy", "on_chips"]
