"""EnResNet: ensembles of pre-activation residual networks with noise after each block, ordinary and spiking."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from snnrobust import checks
from snnrobust.encoders import Encoder
from snnrobust.layers import Readout
from snnrobust.models.architecture import (
    Activation,
    Architecture,
    Conv,
    GlobalPool,
    Layer,
    Layers,
    Shape,
    Twin,
    modules,
    outputs,
)
from snnrobust.models.ensemble import Ensemble
from snnrobust.models.twins import ordinary, spiking
from snnrobust.neurons import Neuron

__all__ = ["PreResidual", "en_resnet", "pre_resnet"]


@dataclass(frozen=True)
class PreResidual(Layer):
    r"""A residual block that activates before it weighs, and noise on its sum.

    .. math:: y = x + \text{conv}_2(\phi(\text{norm}(\text{conv}_1(\phi(\text{norm}(x)))))), \quad
        \text{out} = y + a \, \sigma(y) \, \xi

    Where the shape changes, a 1 x 1 convolution of x stands for x. In a spiking network :math:`\phi` are its neurons, and what
    flows along the shortcuts are not spikes but sums of currents.

    Args:
        channels: Of the output.
        stride: Of the first convolution.
        noise: :math:`a` while training; see :class:`~snnrobust.layers.ActivationNoise`. 0 leaves the layer out.
        eval_noise: In eval mode; None is ``noise``.

    Source: He et al. 2016, "Identity mappings in deep residual networks".
    """

    channels: int
    stride: int = 1
    noise: float = 0.0
    eval_noise: float | None = None

    def __post_init__(self) -> None:
        checks.count("PreResidual.channels", self.channels)
        checks.count("PreResidual.stride", self.stride)
        checks.number("PreResidual.noise", self.noise, 0.0)
        if self.eval_noise is not None:
            checks.number("PreResidual.eval_noise", self.eval_noise, 0.0)

    @property
    def _body(self) -> Architecture:
        first = Conv(self.channels, stride=self.stride, activated=False)
        return (Activation(), first, Activation(), Conv(self.channels, activated=False))

    @property
    def _shortcut(self) -> Architecture:
        return (Conv(self.channels, 1, self.stride, activated=False),)

    def output(self, shape: Shape) -> Shape:
        return outputs(self._body, shape)[-1]

    def build(self, shape: Shape, twin: Twin) -> Layers:
        projected = self.output(shape) != shape
        shortcut = modules(self._shortcut, shape, twin) if projected else None
        block = twin.residual(modules(self._body, shape, twin), shortcut)
        noisy = self.noise > 0 or bool(self.eval_noise)
        return [block, *([twin.noise(self.noise, self.eval_noise)] if noisy else [])]


def pre_resnet(
    blocks: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    noise: float = 0.0,
    eval_noise: float | None = None,
) -> Architecture:
    """A pre-activation residual network for small images: a 3 x 3 stem, ``blocks`` blocks for each width, global pooling.

    Each width after the first halves the image. Three blocks of (16, 32, 64) have 20 layers with weights, as in He et al. 2016.
    """
    checks.count("blocks", blocks)
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not widths:
        raise TypeError(f"widths must be channels of each stage such as (16, 32, 64), got {widths!r:.80}")
    layers = [
        PreResidual(width, 2 if stage and not block else 1, noise, eval_noise)
        for stage, width in enumerate(widths)
        for block in range(blocks)
    ]
    return (Conv(widths[0], activated=False), *layers, Activation(), GlobalPool())


def en_resnet(
    shape: Sequence[int],
    classes: int,
    *,
    members: int = 3,
    blocks: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    noise: float = 0.1,
    eval_noise: float | None = None,
    encoder: Encoder | None = None,
    neuron: Neuron | None = None,
    norm: str = "BNTT",
    readout: Readout | None = None,
) -> Ensemble:
    """An ensemble of :func:`pre_resnet`, each with weights of its own: ordinary networks or, with an ``encoder``, spiking ones.

    Args:
        shape: Of one sample, ``(C, H, W)``.
        classes: Number of logits.
        members: E, whose logits are averaged.
        blocks, widths: Of each member; the defaults are those of the source.
        noise: While training. The published networks have 0.1, and take the spread over the whole batch, not a sample.
        eval_noise: In eval mode; None is ``noise``. Whether the published figures have noise at inference is not verified.
        encoder: Decides T of spiking members.
        neuron, norm, readout: As in :func:`~snnrobust.models.spiking`, with an encoder only.

    Source: Wang et al. 2019, "ResNets ensemble via the Feynman-Kac formalism to improve natural and robust accuracies".
    """
    checks.count("members", members)
    architecture = pre_resnet(blocks, widths, noise, eval_noise)
    if encoder is None:
        if neuron is not None or readout is not None or norm != "BNTT":
            raise ValueError("neuron, norm and readout are of spiking networks: give an encoder, or leave them out")
        return Ensemble(*(ordinary(architecture, shape, classes) for _ in range(members)))
    own = [(deepcopy(encoder), deepcopy(readout)) for _ in range(members)]  # draws are keyed by the path of a module
    return Ensemble(*(spiking(architecture, shape, classes, e, neuron, norm, r) for e, r in own))
