"""The description language: what each layer makes of a shape, and what is not a description."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust import layers, neurons
from snnrobust.encoders import Direct
from snnrobust.layers import OrdinaryDropout
from snnrobust.models import (
    Activation,
    Conv,
    Dense,
    Dropout,
    GlobalPool,
    Normalise,
    Pool,
    Recurrent,
    Residual,
    Transition,
    ordinary,
    smallest_image,
    spiking,
)
from snnrobust.models.architecture import fit

SHAPE = (1, 8, 8)


def _synapses(model):
    return [(type(m), tuple(m.weight.shape)) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def test_shapes_by_hand():
    """8 x 8, pooled to 4 x 4, pooled to 2 x 2."""
    synapses = _synapses(ordinary([Conv(16), Pool(), Conv(32), Pool()], SHAPE, 10))
    assert synapses == [(nn.Conv2d, (16, 1, 3, 3)), (nn.Conv2d, (32, 16, 3, 3)), (nn.Linear, (10, 32 * 2 * 2))]
    assert _synapses(ordinary([Conv(4, 5), Dense(7)], (2, 3, 5), 2)) == [
        (nn.Conv2d, (4, 2, 5, 5)),
        (nn.Linear, (7, 4 * 3 * 5)),
        (nn.Linear, (2, 7)),
    ]
    assert _synapses(ordinary([Dense(7)], (6,), 2)) == [(nn.Linear, (7, 6)), (nn.Linear, (2, 7))]
    assert _synapses(ordinary([], (6,), 2)) == [(nn.Linear, (2, 6))]
    assert fit([Conv(4, 5, 2, 0), Pool(2, "max")], (3, 12, 9)) == (4, 2, 1)
    assert fit([Conv(4, 2, padding=1)], (3, 4, 5)) == (4, 5, 6)
    assert fit([Conv(4), GlobalPool()], (3, 4, 5)) == (4, 1, 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2) | st.none(),
    pool=st.integers(1, 3),
    kind=st.sampled_from(["average", "max"]),
)
def test_predicted_shapes_are_those_of_torch(side, kernel, stride, padding, pool, kind):
    if padding is None and kernel % 2 == 0:
        kernel += 1
    layers = [Conv(3, kernel, stride, padding), Pool(pool, kind)]
    padded = [n + 2 * (kernel // 2 if padding is None else padding) for n in side]
    fits = min(padded) >= kernel and min((n - kernel) // stride + 1 for n in padded) >= pool
    if not fits:
        with pytest.raises(ValueError, match="is larger than its input"):
            fit(layers, (2, *side))
        return
    model = ordinary(layers, (2, *side), 2).eval()
    assert fit(layers, (2, *side)) == tuple(model[:-2](torch.rand(1, 2, *side)).shape[1:])


def test_modules_of_each_layer():
    layers = [Conv(4, activated=False), Activation(), Pool(kind="max"), Dropout(0.2), GlobalPool(), Dense(5)]
    kinds = [type(m) for m in ordinary(layers, SHAPE, 3)]
    assert kinds == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, OrdinaryDropout, nn.AdaptiveAvgPool2d),
        *(nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU),
        nn.Linear,
    ]
    assert ordinary(layers, SHAPE, 3)[4].p == 0.2


def test_normalised_inputs():
    layer = Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.5])
    assert hash(layer) == hash(Normalise((0.4, 0.5, 0.6), (0.2, 0.25, 0.5)))
    x = torch.rand(2, 3, 4, 4)
    expected = (x - torch.tensor(layer.mean).view(3, 1, 1)) / torch.tensor(layer.std).view(3, 1, 1)
    torch.testing.assert_close(ordinary([layer, Conv(4)], (3, 4, 4), 2)[0](x), expected)
    assert spiking([layer, Conv(4)], (3, 4, 4), 2, Direct(3)).network[0].mean == layer.mean
    assert ordinary([Normalise(0.5, 0.25)], (6,), 2)(torch.full((1, 6), 0.5)).shape == (1, 2)


@pytest.mark.parametrize(
    ("architecture", "smallest"),
    [
        ((), 1),
        ((Pool(),) * 4, 16),
        ((Conv(4), Pool(3)), 3),
        ((Conv(4, 5, padding=0), Pool()), 6),
        ((Conv(4, stride=2), Pool(), Pool()), 7),
        ((Residual((Conv(4, stride=2), Conv(4))), Pool()), 3),
        ((Transition(), Transition(0.5)), 4),
    ],
)
def test_the_smallest_image(architecture, smallest):
    assert smallest_image(architecture) == smallest
    fit(architecture, (1, smallest, smallest))
    if smallest > 1:
        with pytest.raises(
            ValueError, match=f"the smallest square image for this architecture is {smallest} x {smallest}$"
        ):
            fit(architecture, (1, smallest - 1, smallest))


def test_the_smallest_image_of_many_channels():
    layers = (Normalise((0.5, 0.4, 0.3), 0.2), Pool(4))
    assert smallest_image(layers, 3) == 4
    with pytest.raises(ValueError, match=r"the smallest square image for this architecture is 4 x 4$"):
        fit(layers, (3, 3, 3))


def test_no_image_is_large_enough():
    message = "no image of up to 1024 x 1024 is large enough: use fewer pools"
    with pytest.raises(ValueError, match=message):
        smallest_image((Pool(2000),))
    with pytest.raises(ValueError, match=r"Pool\(size=2000, .*\) is larger than its input of 8 x 8: " + message):
        fit((Pool(2000),), SHAPE)


@pytest.mark.parametrize(
    ("architecture", "shape", "classes", "error", "message"),
    [
        ((Conv(4),), (64,), 3, ValueError, "Conv(channels=4, kernel=3, stride=1, padding=None, activated=True) needs an input"),
        ((Conv(4),), (8, 8), 3, ValueError, "Conv(channels=4, kernel=3, stride=1, padding=None, activated=True) needs an input "
         "of shape (C, H, W), but there it is (8, 8)"),
        ((Dense(4), Pool()), SHAPE, 3, ValueError, "Pool(size=2, kind='average') needs an input of shape (C, H, W), but there"),
        ((Dense(4), GlobalPool()), SHAPE, 3, ValueError, "GlobalPool() needs an input of shape (C, H, W), but there it is (4,)"),
        ((Pool(),) * 4, SHAPE, 3, ValueError, "Pool(size=2, kind='average') is larger than its input of 1 x 1: the smallest"),
        ((Conv(4, 5, padding=0),), (1, 4, 8), 3, ValueError, "Conv(channels=4, kernel=5, stride=1, padding=0, activated=True) is "
         "larger than its input of 4 x 8: the smallest square image for this architecture is 5 x 5"),
        ((), (), 3, ValueError, "shape must be that of one sample, (C, H, W) or (F,), got ()"),
        ((), (1, 0, 8), 3, ValueError, "shape must be at least 1, got 0"),
        ((), (1, 8.0, 8), 3, TypeError, "shape must be an integer, got 8.0"),
        ((), SHAPE, 1, ValueError, "classes must be at least 2, got 1"),
        ("conv-small", SHAPE, 3, TypeError, "architecture must hold layers such as Conv, Pool and Dense, got 'c'"),
        ((Conv,), SHAPE, 3, TypeError, "architecture must hold layers such as Conv, Pool and Dense, got <class"),
        ((nn.Linear(2, 2),), SHAPE, 3, TypeError, "architecture must hold layers such as Conv, Pool and Dense, got Linear("),
        (Conv(4), SHAPE, 3, TypeError, "architecture must be a sequence of layers such as Conv, Pool and Dense, got Conv("),
        ((Conv(4) for _ in range(2)), SHAPE, 3, TypeError, "architecture must be a sequence of layers such as Conv, Pool and"),
        (None, SHAPE, 3, TypeError, "architecture must be a sequence of layers such as Conv, Pool and Dense, got None"),
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
        (
            lambda: Conv(4, 2),
            ValueError,
            "Conv.kernel must be odd, got 2: an even one does not keep the size, give a padding",
        ),
        (lambda: Conv(4, 0), ValueError, "Conv.kernel must be at least 1, got 0"),
        (lambda: Conv(4, 0, padding=0), ValueError, "Conv.kernel must be at least 1, got 0"),
        (lambda: Conv(4, stride=0), ValueError, "Conv.stride must be at least 1, got 0"),
        (lambda: Conv(4, padding=-1), ValueError, "Conv.padding must be at least 0, got -1"),
        (lambda: Conv(4, activated=1), TypeError, "Conv.activated must be True or False, got 1"),
        (lambda: Conv("4"), TypeError, "Conv.channels must be an integer, got '4'"),
        (lambda: Pool(0), ValueError, "Pool.size must be at least 1, got 0"),
        (lambda: Pool(2, "mean"), ValueError, "Pool.kind must be one of average, max; got 'mean'"),
        (lambda: Dense(0), ValueError, "Dense.features must be at least 1, got 0"),
        (lambda: Dropout(1.5), ValueError, "Dropout.p must be in [0, 1], got 1.5"),
        (lambda: Normalise(0.5, 0.0), ValueError, "std must be in "),
        (lambda: Normalise((0.5,), (0.2, 0.3)), ValueError, "mean and std must have one value a channel"),
        (
            lambda: fit([Normalise((0.5, 0.5), 1.0)], SHAPE),
            ValueError,
            "Normalise(mean=(0.5, 0.5), std=1.0) has other channels",
        ),
        (lambda: Recurrent(0), ValueError, "Recurrent.features must be at least 1, got 0"),
    ],
)
def test_bad_layers(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        (Normalise(0.3, 0.2), "layers.Normalise"),
        (Recurrent(4), "neurons.Recurrent"),
        (Residual((Dense(4),)), "layers.Residual"),
        (Dense(4), "a module of torch.nn or snnrobust.layers"),
    ],
)
def test_a_description_that_is_called_names_the_module(layer, module):
    with pytest.raises(TypeError, match=rf"models\.{type(layer).__name__} describes a layer.*call {module}"):
        layer(torch.rand(1, 4))


@pytest.mark.parametrize(
    "module",
    [layers.Normalise(0.3, 0.2), neurons.Recurrent(4), layers.Residual(layers.Sequential())],
)
def test_a_module_in_a_description_names_the_layer(module):
    name = type(module).__name__
    with pytest.raises(TypeError, match=rf"(?s)got {name}.*models\.{name} describes one"):
        fit((module,), (4,))
