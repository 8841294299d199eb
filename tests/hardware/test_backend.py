import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import BACKENDS, Array, Backend, Chain, GaussianNoise, deploy
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier


class Affine(Backend):
    """A backend of every hook, to see their order: x + a, 2 w, y * m."""

    def __init__(self, a=0.0, w=1.0, m=1.0):
        super().__init__()
        self.a, self.w, self.m, self.starts = a, w, m, []

    def drive(self, x):
        return x + self.a

    def program(self, array):
        array.weight = array.weight * self.w
        return array

    def read(self, y, start):
        self.starts.append((start, tuple(y.shape)))
        return y * self.m


def test_drive_program_read_and_the_order_of_a_chain():
    layer, x = nn.Linear(3, 2), torch.rand(5, 3)
    chain = Chain(Affine(a=1.0, w=2.0), Affine(m=3.0), GaussianNoise(additive=0.1, drawn="chip"))
    chip = deploy(nn.Sequential(layer), chain, seed=0)
    noise = deploy(nn.Sequential(layer), Chain(Affine(), Affine(), chain.backends[2]), seed=0)(x) - layer(x)
    expected = 3 * F.linear(x + 1, 2 * layer.weight, layer.bias) + noise
    assert torch.allclose(chip(x), expected, atol=1e-6)
    flipped = deploy(nn.Sequential(layer), Chain(*reversed(list(chain.backends))), seed=0)(x)
    assert not torch.allclose(flipped, expected, atol=1e-3)


def test_time_reaches_the_backend_folded_or_step_by_step():
    chip = deploy(SpikingClassifier(Direct(4), Sequential(nn.Linear(3, 2)), MeanOutput()), Affine(), seed=0)
    starts = chip.network[0].backend.starts
    x = torch.rand(5, 3)
    chip(x)
    assert starts == [(0, (4, 5, 2))]
    list(chip.stream(x))
    assert starts[1:] == [(t, (1, 5, 2)) for t in range(4)]


class Tiled(Array):
    """An array in two tiles of the input."""

    def product(self, x, bias, start):
        half = x.shape[2] // 2
        parts = [self.operation(x[..., i], self.weight[:, i], None) for i in (slice(half), slice(half, None))]
        return parts[0] + parts[1] + bias


class Tiles(Backend):
    def program(self, array):
        return Tiled(array.weight, array.operation)


def test_a_backend_may_bring_its_own_array():
    layer, x = nn.Linear(7, 2), torch.rand(5, 7)
    chip = deploy(nn.Sequential(layer), Chain(Tiles(), Affine(m=2.0)), seed=0)
    assert isinstance(chip[0].layer.array, Tiled)
    assert torch.allclose(chip(x), 2 * layer(x), atol=1e-6)


def test_programming_may_draw_and_is_keyed_by_the_chip():
    class Miswritten(Backend):
        def program(self, array):
            array.weight = array.weight + self.normal((1, *array.weight.shape))[0]
            return array

    layer, x = nn.Linear(3, 2), torch.rand(5, 3)
    one, again, other = (deploy(nn.Sequential(layer), Miswritten(), seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    chip = deploy(nn.Sequential(layer), Miswritten(), seed=1)
    with draws(chip, 99):
        assert torch.equal(chip(x), one)  # written once, not at every product


def test_backends_are_registered_and_a_chain_takes_nothing_else():
    assert {"Chain", "GaussianNoise", "Uniform", "Affine"} <= BACKENDS.keys()
    assert BACKENDS["GaussianNoise"] is GaussianNoise
    with pytest.raises(TypeError, match="must be Backend instances, got type"):
        Chain(GaussianNoise)
    with pytest.raises(TypeError, match="must be Backend instances, got Linear"):
        Chain(GaussianNoise(), nn.Linear(2, 2))
