"""Pre-activation blocks with noise, against their equation; ensembles of both kinds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import count_operations
from snnrobust.hardware import GaussianNoise, deploy
from snnrobust.layers import BNTT, ActivationNoise, OrdinaryActivationNoise, OrdinaryResidual, Residual
from snnrobust.models import (
    Ensemble,
    PreResidual,
    SpikingClassifier,
    en_resnet,
    load,
    ordinary,
    pre_resnet,
    save,
    smallest_image,
    spiking,
)
from snnrobust.models.architecture import fit
from snnrobust.neurons import LIF

SHAPE = (2, 8, 8)
X = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def _kinds(modules):
    return [type(m) for m in modules]


def test_a_block_is_its_equation():
    torch.manual_seed(0)
    block, *_ = ordinary((PreResidual(2),), SHAPE, 3).eval()
    norm1, _, conv1, norm2, _, conv2 = block.body
    expected = X + conv2(norm2(conv1(norm1(X).relu())).relu())
    assert torch.allclose(block(X), expected, atol=1e-6)
    wider, *_ = ordinary((PreResidual(4, 2),), SHAPE, 3).eval()
    assert wider.shortcut[0].weight.shape == (4, 2, 1, 1)
    assert wider.body[2].stride == wider.shortcut[0].stride == (2, 2)
    assert torch.allclose(wider(X), wider.shortcut(X) + wider.body(X))


def test_where_the_noise_stands():
    quiet = ordinary(pre_resnet(1, (2, 4)), SHAPE, 3)
    assert not any(isinstance(m, OrdinaryActivationNoise) for m in quiet.modules())
    noisy = ordinary(pre_resnet(1, (2, 4), 0.2, 0.1), SHAPE, 3)
    conv, norm, pool = nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d
    block = [OrdinaryResidual, OrdinaryActivationNoise]
    assert _kinds(noisy) == [conv, *block, *block, norm, nn.ReLU, pool, nn.Flatten, nn.Linear]
    assert (noisy[2].amount, noisy[2].eval_amount) == (0.2, 0.1)
    assert isinstance(ordinary((PreResidual(2, eval_noise=0.1),), SHAPE, 3)[1], OrdinaryActivationNoise)
    twin = spiking(pre_resnet(1, (2,), 0.2), SHAPE, 3, Direct(3)).network
    assert _kinds(twin)[:3] == [conv, Residual, ActivationNoise]
    assert _kinds(twin[1].body) == [BNTT, LIF, conv, BNTT, LIF, conv]


def test_twenty_layers():
    resnet20 = ordinary(pre_resnet(), (3, 32, 32), 10)
    weighted = [m for m in resnet20.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([m for m in weighted if not (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))]) == 20
    assert [m.out_channels for m in weighted[:-1]] == [16] * 7 + [32] * 7 + [64] * 7  # with two 1 x 1 shortcuts
    assert fit(pre_resnet(), (3, 32, 32)) == (64, 1, 1)
    assert smallest_image(pre_resnet(1, (2, 4)), 2) == 1


@pytest.mark.parametrize("encoder", [None, Direct(3), Poisson(2)])
def test_ensembles_of_both_kinds(encoder, tmp_path):
    torch.manual_seed(0)
    norm = {"norm": "TDBN"} if encoder is not None else {}
    model = en_resnet(SHAPE, 4, members=2, blocks=1, widths=(2, 4), encoder=encoder, **norm).eval()
    assert isinstance(model, Ensemble)
    assert len(model) == 2
    assert all(isinstance(m, nn.Sequential if encoder is None else SpikingClassifier) for m in model)
    assert is_stochastic(model)
    assert not torch.equal(*(next(m.parameters()) for m in model))  # weights of their own
    ids = torch.tensor([5, 1, 9])
    with draws(model, 1, ids):
        logits = model(X)
    with draws(model, 1, ids[1:]):
        assert torch.allclose(model(X[1:]), logits[1:], atol=1e-6)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    with draws(again, 1, ids):
        assert torch.equal(again(X), logits)
    chip = deploy(model, GaussianNoise(multiplicative=0.0), seed=1)
    with draws(chip, 1, ids):
        assert torch.allclose(chip(X), logits, atol=1e-5)
    counted = count_operations(model, X)
    assert counted.time_steps == (1 if encoder is None else encoder.time_steps)
    assert len(counted.layers) == 2 * 7


def test_quiet_at_inference():
    model = en_resnet(SHAPE, 4, members=1, blocks=1, widths=(2,), eval_noise=0.0)
    assert is_stochastic(model.train())
    assert not is_stochastic(model.eval())
    assert torch.equal(model(X), model(X))


def test_encoders_of_members_draw_apart():
    model = en_resnet(SHAPE, 4, members=2, blocks=1, widths=(2,), encoder=Poisson(2), noise=0.0)
    with draws(model, 1):
        assert not torch.equal(*(m.encoder(X) for m in model))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PreResidual(0), "PreResidual.channels must be at least 1, got 0"),
        (lambda: PreResidual(2, 0), "PreResidual.stride must be at least 1, got 0"),
        (lambda: PreResidual(2, 1, -1.0), "PreResidual.noise must be in"),
        (lambda: PreResidual(2, 1, 0.1, -1.0), "PreResidual.eval_noise must be in"),
        (lambda: PreResidual(2)(X), "models.PreResidual describes a layer and computes nothing"),
        (lambda: pre_resnet(0), "blocks must be at least 1"),
        (lambda: pre_resnet(1, "16"), "widths must be channels of each stage such as"),
        (lambda: pre_resnet(1, ()), "widths must be channels of each stage such as"),
        (lambda: en_resnet(SHAPE, 4, members=0), "members must be at least 1"),
        (
            lambda: en_resnet(SHAPE, 4, neuron=LIF()),
            "neuron, norm and readout are of spiking networks: give an encoder",
        ),
        (lambda: en_resnet((4,), 4), r"needs an input of shape \(C, H, W\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
