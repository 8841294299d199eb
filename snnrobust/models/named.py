"""Architectures by name."""

from __future__ import annotations

from snnrobust.models.architecture import Activation, Architecture, Conv, Dense, GlobalPool, Pool
from snnrobust.models.blocks import DenseBlock, Recurrent, Residual, Transition

__all__ = ["ARCHITECTURES"]


def _resnet(stem: int, blocks: int, widths: tuple[int, ...]) -> Architecture:
    """Residual networks for small images (He et al. 2016, section 4.2): a 3 x 3 stem, basic blocks of two convolutions."""
    layers = [
        Residual((Conv(width, stride=2 if stage and not block else 1), Conv(width)))
        for stage, width in enumerate(widths)
        for block in range(blocks)
    ]
    return (Conv(stem), *layers, GlobalPool())


_LSTM = (Recurrent(128),)

ARCHITECTURES: dict[str, Architecture] = {
    "mlp": (Dense(256), Dense(256)),
    "dense": (Dense(400),),  # as many neurons as in a network of Diehl and Cook 2015
    "conv-small": (Conv(16), Pool(), Conv(32), Pool()),
    "conv-medium": (Conv(32), Pool(), Conv(64), Pool(), Dense(128)),
    "conv-mnist": (Conv(32), Pool(), Conv(64), Pool()),
    # LeCun et al. 1998, on images of 28 x 28; ReLU instead of tanh
    "lenet5": (Conv(6, 5), Pool(), Conv(16, 5, padding=0), Pool(), Dense(120), Dense(84)),
    # Sharmin et al. 2020
    "vgg5": (Conv(64), Pool(), Conv(128), Conv(128), Pool(), Dense(1024), Dense(1024)),
    # Kim and Panda 2021 (BNTT)
    "vgg9": (
        *(Conv(64), Conv(64), Pool(), Conv(128), Conv(128), Pool(), Conv(256), Conv(256), Conv(256), Pool()),
        Dense(1024),
    ),
    "vgg11": (
        *(Conv(64), Pool(), Conv(128), Pool(), Conv(256), Conv(256), Pool(), Conv(512), Conv(512), Pool()),
        *(Conv(512), Conv(512), GlobalPool(), Dense(4096)),
    ),
    # Simonyan and Zisserman 2015, configuration D, with the head usual for CIFAR
    "vgg16": (
        *(Conv(64), Conv(64), Pool(), Conv(128), Conv(128), Pool(), Conv(256), Conv(256), Conv(256), Pool()),
        *(Conv(512), Conv(512), Conv(512), Pool(), Conv(512), Conv(512), Conv(512), Pool()),
    ),
    "resnet18": _resnet(64, 2, (64, 128, 256, 512)),
    "resnet20": _resnet(16, 3, (16, 32, 64)),
    # Huang et al. 2017, L = 40, k = 12, without bottleneck and compression
    "densenet40": (
        Conv(16, activated=False),
        *(DenseBlock(12, 12), Transition(), DenseBlock(12, 12), Transition(), DenseBlock(12, 12)),
        *(Activation(), GlobalPool()),
    ),
    # Qin and Vucinic 2018: four convolutions and two linear layers; they publish no widths, these are ours
    "noisy-cnn6": (Conv(32), Conv(32), Pool(kind="max"), Conv(64), Conv(64), Pool(kind="max"), Dense(256)),
    # two names for one description, whose ordinary network is an LSTM and whose spiking one is recurrent
    "lstm": _LSTM,
    "recurrent": _LSTM,
}
"""Hidden layers by name; see docs/models.md."""
