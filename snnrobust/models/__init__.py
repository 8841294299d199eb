"""Models: the spiking classifier, descriptions of networks and named ones, checkpoints."""

from snnrobust.models.architecture import (
    Activation,
    Architecture,
    Conv,
    Dense,
    Dropout,
    GlobalPool,
    Layer,
    Normalise,
    Pool,
    smallest_image,
)
from snnrobust.models.blocks import DenseBlock, Recurrent, Residual, Transition, remembers
from snnrobust.models.checkpoint import load, save
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.models.description import build, describe
from snnrobust.models.early_exit import EarlyExit, exit_steps
from snnrobust.models.en_resnet import PreResidual, en_resnet, pre_resnet
from snnrobust.models.ensemble import Ensemble
from snnrobust.models.exit_curve import ExitCurve, exit_curve
from snnrobust.models.named import ARCHITECTURES
from snnrobust.models.truncation import exit_step, gamma_profile, truncate
from snnrobust.models.twins import NORMS, ordinary, spiking

__all__ = [
    "ARCHITECTURES", "NORMS", "Activation", "Architecture", "Conv", "Dense", "DenseBlock", "Dropout", "EarlyExit", "Ensemble",
    "ExitCurve", "GlobalPool", "Layer", "Normalise", "Pool", "PreResidual", "Recurrent", "Residual", "SpikingClassifier",
    "Transition", "build", "describe", "en_resnet", "exit_curve", "exit_step", "exit_steps", "gamma_profile", "load", "ordinary",
    "pre_resnet", "remembers", "save", "smallest_image", "spiking", "truncate",
]  # fmt: skip
