"""Ranges and steps that signals observe, and membranes that chips change."""

import math

import pytest
import torch
from torch import nn

from snnrobust import models
from snnrobust.attacks import PGD, Linf
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.energy import count_operations
from snnrobust.hardware import (
    Chain,
    DeadNeurons,
    GaussianNoise,
    NeuronVariation,
    SpikeInsertion,
    SpikeLoss,
    StuckNeurons,
    deploy,
    load,
    save,
)
from snnrobust.layers import Sequential
from snnrobust.neurons import LIF, Recurrent
from snnrobust.quantization import (
    Integer,
    QuantizedMembrane,
    Quantizer,
    SignalQuantizer,
    calibrate,
    quantize,
    weight_quantizer,
)

A8 = Quantizer(Integer(8), affine=True)
M4 = Quantizer(Integer(4), "constant", limits=(-1.4, 1.4))
SMALL = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def signal(model):
    return next(m for m in model.modules() if isinstance(m, SignalQuantizer))


@pytest.mark.parametrize("order", [1, -1])
def test_calibration_takes_the_extremes_of_all_batches(order):
    """A batch of equal numbers is one of them."""
    batches = [torch.full((2, 4), 0.9), torch.rand(2, 4) * 0.2 + 0.1, torch.full((2, 4), -0.3)][::order]
    found = signal(calibrate(quantize(SMALL, inputs=A8), batches))
    assert (float(found.low), float(found.high)) == (pytest.approx(-0.3), pytest.approx(0.9))


def test_a_learned_step_is_calibrated_on_all_batches_that_are_not_zero():
    recipe = Quantizer(Integer(8), "learned")
    small, large = torch.full((2, 4), 1e-3), torch.rand(2, 4)
    model = calibrate(quantize(SMALL, inputs=recipe), [torch.zeros(2, 4), small, large, large])
    expected = sum(2 * float(x.abs().mean()) / math.sqrt(127) for x in (small, large, large)) / 3
    assert float(signal(model).step.detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="its signal is 0 on all of the data"):
        calibrate(quantize(SMALL, inputs=recipe), torch.zeros(2, 4))
    silent = calibrate(quantize(SMALL, inputs=recipe), torch.zeros(2, 4), allow_silent=True)
    assert bool(silent(torch.zeros(2, 4)).isfinite().all())
    silent.train()(large)
    assert float(signal(silent).step.detach()) == pytest.approx(2 * float(large.mean()) / math.sqrt(127))


def test_the_gradient_of_steps_has_the_scale_of_the_paper():
    """1 / sqrt(N u), N the numbers that share a step: of a channel; of one sample of a signal."""
    recipe = Quantizer(Integer(4), "learned", axis=0)
    layer = nn.Linear(6, 3)
    model = quantize(nn.Sequential(layer), weights=recipe)
    quantizer = weight_quantizer(model[0])
    model[0].weight.sum().backward()
    u = layer.weight.detach() / quantizer.step.detach()
    own = torch.where(u >= 7, 7.0, torch.where(u <= -7, -7.0, u.round() - u)).sum(1, keepdim=True)
    assert torch.allclose(quantizer.step.grad, own / math.sqrt(6 * 7), atol=1e-6)

    x = torch.rand(5, 4)
    model = quantize(SMALL, inputs=Quantizer(Integer(4), "learned"), layers=["0"]).train()
    found = signal(model)
    found(x).sum().backward()
    u = x / found.step.detach()
    own = torch.where(u >= 7, 7.0, u.round() - u).sum()
    assert float(found.step.grad) == pytest.approx(float(own) / math.sqrt(4 * 7), rel=1e-4)


@pytest.mark.parametrize(
    "backend",
    [
        NeuronVariation(threshold=0.2, leak=0.1),
        DeadNeurons(rate=0.2),
        StuckNeurons(rate=0.1),
        SpikeLoss(rate=0.2),
        SpikeInsertion(rate=0.1),
        Chain(GaussianNoise(multiplicative=0.1), SpikeLoss(rate=0.2), NeuronVariation(threshold=0.1)),
    ],
    ids=lambda b: type(b).__name__,
)
def test_stored_potentials_and_effects_on_neurons_go_together(backend, tmp_path):
    torch.manual_seed(0)
    neuron = LIF(0.8, threshold=0.3)
    model = quantize(
        models.spiking((models.Dense(8),), (1, 4, 4), 3, Direct(4), norm="none", neuron=neuron), membranes=M4
    )
    chip = deploy(model, backend, seed=1)
    x = X.clone().requires_grad_()
    with draws(chip, 0):
        answer = chip(x)
    answer[:, 0].sum().backward()
    assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())
    other = deploy(model, backend, seed=1)
    with draws(other, 0):
        assert torch.equal(other(X), answer.detach())
    cell = next(m for m in chip.modules() if isinstance(m, QuantizedMembrane))
    currents = torch.rand(5, 2, 8, generator=torch.Generator().manual_seed(2))
    with draws(chip, 0):
        stored = cell.membrane(currents)
    codes = stored / 0.2
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    assert len(stored.unique()) > 2
    PGD(Linf(0.1), steps=1)(chip, X, torch.zeros(4, dtype=torch.int64), seed=0)
    save(chip, tmp_path / "chip.safetensors")
    again = load(tmp_path / "chip.safetensors")
    with draws(again, 0):
        assert torch.equal(again(X), answer.detach())


def test_what_cannot_have_a_quantizer_of_its_own_is_refused():
    recurrent = Sequential(nn.Linear(4, 3), LIF(0.5), Recurrent(3, LIF(0.5)))
    with pytest.raises(ValueError, match="is inside of a Recurrent layer"):
        quantize(recurrent, membranes=M4)
    assert isinstance(quantize(recurrent, membranes=M4, layers=["1"])[1], QuantizedMembrane)
    shared = nn.Linear(4, 4)
    tied = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="0 stands at several places of the model"):
        quantize(tied, inputs=A8)
    weights = quantize(tied, weights=Quantizer(Integer(4)))
    assert weights[0] is weights[2]
    assert count_operations(weights, torch.rand(2, 4)).layers
