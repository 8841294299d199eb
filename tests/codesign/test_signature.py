"""Signatures against layers computed by hand, and the choice of images."""

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust.codesign import compact_images, signature, signatures
from snnrobust.encoders import Direct
from snnrobust.hardware import GaussianNoise, WeightVariation, deploy, fleet
from snnrobust.layers import Chunked, MeanOutput, Sequential
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF

SHAPE = (1, 8, 8)


def images(n=3, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def conv(kind="ann", seed=0):
    torch.manual_seed(seed)
    layers = (Conv(4, 3), Pool(2), Dense(6))
    model = ordinary(layers, SHAPE, 3) if kind == "ann" else spiking(layers, SHAPE, 3, Direct(4), LIF(0.9, 0.3))
    return model.eval()


def test_an_ordinary_network_by_hand():
    model, x = conv(), images()
    a = torch.relu(model[1](model[0](x)))
    found = signature(model, x, pooled=10_000)
    assert np.allclose(found[: a.numel()], a.detach().flatten().double())
    pooled = signature(model, x, pooled=6)  # 4 x 8 x 8 is too large, its 4 means are not
    assert len(pooled) == 3 * (4 + 6 + 3)
    assert np.allclose(pooled[:12], a.detach().mean((2, 3)).flatten().double(), atol=1e-6)
    assert np.allclose(pooled[-9:], model(x).detach().flatten().double())


def test_what_is_still_too_large_is_averaged_in_groups():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 2)), torch.rand(2, 5)
    a = torch.relu(model[0](x)).detach()
    assert np.allclose(signature(model, x, pooled=4)[:8], a.reshape(2, 4, 3).mean(2).flatten().double(), atol=1e-7)


def test_spikes_become_rates_however_the_steps_are_taken():
    torch.manual_seed(0)
    network = Sequential(nn.Linear(6, 5), LIF(0.8, 0.3), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    model, x = SpikingClassifier(Direct(6), network, MeanOutput()), torch.rand(3, 6)
    rates = network[1](network[0](x).expand(6, 3, 5)).mean(0)
    values = torch.relu(network[2](network[1](network[0](x).expand(6, 3, 5)))).mean(0)  # a ReLU that sees time folded
    found = signature(model, x)
    assert np.allclose(found[:15], rates.detach().flatten().double())
    assert np.allclose(found[15:27], values.detach().flatten().double())
    chunked = SpikingClassifier(Direct(6), Chunked(network, 2), MeanOutput())
    assert np.allclose(signature(chunked, x), found)
    assert np.allclose(signature(deploy(model, WeightVariation(0.0), seed=0), x), found)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_chips_differ_in_it_and_a_chip_does_not(kind):
    rows = signatures(fleet(conv(kind), WeightVariation(0.3), 3, seed=4), images())
    again = signature(deploy(conv(kind), WeightVariation(0.3), seed=5), images())
    assert np.array_equal(rows[1], again)
    assert not np.array_equal(rows[0], rows[1])
    assert rows.dtype == np.float64


def test_draws_at_inference_are_keyed_and_modes_are_kept():
    chip = deploy(conv(), GaussianNoise(multiplicative=0.2), seed=0).train()
    chip[0].eval()
    modes = [m.training for m in chip.modules()]
    first = signature(chip, images())
    assert np.array_equal(first, signature(chip, images()))
    assert not np.array_equal(first, signature(chip, images(), key=1))
    assert [m.training for m in chip.modules()] == modes
    assert not any(m._forward_hooks for m in chip.children())  # the chip's own ends a pass


def test_the_images_of_largest_variance_by_brute_force():
    chips, pool = list(fleet(conv(), WeightVariation(0.5), 6)), images(20)
    with torch.no_grad():
        logits = torch.stack([chip(pool) for chip in chips]).double()
    best = logits.var(0, unbiased=False).sum(1).topk(5).indices.sort().values
    assert torch.equal(compact_images(chips, pool, 5), pool[best])
    drawn = compact_images(chips, pool, 5, choice="random")
    assert torch.equal(drawn, compact_images([], pool, 5, choice="random"))
    assert not torch.equal(drawn, compact_images(chips, pool, 5, choice="random", seed=1))
    assert len({row.numpy().tobytes() for row in drawn}) == 5


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"does not take x of shape \(2, 3, 8, 8\)"):
        signature(conv(), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="images must lie in"):
        signature(conv(), 255 * images())
    other = ordinary((Conv(5, 3), Pool(2), Dense(6)), SHAPE, 3).eval()
    with pytest.raises(ValueError, match=r"chip 1 gives a signature of .* not chips of one model"):
        signatures([conv(), other], images())
    with pytest.raises(ValueError, match="chips is empty"):
        signatures([], images())
    with pytest.raises(ValueError, match="at most 3"):
        compact_images([], images(), 4)
    with pytest.raises(ValueError, match="at least two chips, got 1"):
        compact_images([conv()], images(), 2)
    with pytest.raises(ValueError, match="did you mean 'variance'"):
        compact_images([conv()], images(), 2, choice="varience")
    broken = conv()
    with torch.no_grad():
        broken[-1].bias[0] = float("inf")
    with pytest.raises(ValueError, match="defect"):
        signature(broken, images())
