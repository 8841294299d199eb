"""One description of a network, two networks: ordinary and spiking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod

from torch import nn

from snnrobust import checks
from snnrobust.encoders import Encoder
from snnrobust.layers import BNTT, MeanMembrane, Readout, Sequential
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.neurons import LIF

__all__ = ["ARCHITECTURES", "Architecture", "Conv", "Dense", "Pool", "ordinary", "spiking"]


@dataclass(frozen=True)
class Conv:
    """Convolution that keeps the size (odd kernel, stride 1), normalisation, activation."""

    channels: int
    kernel: int = 3

    def __post_init__(self) -> None:
        checks.count("Conv.channels", self.channels)
        if checks.count("Conv.kernel", self.kernel) % 2 == 0:
            raise ValueError(f"Conv.kernel must be odd, got {self.kernel}: an even one does not keep the size")


@dataclass(frozen=True)
class Pool:
    """Average pooling."""

    size: int = 2

    def __post_init__(self) -> None:
        checks.count("Pool.size", self.size)


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, normalisation, activation."""

    features: int

    def __post_init__(self) -> None:
        checks.count("Dense.features", self.features)


Architecture = Sequence[Conv | Pool | Dense]
"""Hidden layers in order; a linear classifier follows them."""

ARCHITECTURES: dict[str, Architecture] = {
    "mlp": (Dense(256), Dense(256)),
    "conv-small": (Conv(16), Pool(), Conv(32), Pool()),
    "conv-medium": (Conv(32), Pool(), Conv(64), Pool(), Dense(128)),
}


def ordinary(architecture: Architecture, shape: Sequence[int], classes: int) -> nn.Sequential:
    """The ANN: ReLU activations and ``nn.BatchNorm``, as ``nn.Sequential``.

    Args:
        architecture: Hidden layers, or an entry of ``ARCHITECTURES``.
        shape: Of one sample, ``(C, H, W)`` or ``(F,)``.
        classes: Number of logits.
    """

    def activation(features: int, spatial: bool) -> list[nn.Module]:
        return [nn.BatchNorm2d(features) if spatial else nn.BatchNorm1d(features), nn.ReLU()]

    return nn.Sequential(*_layers(architecture, shape, classes, activation))


def spiking(
    architecture: Architecture,
    shape: Sequence[int],
    classes: int,
    encoder: Encoder,
    neuron: LIF | None = None,
    bntt: bool = True,
    readout: Readout | None = None,
) -> SpikingClassifier:
    """Its spiking twin: the same synaptic layers, a spiking neuron for each ReLU, BNTT for each batch norm.

    Args:
        architecture, shape, classes: As in :func:`ordinary`.
        encoder: Decides T.
        neuron: Copied for each layer; default ``LIF()``.
        bntt: Without it nothing is normalised and the synaptic layers have biases.
        readout: Default ``MeanMembrane()``.
    """

    def activation(features: int, spatial: bool) -> list[nn.Module]:
        norm = [BNTT(features, encoder.time_steps)] if bntt else []
        return [*norm, deepcopy(neuron) if neuron is not None else LIF()]

    layers = _layers(architecture, shape, classes, activation, hidden_bias=not bntt)
    return SpikingClassifier(encoder, Sequential(*layers), MeanMembrane() if readout is None else readout)


def _layers(
    architecture: Architecture,
    shape: Sequence[int],
    classes: int,
    activation: Callable[[int, bool], list[nn.Module]],
    hidden_bias: bool = False,
) -> list[nn.Module]:
    shape = tuple(checks.count("shape", n) for n in shape)
    if not shape:
        raise ValueError("shape must be that of one sample, (C, H, W) or (F,), got ()")
    checks.count("classes", classes, low=2)
    layers: list[nn.Module] = []
    for layer in architecture:
        if not isinstance(layer, Conv | Pool | Dense):
            raise TypeError(f"architecture must hold Conv, Pool and Dense, got {layer!r}: ARCHITECTURES has named ones")
        if isinstance(layer, Dense):
            if len(shape) > 1:
                layers.append(nn.Flatten())
                shape = (prod(shape),)
            layers += [nn.Linear(shape[0], layer.features, bias=hidden_bias), *activation(layer.features, False)]
            shape = (layer.features,)
        elif len(shape) != 3:
            raise ValueError(f"{layer} needs an input of shape (C, H, W), but there it is {shape}")
        elif isinstance(layer, Conv):
            c, h, w = shape
            layers.append(nn.Conv2d(c, layer.channels, layer.kernel, padding=layer.kernel // 2, bias=hidden_bias))
            layers += activation(layer.channels, True)
            shape = (layer.channels, h, w)
        else:
            c, h, w = shape
            if min(h, w) < layer.size:
                raise ValueError(f"{layer} is larger than its input of {h} x {w}: use fewer pools or a larger image")
            layers.append(nn.AvgPool2d(layer.size))
            shape = (c, h // layer.size, w // layer.size)
    if len(shape) > 1:
        layers.append(nn.Flatten())
    return [*layers, nn.Linear(prod(shape), classes)]
