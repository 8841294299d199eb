"""Gain, offset, threshold and leak of a finished chip."""

import pytest
import torch
from torch import nn

from snnrobust.codesign import with_knobs
from snnrobust.codesign.knobs import TunedNeuron, limits, sites
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import GaussianNoise, WeightVariation, deploy, load, save
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, Recurrent


def ann(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()


def snn(neuron=None, seed=0):
    torch.manual_seed(seed)
    neurons = [LIF(0.8, 0.4) if neuron is None else neuron() for _ in range(2)]
    network = Sequential(nn.Linear(6, 8), neurons[0], nn.Linear(8, 5), neurons[1], nn.Linear(5, 3))
    return SpikingClassifier(Direct(5), network, MeanOutput()).double().eval()


def x_of(n=7, dtype=torch.float64):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("model", [ann, snn], ids=["ann", "snn"])
@pytest.mark.parametrize("second", ["leak", "offset"])
def test_zeros_change_nothing_and_the_chip_is_left_alone(model, second):
    chip = deploy(model(), WeightVariation(0.3), seed=1)
    before = {name: value.clone() for name, value in chip.state_dict().items()}
    y = chip(x_of())
    for learning in (False, True):
        knobs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=learning)
        assert torch.equal(with_knobs(chip, knobs, second)(x_of()), y)
    with_knobs(chip, torch.full((2, 2), 0.1, dtype=torch.float64), second)
    assert torch.equal(chip(x_of()), y)
    assert chip.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in chip.state_dict().items())


@pytest.mark.parametrize("model", [ann, snn], ids=["ann", "snn"])
def test_a_tuned_chip_has_weights_of_its_own(model):
    chip = deploy(model(), WeightVariation(0.3), seed=1)
    y = chip(x_of())
    tuned = with_knobs(chip, torch.full((2, 2), 0.1))
    with torch.no_grad():
        for tensor in tuned.state_dict().values():
            tensor.zero_()
    assert torch.equal(chip(x_of()), y)


def test_an_activation_by_hand():
    model, x = ann(), x_of()
    knobs = torch.tensor([[0.3, -0.2], [-0.4, 0.5]], dtype=torch.float64)
    units = torch.tensor([2.0, 3.0], dtype=torch.float64)
    a = torch.relu(model[0](x) * knobs[0, 0].exp() - 0.4)
    b = torch.relu(model[2](a) * knobs[1, 0].exp() + 1.5)
    assert torch.allclose(with_knobs(model, knobs, units=units)(x), model[4](b), atol=1e-14)


def test_a_threshold_and_a_leak_by_hand():
    x = x_of()
    knobs = torch.tensor([[0.3, 0.1], [-0.4, -0.3]], dtype=torch.float64)
    tuned, by_hand = with_knobs(snn(), knobs), snn()
    setattr(by_hand.network, "1", LIF(0.9, 0.4 * float((-knobs[0, 0]).exp())))
    setattr(by_hand.network, "3", LIF(0.5, 0.4 * float((-knobs[1, 0]).exp())))
    assert type(tuned.network[1]) is LIF
    assert torch.allclose(tuned(x), by_hand(x), atol=1e-14)
    assert torch.equal(with_knobs(snn(), knobs, units=torch.tensor([2.0, 3.0]))(x), tuned(x))  # a leak has no unit
    learning = with_knobs(snn(), knobs.clone().requires_grad_())
    assert torch.allclose(learning(x), tuned(x), atol=1e-14)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_a_lower_threshold_is_a_gain_of_the_input(reset):
    """Of neurons from the zero state: s(x, theta) = s(x / theta, 1)."""
    model = snn(lambda: LIF(0.8, 0.5, reset=reset))
    knobs = torch.tensor([[0.7, 0.0], [-0.2, 0.0]], dtype=torch.float64)
    assert torch.allclose(with_knobs(model, knobs, "leak")(x_of()), with_knobs(model, knobs, "offset")(x_of()))


