"""Models: the spiking classifier, named architectures, checkpoints."""

from snnrobust.models.architecture import ARCHITECTURES, Architecture, Conv, Dense, Pool, ordinary, spiking
from snnrobust.models.checkpoint import load, save
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.models.description import build, describe

__all__ = [
    "ARCHITECTURES", "Architecture", "Conv", "Dense", "Pool", "SpikingClassifier", "build", "describe", "load", "ordinary",
    "save", "spiking",
]  # fmt: skip
