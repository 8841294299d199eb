"""One description, two networks: :func:`ordinary` and :func:`spiking`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from snnrobust import checks, neurons
from snnrobust.encoders import (
    Delta,
    Encoder,
    Frames,
    Latency,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)
from snnrobust.layers import (
    BNTT,
    TDBN,
    TEBN,
    ActivationNoise,
    Concat,
    Dropout,
    LastOutput,
    MeanMembrane,
    OrdinaryActivationNoise,
    OrdinaryConcat,
    OrdinaryDropout,
    OrdinaryResidual,
    Readout,
    Residual,
    Sequential,
)
from snnrobust.models.architecture import (
    Architecture,
    Layers,
    Normalise,
    Shape,
    Twin,
    check_layers,
    check_shape,
    fit,
    modules,
)
from snnrobust.models.blocks import remembers
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.neurons import LIF, Neuron

__all__ = ["NORMS", "Site", "default_encoder", "ordinary", "spiking"]

_SPIKING = (Poisson, SignedPoisson, Population, Phase, Latency, Delta, LevelCrossing)
"""Encoders whose output is spikes, not values."""


@dataclass(frozen=True)
class Site:
    """Where a normalisation stands in a spiking network.

    Args:
        features: Channels.
        spatial: Whether they have height and width.
        time_steps: T.
        neuron: What fires after it.
        added: Whether its result is added to another branch first.
    """

    features: int
    spatial: bool
    time_steps: int
    neuron: Neuron
    added: bool

    @property
    def threshold(self) -> float:
        """The threshold of the neuron, or that at which it starts to learn one.

        Raises:
            ValueError: it has one per channel, even if all are equal: on the meta device that cannot be seen.
        """
        own: dict[str, Any] = getattr(self.neuron, "arguments", dict)()
        value = own.get("threshold", self.neuron.threshold)  # of a learnt one the start, known on the meta device too
        if isinstance(value, Tensor | Sequence):
            raise ValueError("norm TDBN scales by one threshold, but the neuron has one per channel: use norm='BNTT'")
        return float(value)


NORMS: dict[str, Callable[[Site], nn.Module] | None] = {
    "BNTT": lambda site: BNTT(site.features, site.time_steps),
    "TDBN": lambda site: TDBN(site.features, site.threshold, alpha=0.5**0.5 if site.added else 1.0),
    "TEBN": lambda site: TEBN(site.features, site.time_steps),
    "BatchNorm": lambda site: (nn.BatchNorm2d if site.spatial else nn.BatchNorm1d)(site.features),
    "none": None,
}
"""Normalisations of spiking networks by name; None: no normalisation, and biases instead."""


def ordinary(
    architecture: Architecture, shape: Sequence[int], classes: int, encoder: Encoder | None = None
) -> nn.Sequential | SpikingClassifier:
    """The ANN: ReLU activations and ``nn.BatchNorm``, as ``nn.Sequential``.

    A description with a :class:`~snnrobust.models.Recurrent` layer becomes a classifier of sequences without any spike: encoder,
    ``Sequential`` with ``nn.LSTM``, :class:`~snnrobust.layers.LastOutput`.

    Args:
        architecture: Hidden layers, or an entry of ``ARCHITECTURES``.
        shape: Of one sample, ``(C, H, W)`` or ``(F,)``.
        classes: Number of logits.
        encoder: What makes samples sequences, for descriptions with recurrent layers only; default ``Rows`` for images
            ``(C, H, W)`` and ``Frames`` for sequences ``(T, F)``.

    Raises:
        ValueError: a layer does not fit its input; where the image is too small, the error names the smallest that fits.
    """
    check_layers("architecture", architecture)
    shape = check_shape(shape)
    if not remembers(architecture):
        if encoder is not None:
            raise ValueError(f"an ordinary network without a Recurrent layer has no encoder: leave out {encoder!r:.80}")
        return nn.Sequential(*_layers(architecture, shape, classes, _Ordinary()))
    encoder = default_encoder(shape) if encoder is None else _check_encoder(encoder, "Rows(28)")
    layers = _layers(architecture, encoder.output_shape(shape), classes, _OrdinaryInTime())
    return SpikingClassifier(encoder, Sequential(*layers), LastOutput())


def spiking(
    architecture: Architecture,
    shape: Sequence[int],
    classes: int,
    encoder: Encoder,
    neuron: Neuron | None = None,
    norm: str = "BNTT",
    readout: Readout | None = None,
) -> SpikingClassifier:
    """Its spiking twin: the same synaptic layers, a spiking neuron for each ReLU, ``norm`` for each batch norm.

    Branches are added before the neuron, as they are before the ReLU. For an LSTM stands a linear layer whose neurons receive
    each other's spikes.

    Args:
        architecture, shape, classes: As in :func:`ordinary`.
        encoder: Decides T.
        neuron: Copied for each layer; default ``LIF()``.
        norm: One of ``NORMS``; with ``"none"`` nothing is normalised and the synaptic layers have biases.
        readout: Default ``MeanMembrane()``.

    Raises:
        ValueError: as :func:`ordinary`; the description begins with ``Normalise`` and the encoder emits spikes.
    """
    _check_encoder(encoder, "Direct(8)")
    if neuron is not None and not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a spiking neuron such as LIF(), got {neuron!r:.80}")
    check_layers("architecture", architecture)
    if architecture and isinstance(architecture[0], Normalise) and isinstance(encoder, _SPIKING):
        raise ValueError(
            f"Normalise follows the encoder, and so would normalise the spikes of {type(encoder).__name__}: "
            "leave it out and use SignedPoisson(time_steps, mean=, std=), which normalises what it encodes, or take Direct"
        )
    shape = check_shape(shape)
    twin = _Spiking(encoder.time_steps, LIF() if neuron is None else neuron, NORMS[checks.choice("norm", norm, NORMS)])
    layers = _layers(architecture, encoder.output_shape(shape), classes, twin)
    return SpikingClassifier(encoder, Sequential(*layers), MeanMembrane() if readout is None else readout)


class _Ordinary:
    bias = False

    def residual(self, body: Layers, shortcut: Layers | None) -> nn.Module:
        return OrdinaryResidual(nn.Sequential(*body), None if shortcut is None else nn.Sequential(*shortcut))

    def concat(self, body: Layers) -> nn.Module:
        return OrdinaryConcat(nn.Sequential(*body))

    def dropout(self, p: float) -> nn.Module:
        return OrdinaryDropout(p)

    def noise(self, amount: float, eval_amount: float | None) -> nn.Module:
        return OrdinaryActivationNoise(amount, eval_amount)

    def normalise(self, shape: Shape, added: bool = False) -> Layers:
        return [nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])]

    def activate(self) -> Layers:
        return [nn.ReLU()]

    def recurrent(self, inputs: int, features: int) -> Layers:
        return [nn.LSTM(inputs, features)]


class _InTime:
    """Modules that see ``[T, B, *]``."""

    def residual(self, body: Layers, shortcut: Layers | None) -> nn.Module:
        return Residual(Sequential(*body), None if shortcut is None else Sequential(*shortcut))

    def concat(self, body: Layers) -> nn.Module:
        return Concat(Sequential(*body))

    def dropout(self, p: float) -> nn.Module:
        return Dropout(p)

    def noise(self, amount: float, eval_amount: float | None) -> nn.Module:
        return ActivationNoise(amount, eval_amount)


class _OrdinaryInTime(_InTime, _Ordinary):
    """An ordinary network over sequences."""


@dataclass(frozen=True)
class _Spiking(_InTime):
    time_steps: int
    neuron: Neuron
    norm: Callable[[Site], nn.Module] | None

    @property
    def bias(self) -> bool:
        return self.norm is None

    def normalise(self, shape: Shape, added: bool = False) -> Layers:
        if self.norm is None:
            return []
        return [self.norm(Site(shape[0], len(shape) == 3, self.time_steps, self.neuron, added))]

    def activate(self) -> Layers:
        return [deepcopy(self.neuron)]

    def recurrent(self, inputs: int, features: int) -> Layers:
        linear = nn.Linear(inputs, features, bias=self.bias)
        return [linear, *self.normalise((features,)), neurons.Recurrent(features, self.neuron)]


def _layers(architecture: Architecture, shape: Sequence[int], classes: int, twin: Twin) -> Layers:
    out = fit(architecture, shape)
    checks.count("classes", classes, low=2)
    layers = modules(architecture, tuple(shape), twin)
    return [*layers, *([nn.Flatten()] if len(out) > 1 else []), nn.Linear(prod(out), classes)]


def _check_encoder(encoder: Encoder, example: str) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder must be an Encoder such as {example}, got {encoder!r:.80}")
    return encoder


def default_encoder(shape: Sequence[int]) -> Encoder:
    """What makes samples sequences for a network that remembers: ``Rows`` of images, ``Frames`` of sequences."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"a Recurrent layer needs images (C, H, W) or sequences (T, F), got shape {tuple(shape)}: give an encoder"
        )
    return Rows(shape[1]) if len(shape) == 3 else Frames(shape[0])
