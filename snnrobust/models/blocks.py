"""Blocks of a description: residual and dense ones, and layers that remember."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from snnrobust import checks
from snnrobust.models.architecture import (
    Activation,
    Architecture,
    Conv,
    Dense,
    Layer,
    Layers,
    Pool,
    Shape,
    Synaptic,
    Twin,
    check_layers,
    flatten,
    image,
    modules,
    outputs,
)

__all__ = ["DenseBlock", "Recurrent", "Residual", "Transition", "remembers"]


@dataclass(frozen=True)
class Residual(Layer):
    """``shortcut(x) + body(x)``, then the activation: that of the body's last layer, which ends in its normalisation.

    The shortcut is the identity; where the body changes the shape, a 1 x 1 convolution (a linear layer for flat shapes) of the
    body's stride and its normalisation.

    Args:
        body: Layers in order, of which the last has weights.

    Source: He et al. 2016, "Deep residual learning for image recognition" (shortcuts of option B).
    """

    body: Architecture

    def __post_init__(self) -> None:
        check_layers("Residual.body", self.body)
        object.__setattr__(self, "body", tuple(self.body))
        if not self.body or not isinstance(self.body[-1], Synaptic):
            raise ValueError(f"Residual.body must end in a Conv or Dense, whose result is added, got {self.body!r}")

    @property
    def stride(self) -> int:
        return prod(layer.stride for layer in self.body)

    def output(self, shape: Shape) -> Shape:
        out = outputs(self.body, shape)[-1]
        projected = self._projection(out).output(shape)
        if projected != out:
            raise ValueError(
                f"a Residual turns {shape} into {out}, but its shortcut of stride {self.stride} into {projected}: "
                "use convolutions that keep the size, and sizes that its pools divide"
            )
        return out

    def build(self, shape: Shape, twin: Twin) -> Layers:
        shapes = outputs(self.body, shape)
        last = self.body[-1]
        assert isinstance(last, Synaptic)  # as __post_init__ demands
        body = [m for layer, before in zip(self.body[:-1], shapes, strict=False) for m in layer.build(before, twin)]
        out = shapes[-1]
        body += [*last.synapse(shapes[-2], twin.bias), *twin.normalise(out, added=True)]
        shortcut = None
        if out != shape:
            shortcut = [*self._projection(out).synapse(shape, twin.bias), *twin.normalise(out, added=True)]
        return [twin.residual(body, shortcut), *twin.activate()]

    def _projection(self, out: Shape) -> Conv | Dense:
        return Conv(out[0], 1, self.stride) if len(out) == 3 else Dense(out[0])


@dataclass(frozen=True)
class DenseBlock(Layer):
    """Layers that each see all before them: x becomes [x, conv(activation(normalisation(x)))], ``layers`` times.

    Args:
        layers: How many.
        growth: Channels that each adds.

    Source: Huang et al. 2017, "Densely connected convolutional networks" (without bottleneck).
    """

    layers: int
    growth: int

    def __post_init__(self) -> None:
        checks.count("DenseBlock.layers", self.layers)
        checks.count("DenseBlock.growth", self.growth)

    def output(self, shape: Shape) -> Shape:
        channels, *sides = image(self, shape)
        return (channels + self.layers * self.growth, *sides)

    def build(self, shape: Shape, twin: Twin) -> Layers:
        channels, *sides = shape
        unit = (Activation(), Conv(self.growth, activated=False))
        widths = [channels + i * self.growth for i in range(self.layers)]
        return [twin.concat(modules(unit, (width, *sides), twin)) for width in widths]


@dataclass(frozen=True)
class Transition(Layer):
    """Between dense blocks: normalisation, activation, 1 x 1 convolution, average pooling by 2.

    Args:
        compression: Share of the channels that is kept.
    """

    compression: float = 1.0

    def __post_init__(self) -> None:
        checks.number("Transition.compression", self.compression, 0.0, 1.0, exclusive_low=True)

    @property
    def stride(self) -> int:
        return 2

    def _layers(self, shape: Shape) -> Architecture:
        channels = max(1, int(image(self, shape)[0] * self.compression))
        return (Activation(), Conv(channels, 1, activated=False), Pool(2))

    def output(self, shape: Shape) -> Shape:
        return outputs(self._layers(shape), shape)[-1]

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return modules(self._layers(shape), shape, twin)


@dataclass(frozen=True)
class Recurrent(Layer):
    """A layer that remembers: ``nn.LSTM``; in a spiking network a linear layer, normalisation and
    :class:`snnrobust.neurons.Recurrent`, neurons that receive each other's spikes."""

    features: int

    def __post_init__(self) -> None:
        checks.count("Recurrent.features", self.features)

    def output(self, shape: Shape) -> Shape:
        return (self.features,)

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [*flatten(shape), *twin.recurrent(prod(shape), self.features)]


def remembers(architecture: Architecture) -> bool:
    """Whether ``architecture`` holds a :class:`Recurrent` layer."""
    inside = (layer.body if isinstance(layer, Residual) else () for layer in architecture)
    return any(isinstance(layer, Recurrent) for layer in architecture) or any(map(remembers, inside))
