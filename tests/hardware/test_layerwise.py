"""Chips of several backends against chips of one."""

import pytest
import torch
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.hardware import SRAM, Chain, GaussianNoise, deploy, save
from snnrobust.hardware.layerwise import deploy_each
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

LAYERS = (Conv(4), Pool(), Dense(6))


@pytest.fixture(params=["ann", "snn"])
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "ann":
            return ordinary(LAYERS, (1, 4, 4), 3).eval()
        return spiking(LAYERS, (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)).eval()


def names(model):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def logits(chip):
    with torch.no_grad():
        return chip(torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)))


def test_one_backend_everywhere_is_deploy(model):
    same, copies = SRAM(0.78), [SRAM(0.78) for _ in names(model)]
    whole = logits(deploy(model, same, seed=4))
    assert torch.equal(logits(deploy_each(model, dict.fromkeys(names(model), same), seed=4)), whole)
    assert torch.equal(logits(deploy_each(model, dict(zip(names(model), copies, strict=True)), seed=4)), whole)
    assert not torch.equal(logits(deploy_each(model, dict.fromkeys(names(model), same), seed=5)), whole)


def test_a_layer_is_as_on_a_chip_of_its_own_backend(model):
    first, *_, last = names(model)
    noisy = GaussianNoise(additive=0.3, drawn="chip")
    chip = deploy_each(model, {first: SRAM(0.78), last: noisy}, seed=1)
    alone = deploy(model, SRAM(0.78), seed=1, layers=[first])
    assert str(chip.get_submodule(first)) == str(alone.get_submodule(first))
    for name, buffer in alone.get_submodule(first).named_buffers():
        assert torch.equal(dict(chip.get_submodule(first).named_buffers())[name], buffer)
    assert not torch.equal(logits(chip), logits(alone))
    assert isinstance(chip.get_submodule(names(model)[1]), nn.Conv2d | nn.Linear)


def test_bad_arguments_are_named(model):
    (first, *_) = names(model)
    for backends in ({}, [SRAM(0.8)]):
        with pytest.raises(ValueError, match="backends must map names of layers to backends"):
            deploy_each(model, backends, seed=0)
    with pytest.raises(ValueError, match="backends must be one of"):
        deploy_each(model, {"nothing": SRAM(0.8)}, seed=0)
    with pytest.raises(TypeError, match="use deploy\\(\\) for the whole model"):
        deploy_each(model, {first: Chain(GaussianNoise(0.1, at="after_norm"))}, seed=0)
    two = deploy_each(model, dict(zip(names(model), (SRAM(0.8), SRAM(0.9), SRAM(0.9)), strict=False)), seed=0)
    with pytest.raises(TypeError, match="chip must come from hardware"):
        save(two, "never")
    with pytest.raises(TypeError, match="backend must be a hardware Backend"):
        deploy_each(model, {first: 3}, seed=0)
