"""From an ordinary network without batch normalisation to a spiking one: activation scales, thresholds, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust.data import Batch
from snnrobust.draws import derive, draws
from snnrobust.encoders import Encoder
from snnrobust.layers import QCFS, Dropout, MeanOutput, OrdinaryResidual, Residual, Sequential
from snnrobust.learning_rules.chain import SYNAPTIC
from snnrobust.learning_rules.conversion_ann import ACTIVATIONS, DROPOUTS, flat
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF
from snnrobust.neurons.neuron import Neuron

__all__ = ["activation_scales", "activations", "balanced_scales", "neurons", "spiking_network"]

MakeNeuron = Callable[[int, float], Neuron]
"""The neuron of the i-th activation, with a threshold."""


def activations(ann: nn.Module) -> list[nn.Module]:
    """Of a folded network, in the order of :func:`neurons`."""
    return [m for m in ann.modules() if type(m) in ACTIVATIONS]


def neurons(network: nn.Module) -> list[tuple[str, Neuron]]:
    """Of a spiking network, with their names."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, Neuron)]


def spiking_network(ann: nn.Sequential, scales: Sequence[float], neuron: MakeNeuron) -> Sequential:
    r"""The folded ``ann`` with spikes: a rate of 1 stands for the activation :math:`\lambda_l` of its layer.

    Weights stay as they are. What a layer gets is its input in the ordinary network divided by :math:`\lambda_{l-1}`, so

    .. math:: \theta_l = \lambda_l / \lambda_{l-1}, \quad b'_l = b_l / \lambda_{l-1}

    The last weights of a residual branch are multiplied by the scale inside it over that of the block's input, so that both
    branches are in the same units; those of the classifier by the scale before it, so that the mean output is the logits.

    Args:
        ann: As :func:`~snnrobust.learning_rules.conversion_ann.folded` gives it.
        scales: :math:`\lambda_l` of each activation.
        neuron: Makes the neurons.
    """
    numbered = iter(enumerate(scales))
    parts, scale = _convert(ann, 1.0, numbered, neuron)
    _multiply(parts, scale)
    return Sequential(*parts)


def _convert(
    container: nn.Module, scale: float, numbered: Iterator[tuple[int, float]], neuron: MakeNeuron
) -> tuple[list[nn.Module], float]:
    """The parts, and the scale of what they give."""
    made: list[nn.Module] = []
    for _, part in flat(container):
        if isinstance(part, SYNAPTIC):
            made.append(deepcopy(part))
            if part.bias is not None:
                made[-1].bias = nn.Parameter(part.bias.detach() / scale)
        elif isinstance(part, ACTIVATIONS):
            index, own = next(numbered)
            made.append(neuron(index, own / scale))
            scale = own
        elif isinstance(part, OrdinaryResidual):
            branches = []
            for branch in (part.body, part.shortcut):
                inside, inner = ([], scale) if branch is None else _convert(branch, scale, numbered, neuron)
                _multiply(inside, inner / scale)
                branches.append(None if branch is None else Sequential(*inside))
            assert branches[0] is not None
            made.append(Residual(*branches))  # type: ignore[arg-type]
        elif isinstance(part, DROPOUTS):
            made.append(Dropout(part.p))
        else:
            made.append(deepcopy(part))
    return made, scale


@torch.no_grad()
def _multiply(parts: list[nn.Module], factor: float) -> None:
    """The last weights by ``factor``."""
    synapse = next((p for p in reversed(parts) if isinstance(p, SYNAPTIC)), None)
    if synapse is None or factor == 1.0:
        return
    synapse.weight.mul_(factor)
    if synapse.bias is not None:
        synapse.bias.mul_(factor)


