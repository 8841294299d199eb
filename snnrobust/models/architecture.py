"""The language in which a network is described once, to be built as an ordinary network and as a spiking one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NoReturn, Protocol

from torch import nn

from snnrobust import checks, layers

__all__ = [
    "POOLS", "Activation", "Architecture", "Conv", "Dense", "Dropout", "GlobalPool", "Layer", "Layers", "Normalise", "Pool",
    "Shape", "Synaptic", "Twin", "check_layers", "check_shape", "fit", "flatten", "image", "modules", "outputs", "smallest_image",
]  # fmt: skip

Shape = tuple[int, ...]
Layers = list[nn.Module]
POOLS: dict[str, type[nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}
_MODULES = {"Normalise": "layers.Normalise", "Recurrent": "neurons.Recurrent", "Residual": "layers.Residual"}
"""Modules that have the name of a description."""
_LARGEST = 1024  # where the search for an image that is large enough ends


class Twin(Protocol):
    """What differs between the two networks of one description."""

    @property
    def bias(self) -> bool:
        """Whether hidden synaptic layers have one: not where a normalisation would cancel it."""

    def residual(self, body: Layers, shortcut: Layers | None) -> nn.Module: ...
    def concat(self, body: Layers) -> nn.Module: ...
    def dropout(self, p: float) -> nn.Module: ...
    def noise(self, amount: float, eval_amount: float | None) -> nn.Module: ...
    def normalise(self, shape: Shape, added: bool = False) -> Layers:
        """For an input of ``shape``, whose result is ``added`` to another branch or not."""

    def activate(self) -> Layers: ...
    def recurrent(self, inputs: int, features: int) -> Layers: ...


class Layer:
    """One entry of a description: a frozen dataclass."""

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: a description is not the network."""
        kind = type(self).__name__
        module = _MODULES.get(kind, "a module of torch.nn or snnrobust.layers")
        raise TypeError(f"models.{kind} describes a layer and computes nothing: call {module}, or build with spiking()")

    @property
    def stride(self) -> int:
        """By how much it shrinks the image."""
        return 1

    def output(self, shape: Shape) -> Shape:
        """The shape of one sample after it.

        Raises:
            ValueError: an input of ``shape`` does not fit.
        """
        raise NotImplementedError

    def build(self, shape: Shape, twin: Twin) -> Layers:
        """The modules of one of the two networks, for an input of ``shape`` that fits."""
        raise NotImplementedError


Architecture = Sequence[Layer]
"""Hidden layers in order; a linear classifier follows them."""


class Synaptic(Layer):
    """Weights, normalisation, activation."""

    def synapse(self, shape: Shape, bias: bool) -> Layers:
        """The weights alone."""
        raise NotImplementedError

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [*self.synapse(shape, twin.bias), *twin.normalise(self.output(shape)), *twin.activate()]


@dataclass(frozen=True)
class Conv(Synaptic):
    """Convolution, normalisation, activation.

    Args:
        channels: Of the output.
        kernel, stride: Its size and step.
        padding: None keeps the size (at stride 1), which takes an odd kernel.
        activated: False leaves the convolution alone.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    activated: bool = True

    def __post_init__(self) -> None:
        checks.count("Conv.channels", self.channels)
        checks.count("Conv.stride", self.stride)
        checks.boolean("Conv.activated", self.activated)
        if self.padding is not None:
            checks.count("Conv.padding", self.padding, low=0)
        if checks.count("Conv.kernel", self.kernel) % 2 == 0 and self.padding is None:
            raise ValueError(
                f"Conv.kernel must be odd, got {self.kernel}: an even one does not keep the size, give a padding"
            )

    @property
    def _padding(self) -> int:
        return self.kernel // 2 if self.padding is None else self.padding

    def output(self, shape: Shape) -> Shape:
        _, *sides = image(self, shape)
        padded = [side + 2 * self._padding for side in sides]
        if min(padded) < self.kernel:
            raise _too_small(self, sides)
        return (self.channels, *((side - self.kernel) // self.stride + 1 for side in padded))

    def synapse(self, shape: Shape, bias: bool) -> Layers:
        return [nn.Conv2d(shape[0], self.channels, self.kernel, self.stride, self._padding, bias=bias)]

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return super().build(shape, twin) if self.activated else self.synapse(shape, twin.bias)


@dataclass(frozen=True)
class Dense(Synaptic):
    """Fully connected layer, normalisation, activation."""

    features: int

    def __post_init__(self) -> None:
        checks.count("Dense.features", self.features)

    def output(self, shape: Shape) -> Shape:
        return (self.features,)

    def synapse(self, shape: Shape, bias: bool) -> Layers:
        return [*flatten(shape), nn.Linear(prod(shape), self.features, bias=bias)]


@dataclass(frozen=True)
class Activation(Layer):
    """Normalisation and activation alone, for what is activated before its weights."""

    def output(self, shape: Shape) -> Shape:
        return shape

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [*twin.normalise(shape), *twin.activate()]


@dataclass(frozen=True)
class Pool(Layer):
    """Pooling, ``"average"`` or ``"max"`` (over spikes: their disjunction)."""

    size: int = 2
    kind: Literal["average", "max"] = "average"

    def __post_init__(self) -> None:
        checks.count("Pool.size", self.size)
        checks.choice("Pool.kind", self.kind, POOLS)

    @property
    def stride(self) -> int:
        return self.size

    def output(self, shape: Shape) -> Shape:
        channels, *sides = image(self, shape)
        if min(sides) < self.size:
            raise _too_small(self, sides)
        return (channels, *(side // self.size for side in sides))

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [POOLS[self.kind](self.size)]


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Average over the whole image, ``(C, H, W)`` to ``(C, 1, 1)``."""

    def output(self, shape: Shape) -> Shape:
        return (image(self, shape)[0], 1, 1)

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [nn.AdaptiveAvgPool2d(1)]


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout with probability ``p`` while training; in a spiking network one mask for all time steps of a sample."""

    p: float = 0.5

    def __post_init__(self) -> None:
        checks.number("Dropout.p", self.p, 0.0, 1.0)

    def output(self, shape: Shape) -> Shape:
        return shape

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [twin.dropout(self.p)]


@dataclass(frozen=True)
class Normalise(Layer):
    """Input normalisation, :class:`snnrobust.layers.Normalise`: the first layer, so that inputs stay in [0, 1].

    Args:
        mean, std: A number, or one for each channel.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        checked = layers.Normalise(self.mean, self.std)
        object.__setattr__(self, "mean", checked.mean)
        object.__setattr__(self, "std", checked.std)

    def output(self, shape: Shape) -> Shape:
        if layers.Normalise(self.mean, self.std).features not in (None, shape[0]):
            raise ValueError(
                f"{self} has other channels than its input of shape {shape}: give one number for all, or one each"
            )
        return shape

    def build(self, shape: Shape, twin: Twin) -> Layers:
        return [layers.Normalise(self.mean, self.std)]