@pytest.mark.parametrize("neuron", [ALIF, PLIF], ids=["ALIF", "PLIF"])
def test_other_neurons_have_a_gain_and_an_offset_and_stream(neuron):
    model = snn(neuron)
    knobs = torch.tensor([[0.7, 0.2], [0.2, -0.1]], dtype=torch.float64)
    tuned = with_knobs(model, knobs, "leak")
    assert isinstance(tuned.network[1], TunedNeuron)
    by_hand = snn(neuron)
    with torch.no_grad():
        by_hand.network[0].weight.mul_(knobs[0, 0].exp())
        by_hand.network[0].bias.mul_(knobs[0, 0].exp()).add_(0.2)
        by_hand.network[2].weight.mul_(knobs[1, 0].exp())
        by_hand.network[2].bias.mul_(knobs[1, 0].exp()).sub_(0.1)
    assert torch.allclose(tuned(x_of()), by_hand(x_of()), atol=1e-12)
    assert torch.allclose(list(tuned.stream(x_of()))[-1], tuned(x_of()), atol=1e-12)


def test_constants_of_each_channel_keep_their_shape_and_leaks_stay_within_bounds():
    model = snn(lambda: IF(0.5))
    setattr(model.network, "1", LIF([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.5] * 8))
    tuned = with_knobs(model, torch.tensor([[0.5, 0.4], [0.0, 0.3]]))
    assert torch.allclose(tuned.network[1].decay, torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]))
    assert tuned.network[1].threshold.shape == (8,)
    assert tuned.network[3].decay == 1.0
    low, high = limits(model, "leak")
    assert torch.allclose(low, torch.tensor([-0.8, -1.0]))
    assert torch.allclose(high, torch.tensor([0.9, 0.0]))
    assert limits(model, "offset")[1].isinf().all()


def test_the_gradient_of_knobs_is_exact_for_an_ordinary_network():
    chip = deploy(ann(), WeightVariation(0.3), seed=0)
    knobs = torch.tensor([[0.1, 0.02], [-0.1, 0.03]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: with_knobs(chip, k)(x_of()), knobs)


def test_knobs_of_a_spiking_network_get_a_gradient_and_the_chip_gets_none():
    model = snn()
    knobs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(with_knobs(model, knobs)(x_of()).square().sum(), [knobs])
    assert gradient.abs().min() > 0
    assert all(p.grad is None for p in model.parameters())


def test_sites_of_convolutional_twins_and_of_shared_and_recurrent_modules():
    layers = (Conv(2, 3), Pool(2), Dense(5))
    assert len(sites(ordinary(layers, (1, 8, 8), 3))) == 2
    assert len(sites(spiking(layers, (1, 8, 8), 3, Direct(2)))) == 2
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    tuned = with_knobs(shared, torch.tensor([[0.2, 0.1]]))
    assert tuned[1] is tuned[3]
    assert tuned[1] is not relu
    with pytest.raises(ValueError, match="no neurons to tune"):
        sites(Sequential(nn.Linear(3, 4), Recurrent(4)))


def test_draws_at_inference_are_those_of_the_chip():
    chip = deploy(ann(), GaussianNoise(multiplicative=0.3), seed=0)
    tuned = with_knobs(chip, torch.zeros(2, 2))
    with draws(chip, 4), draws(tuned, 4):
        assert torch.equal(chip(x_of()), tuned(x_of()))


@pytest.mark.parametrize("model", [ann, snn], ids=["ann", "snn"])
def test_a_tuned_chip_is_not_saved_as_the_chip_that_it_was(model, tmp_path):
    chip = deploy(model().float(), WeightVariation(0.3), seed=1)
    save(chip, tmp_path / "chip.safetensors")
    knobs = torch.tensor([[0.1, 0.05], [0.1, -0.05]])
    with pytest.raises(TypeError, match="changed after it was made"):
        save(with_knobs(chip, knobs), tmp_path / "tuned.safetensors")
    again = with_knobs(load(tmp_path / "chip.safetensors"), knobs)
    assert torch.equal(again(x_of(dtype=torch.float32)), with_knobs(chip, knobs)(x_of(dtype=torch.float32)))


def test_wrong_shapes_and_names_are_named():
    with pytest.raises(ValueError, match=r"knobs must be \[2, 2\].*1, 3"):
        with_knobs(ann(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="second"):
        with_knobs(ann(), torch.zeros(2, 2), "gain")
    with pytest.raises(ValueError, match=r"nn.ReLU\(\)"):
        with_knobs(nn.Sequential(nn.Linear(3, 3)), torch.zeros(1, 2))
