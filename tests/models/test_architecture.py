"""One description, two networks with the same synaptic layers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import BNTT, MeanMembrane, SpikeCount
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import IF, LIF

SHAPE = (1, 8, 8)


def _synapses(model):
    return [(type(m), tuple(m.weight.shape)) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13)])
def test_twins_have_the_same_synapses(name, shape):
    ann = ordinary(ARCHITECTURES[name], shape, 10)
    snn = spiking(ARCHITECTURES[name], shape, 10, Direct(3))
    assert _synapses(ann) == _synapses(snn)
    x = torch.rand(2, *shape)
    assert ann(x).shape == snn(x).shape == (2, 10)


def test_shapes_by_hand():
    """8 x 8, pooled to 4 x 4, pooled to 2 x 2."""
    synapses = _synapses(ordinary(ARCHITECTURES["conv-small"], SHAPE, 10))
    assert synapses == [(nn.Conv2d, (16, 1, 3, 3)), (nn.Conv2d, (32, 16, 3, 3)), (nn.Linear, (10, 32 * 2 * 2))]
    assert _synapses(ordinary([Conv(4, 5), Dense(7)], (2, 3, 5), 2)) == [
        (nn.Conv2d, (4, 2, 5, 5)),
        (nn.Linear, (7, 4 * 3 * 5)),
        (nn.Linear, (2, 7)),
    ]
    assert _synapses(ordinary([Dense(7)], (6,), 2)) == [(nn.Linear, (7, 6)), (nn.Linear, (2, 7))]
    assert _synapses(ordinary([], (6,), 2)) == [(nn.Linear, (2, 6))]


def test_layers_by_hand():
    architecture = (Conv(4), Pool(), Dense(5))
    kinds = [type(m) for m in ordinary(architecture, SHAPE, 3)]
    assert kinds == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d),
        *(nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU),
        nn.Linear,
    ]
    twin = {nn.BatchNorm2d: BNTT, nn.BatchNorm1d: BNTT, nn.ReLU: LIF}
    network = spiking(architecture, SHAPE, 3, Poisson(6)).network
    assert [type(m) for m in network] == [twin.get(kind, kind) for kind in kinds]
    assert {m.time_steps for m in network if isinstance(m, BNTT)} == {6}
    without = spiking(architecture, SHAPE, 3, Poisson(6), bntt=False).network
    assert [type(m) for m in without] == [twin.get(kind, kind) for kind in kinds if twin.get(kind) is not BNTT]


def test_biases():
    """A layer before a normalisation has none: the normalisation would cancel it."""

    def biases(model):
        return [m.bias is not None for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    architecture = (Conv(4), Dense(5))
    assert biases(ordinary(architecture, SHAPE, 3)) == [False, False, True]
    assert biases(spiking(architecture, SHAPE, 3, Direct(2))) == [False, False, True]
    assert biases(spiking(architecture, SHAPE, 3, Direct(2), bntt=False)) == [True, True, True]


def test_neuron_is_copied_and_readout_kept():
    neuron, readout, encoder = IF(threshold=0.5), SpikeCount(), Direct(2)
    model = spiking((Conv(4), Dense(5)), SHAPE, 3, encoder, neuron, readout=readout)
    neurons = [m for m in model.modules() if isinstance(m, LIF)]
    assert [type(n) for n in neurons] == [IF, IF]
    assert [n.threshold for n in neurons] == [0.5, 0.5]
    assert len({id(n) for n in [neuron, *neurons]}) == 3
    assert model.readout is readout
    assert model.encoder is encoder
    assert isinstance(spiking((), SHAPE, 3, encoder).readout, MeanMembrane)


@pytest.mark.parametrize(
    ("architecture", "shape", "classes", "error", "message"),
    [
        ((Conv(4),), (64,), 3, ValueError, "Conv(channels=4, kernel=3) needs an input of shape (C, H, W), but there it is (64,)"),
        ((Conv(4),), (8, 8), 3, ValueError, "Conv(channels=4, kernel=3) needs an input of shape (C, H, W)"),
        ((Dense(4), Pool()), SHAPE, 3, ValueError, "Pool(size=2) needs an input of shape (C, H, W), but there it is (4,)"),
        ((Pool(),) * 4, SHAPE, 3, ValueError, "Pool(size=2) is larger than its input of 1 x 1: use fewer pools"),
        ((), (), 3, ValueError, "shape must be that of one sample, (C, H, W) or (F,), got ()"),
        ((), (1, 0, 8), 3, ValueError, "shape must be at least 1, got 0"),
        ((), (1, 8.0, 8), 3, TypeError, "shape must be an integer, got 8.0"),
        ((), SHAPE, 1, ValueError, "classes must be at least 2, got 1"),
        ("conv-small", SHAPE, 3, TypeError, "architecture must hold Conv, Pool and Dense, got 'c'"),
        ((Conv,), SHAPE, 3, TypeError, "architecture must hold Conv, Pool and Dense, got <class"),
    ],
)  # fmt: skip
def test_bad_descriptions(architecture, shape, classes, error, message):
    for make in (ordinary, lambda *arguments: spiking(*arguments, Direct(2))):
        with pytest.raises(error, match="^" + re.escape(message)):
            make(architecture, shape, classes)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv(0), ValueError, "Conv.channels must be at least 1, got 0"),
        (lambda: Conv(4, 2), ValueError, "Conv.kernel must be odd, got 2"),
        (lambda: Conv(4, 0), ValueError, "Conv.kernel must be at least 1, got 0"),
        (lambda: Conv("4"), TypeError, "Conv.channels must be an integer, got '4'"),
        (lambda: Pool(0), ValueError, "Pool.size must be at least 1, got 0"),
        (lambda: Dense(0), ValueError, "Dense.features must be at least 1, got 0"),
    ],
)
def test_bad_layers(make, error, message):
    with pytest.raises(error, match=message):
        make()