@torch.no_grad()
def activation_scales(ann: nn.Sequential, x: Sequence[Tensor], percentile: float) -> list[float]:
    r""":math:`\lambda_l` of each activation of the folded ``ann``: that percentile of all its values on the batches ``x``.

    100 is the largest; between two values it is interpolated. A QCFS has its own, its threshold.

    Raises:
        ValueError: a layer has none that is positive.

    Source: the largest, Diehl et al. 2015; a percentile, Rueckauer et al. 2017.
    """
    layers, samples = activations(ann), sum(map(len, x))
    largest: list[Tensor] = [torch.empty(0)] * len(layers)
    position = [0.0] * len(layers)  # of the percentile, between two values

    def keep(index: int, values: Tensor) -> None:
        flat, n = values.detach().flatten(), samples * values[0].numel()
        k = n - math.floor((n - 1) * percentile / 100)
        found = torch.cat((largest[index].to(flat), flat))
        largest[index] = found.topk(min(k, len(found))).values
        position[index] = (n - 1) * percentile / 100 % 1

    handles = [m.register_forward_hook(lambda _, __, y, i=i: keep(i, y)) for i, m in enumerate(layers)]
    try:
        for part in x:
            ann(part)
    finally:
        for handle in handles:
            handle.remove()
    scales = []
    for index, (layer, top) in enumerate(zip(layers, largest, strict=True)):
        ends = top[-2:].double().tolist()  # the two values around the percentile, the larger first
        scale = ends[-1] + position[index] * (ends[0] - ends[-1])
        if isinstance(layer, QCFS):
            scale = float(layer.threshold)
        elif scale <= 0.0 < float(top[0]):
            raise ValueError(
                f"percentile {percentile:g} of activation {index + 1} of {len(layers)} is 0: raise it, or use method='max'"
            )
        if not (float(top[0]) > 0.0 and math.isfinite(scale)):
            raise ValueError(_dead(index, len(layers), float(top[0])))
        scales.append(scale)
    return scales


def _dead(index: int, layers: int, largest: float) -> str:
    return (
        f"activation {index + 1} of {layers} is at most {largest:g} on the calibration data, so that no threshold can be found: "
        "calibrate on more samples, or train the network again (a lower lr, batch normalisation)"
    )


class _Reached(Exception):  # noqa: N818 (no error)
    pass


@torch.no_grad()
def balanced_scales(ann: nn.Sequential, encoder: Encoder, data: Sequence[Batch], seed: int) -> list[float]:
    r"""Threshold balancing: layer by layer, the threshold is the largest input of the layer's neurons, over all samples and time
    steps, when the layers before it spike. A QCFS has its own, which it has learnt.

    Source: Sengupta et al. 2019, "Going deeper in spiking neural networks: VGG and residual architectures".
    """
    layers, scales = activations(ann), []  # type: list[nn.Module], list[float]
    for index in range(len(layers)):
        waiting = [1.0] * (len(layers) - index)
        network = spiking_network(ann, [*scales, *waiting], lambda _, threshold: IF(threshold))
        model = SpikingClassifier(encoder, network, MeanOutput()).eval()
        _, neuron = neurons(network)[index]
        largest = max(_largest_input(model, neuron, batch, derive(seed, "balance", i)) for i, batch in enumerate(data))
        if not 0.0 < largest < math.inf:
            raise ValueError(_dead(index, len(layers), largest))
        assert isinstance(neuron.threshold, float)
        layer = layers[index]
        learnt = float(layer.threshold) if isinstance(layer, QCFS) else None
        scales.append(learnt or largest / neuron.threshold)  # its threshold is 1 over the scale before it
    return scales


def _largest_input(model: SpikingClassifier, neuron: Neuron, batch: Batch, key: int) -> float:
    found = -math.inf

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal found
        found = float(given[0].max())
        raise _Reached

    with _hook(neuron, look), draws(model, key, batch.sample_ids):
        try:
            model(batch.x)
        except _Reached:
            return found
    return found


@contextmanager
def _hook(module: nn.Module, look: Callable[[nn.Module, tuple[Tensor, ...]], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
