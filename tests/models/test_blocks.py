"""Residual and dense blocks, in both networks, and on a chip."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, GaussianNoise, deploy
from snnrobust.hardware.deploy import DeployedLayer
from snnrobust.layers import BNTT, TDBN, Sequential
from snnrobust.layers import residual as branches
from snnrobust.models import Conv, Dense, DenseBlock, Pool, Recurrent, Residual, Transition, ordinary, spiking
from snnrobust.models.architecture import fit
from snnrobust.neurons import LIF

SHAPE = (4, 6, 6)
LIVELY = LIF(threshold=0.1)


def _kinds(module):
    return [type(m) for m in module]


def test_the_activation_follows_the_sum():
    layers = [Residual((Conv(4), Conv(4)))]
    block, activation, *_ = ordinary(layers, SHAPE, 3)
    conv, norm = nn.Conv2d, nn.BatchNorm2d
    assert type(block) is branches.OrdinaryResidual
    assert (_kinds(block.body), block.shortcut, type(activation)) == ([conv, norm, nn.ReLU, conv, norm], None, nn.ReLU)
    block, neuron, *_ = spiking(layers, SHAPE, 3, Direct(3)).network
    assert type(block) is branches.Residual
    assert (_kinds(block.body), block.shortcut, type(neuron)) == ([conv, BNTT, LIF, conv, BNTT], None, LIF)


@pytest.mark.parametrize(
    ("body", "shape", "shortcut"),
    [
        ((Conv(4),), SHAPE, None),
        ((Conv(8),), SHAPE, [("Conv2d", (8, 4, 1, 1), (1, 1)), "BatchNorm2d"]),
        ((Conv(4, stride=2), Conv(4)), SHAPE, [("Conv2d", (4, 4, 1, 1), (2, 2)), "BatchNorm2d"]),
        ((Conv(4), Pool(3), Conv(5)), SHAPE, [("Conv2d", (5, 4, 1, 1), (3, 3)), "BatchNorm2d"]),
        ((Dense(5), Dense(7)), (7,), None),
        ((Dense(5), Dense(6)), (7,), [("Linear", (6, 7), None), "BatchNorm1d"]),
        ((Dense(6),), SHAPE, ["Flatten", ("Linear", (6, 144), None), "BatchNorm1d"]),
    ],
)
def test_the_shortcut_fits_the_body(body, shape, shortcut):
    def named(module):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return type(module).__name__
        assert module.bias is None
        return type(module).__name__, tuple(module.weight.shape), getattr(module, "stride", None)

    block = ordinary([Residual(body)], shape, 3)[0]
    assert (None if block.shortcut is None else [named(m) for m in block.shortcut]) == shortcut
    model = ordinary([Residual(body)], shape, 3)
    assert model(torch.rand(2, *shape)).shape == (2, 3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    out=st.integers(1, 5),
)
def test_strides_of_any_size_fit(side, strides, out):
    """The centre of a kernel that keeps the size stands where a 1 x 1 convolution of the whole stride does."""
    layers = [Residual([Conv(out, stride=s) for s in strides])]
    model = ordinary(layers, (2, *side), 3).eval()
    x = torch.rand(1, 2, *side)
    assert tuple(model[0](x).shape[1:]) == fit(layers, (2, *side))


def test_tdbn_scales_the_branches_that_are_added():
    model = spiking([Conv(4), Residual((Conv(4), Conv(8)))], SHAPE, 3, Direct(3), LIF(threshold=0.5), norm="TDBN")
    stem, block = model.network[1], model.network[3]
    assert (stem.alpha, stem.threshold) == (1.0, 0.5)
    assert [m.alpha for m in block.body if isinstance(m, TDBN)] == [1.0, 0.5**0.5]
    assert [m.alpha for m in block.shortcut if isinstance(m, TDBN)] == [0.5**0.5]


def test_an_ordinary_block_by_hand():
    block = ordinary([Residual((Conv(4), Conv(4)))], SHAPE, 3).eval()[0]
    conv1, norm1, relu, conv2, norm2 = block.body
    x = torch.rand(2, *SHAPE)
    assert torch.equal(block(x), x + norm2(conv2(relu(norm1(conv1(x))))))


def test_a_dense_block_by_hand():
    model = ordinary([DenseBlock(3, 2)], SHAPE, 3).eval()
    x = known = torch.rand(2, *SHAPE)
    for unit, width in zip(model[:3], (4, 6, 8), strict=True):
        norm, relu, conv = unit.body
        assert (conv.in_channels, conv.out_channels, norm.num_features) == (width, 2, width)
        known = torch.cat((known, conv(relu(norm(known)))), 1)
    assert torch.equal(model[:3](x), known)
    assert known.shape[1] == 10
    twin = spiking([DenseBlock(3, 2)], SHAPE, 3, Direct(3)).network[0]
    assert (type(twin), _kinds(twin.body)) == (branches.Concat, [BNTT, LIF, nn.Conv2d])


@pytest.mark.parametrize(("compression", "channels"), [(1.0, 4), (0.5, 2), (0.6, 2), (0.01, 1)])
def test_transition(compression, channels):
    norm, _, conv, pool, *_ = ordinary([Transition(compression)], SHAPE, 3)
    assert (type(norm), conv.kernel_size, conv.out_channels, pool.kernel_size) == (nn.BatchNorm2d, (1, 1), channels, 2)
    assert fit([Transition(compression)], SHAPE) == (channels, 3, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Residual(()), ValueError, "Residual.body must end in a Conv or Dense, whose result is added, got ()"),
        (lambda: Residual((Conv(4), Pool())), ValueError, "Residual.body must end in a Conv or Dense, whose result is added"),
        (lambda: Residual((Recurrent(4),)), ValueError, "Residual.body must end in a Conv or Dense, whose result is added"),
        (lambda: Residual(Conv(4)), TypeError, "Residual.body must be a sequence of layers such as Conv, Pool and Dense"),
        (lambda: Residual("vgg9"), TypeError, "Residual.body must hold layers such as Conv, Pool and Dense, got 'v'"),
        (lambda: DenseBlock(0, 2), ValueError, "DenseBlock.layers must be at least 1, got 0"),
        (lambda: DenseBlock(2, 0), ValueError, "DenseBlock.growth must be at least 1, got 0"),
        (lambda: Transition(0.0), ValueError, "Transition.compression must be in (0, 1], got 0.0"),
        (lambda: fit([Residual((Conv(4, 3, padding=0),))], SHAPE), ValueError,
         "a Residual turns (4, 6, 6) into (4, 4, 4), but its shortcut of stride 1 into (4, 6, 6): use convolutions that keep"),
        (lambda: fit([Residual((Pool(), Conv(4)))], (4, 5, 5)), ValueError,
         "a Residual turns (4, 5, 5) into (4, 2, 2), but its shortcut of stride 2 into (4, 3, 3)"),
        (lambda: fit([DenseBlock(2, 2)], (7,)), ValueError, "DenseBlock(layers=2, growth=2) needs an input of shape (C, H, W)"),
        (lambda: fit([Transition()], (7,)), ValueError, "Transition(compression=1.0) needs an input of shape (C, H, W)"),
        (lambda: fit([Transition()], (2, 1, 1)), ValueError, "Pool(size=2, kind='average') is larger than its input of 1 x 1"),
    ],
)  # fmt: skip
def test_bad_blocks(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_a_body_in_a_list_is_kept_as_it_is():
    body = [Conv(4), Conv(4)]
    block = Residual(body)
    body.clear()
    assert block == Residual((Conv(4), Conv(4)))
    assert hash(block) == hash(Residual((Conv(4), Conv(4))))


@pytest.mark.parametrize("kind", ["ordinary", "spiking"])
def test_branches_are_put_on_the_chip(kind):
    layers = [Conv(4), Residual((Conv(4), Conv(6, stride=2))), DenseBlock(2, 3), Transition()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ordinary(layers, SHAPE, 3) if kind == "ordinary" else spiking(layers, SHAPE, 3, Direct(4), LIVELY)
    synapses = [m for m in model.eval().modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    ideal, noisy = (deploy(model, b, seed=1) for b in (Chain(), GaussianNoise(multiplicative=0.3)))
    assert len([m for m in ideal.modules() if isinstance(m, DeployedLayer)]) == len(synapses) == 8
    assert not [m for m in ideal.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for _ in range(10):
            x = torch.rand(3, *SHAPE)
            assert torch.equal(ideal(x), model(x))
        with draws(noisy, 1):
            assert not torch.allclose(noisy(x), model(x))


def test_a_noisy_branch_streams_as_it_runs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking([Conv(4), Residual((Conv(4), Conv(6)))], SHAPE, 3, Direct(4), LIVELY)
    chip = deploy(model.double(), GaussianNoise(multiplicative=0.3, drawn="step"), seed=1)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    with torch.no_grad(), draws(chip, 5):
        *_, last = chip.stream(x)
        torch.testing.assert_close(last, chip(x), rtol=0, atol=1e-9)
    clean = list(model.eval().stream(x))[-1]
    assert not torch.allclose(last, clean)


def test_an_ordinary_block_in_a_spiking_network_is_not_put_on_a_chip():
    network = Sequential(branches.OrdinaryResidual(nn.Sequential(nn.Linear(4, 4))), LIF())
    with pytest.raises(TypeError, match=r"0\.body\.0 does not see time"):
        deploy(network, Chain(), seed=0)