def check_layers(name: str, architecture: Architecture) -> None:
    """``architecture`` holds layers of a description and nothing else."""
    if not isinstance(architecture, Sequence):  # a generator would be empty when it is built
        raise TypeError(f"{name} must be a sequence of layers such as Conv, Pool and Dense, got {architecture!r:.80}")
    for layer in architecture:
        if not isinstance(layer, Layer):
            described = isinstance(layer, nn.Module) and type(layer).__name__ in _MODULES
            remedy = f"models.{type(layer).__name__} describes one" if described else "ARCHITECTURES has named ones"
            raise TypeError(f"{name} must hold layers such as Conv, Pool and Dense, got {layer!r:.80}: {remedy}")


def outputs(architecture: Architecture, shape: Shape) -> list[Shape]:
    """The shapes of one sample before the first layer and after each."""
    shapes = [shape]
    for layer in architecture:
        shapes.append(layer.output(shapes[-1]))
    return shapes


def modules(architecture: Architecture, shape: Shape, twin: Twin) -> Layers:
    """All layers of one of the two networks, for an input of ``shape`` that fits."""
    shapes = outputs(architecture, shape)
    return [m for layer, before in zip(architecture, shapes, strict=False) for m in layer.build(before, twin)]


def fit(architecture: Architecture, shape: Sequence[int]) -> Shape:
    """The shape of one sample after ``architecture``.

    Raises:
        TypeError: it holds something else than layers.
        ValueError: a layer does not fit its input; where the image is too small, the error names the smallest that fits.
    """
    check_layers("architecture", architecture)
    shape = check_shape(shape)
    try:
        return outputs(architecture, shape)[-1]
    except _TooSmallError as error:
        raise ValueError(f"{error}: {_remedy(architecture, shape[0])}") from error


def smallest_image(architecture: Architecture, channels: int = 1) -> int:
    """The side of the smallest square image with ``channels`` channels that ``architecture`` takes.

    Raises:
        ValueError: there is none of up to 1024 x 1024.
    """
    for side in range(1, _LARGEST + 1):
        try:
            outputs(architecture, (channels, side, side))
        except _TooSmallError:
            continue
        return side
    raise ValueError(f"no image of up to {_LARGEST} x {_LARGEST} is large enough: use fewer pools")


def check_shape(shape: Sequence[int]) -> Shape:
    """The shape of one sample."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be that of one sample, (C, H, W) or (F,), got {shape!r:.80}")
    if not shape:
        raise ValueError("shape must be that of one sample, (C, H, W) or (F,), got ()")
    return tuple(checks.count("shape", n) for n in shape)


class _TooSmallError(ValueError):
    pass


def _remedy(architecture: Architecture, channels: int) -> str:
    try:
        side = smallest_image(architecture, channels)
    except ValueError as error:
        return str(error)
    return f"the smallest square image for this architecture is {side} x {side}"


def _too_small(layer: Layer, sides: Sequence[int]) -> _TooSmallError:
    return _TooSmallError(f"{layer} is larger than its input of {' x '.join(map(str, sides))}")


def image(layer: Layer, shape: Shape) -> Shape:
    """``shape`` as that of an image, which ``layer`` needs."""
    if len(shape) != 3:
        raise ValueError(f"{layer} needs an input of shape (C, H, W), but there it is {shape}")
    return shape


def flatten(shape: Shape) -> Layers:
    """What makes a sample of ``shape`` flat."""
    return [nn.Flatten()] if len(shape) > 1 else []
