import math

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, deploy
from snnrobust.hardware.faults import DeadNeurons, NeuronVariation
from snnrobust.layers import Sequential
from snnrobust.models import Conv, Dense, ordinary, spiking
from snnrobust.neurons import (
    ALIF,
    IF,
    LIF,
    NEURONS,
    PLIF,
    CuBaLIF,
    LearnableThresholdLIF,
    Neuron,
    PrechargedIF,
    Recurrent,
    alif,
    leaky_integral,
    lif,
)
from snnrobust.neurons.surrogate import Sigmoid, override

N = 20_000


def on_chip(backend, neuron, seed=0):
    return deploy(Sequential(nn.Linear(1, 1), neuron), backend, seed=seed)[1]


def constants(varied, features, dtype=torch.float64):
    """The threshold and leak of each neuron, as they are used."""
    row = varied._in_a_row(torch.zeros(1, *features, dtype=dtype))
    return row.threshold, row.decay


@pytest.mark.parametrize("sigma", [0.05, 0.2])
@pytest.mark.parametrize("distribution", ["normal", "lognormal", "uniform"])
@pytest.mark.parametrize("role", ["threshold", "leak"])
def test_moments_and_shape(role, distribution, sigma):
    """Mean 1, standard deviation sigma, and a Kolmogorov-Smirnov test of the shape; each at 0.001."""
    varied = on_chip(NeuronVariation(**{role: sigma}, distribution=distribution), LIF(decay=0.9, threshold=0.7))
    threshold, decay = constants(varied, (N,))
    f = threshold / 0.7 if role == "threshold" else torch.as_tensor(decay).log() / math.log(0.9)
    assert (decay == 0.9) if role == "threshold" else (threshold == 0.7)
    z = ((f - 1) / sigma).numpy()
    kurtosis = stats.kurtosis(z, fisher=False)
    critical = stats.norm.isf(0.0005)
    assert abs(z.mean()) < critical / math.sqrt(N)
    assert abs(z.std() ** 2 - 1) < critical * math.sqrt((kurtosis - 1) / N)
    s = math.sqrt(math.log1p(sigma**2))
    law = {
        "normal": stats.norm(1, sigma),
        "lognormal": stats.lognorm(s, scale=math.exp(-(s**2) / 2)),
        "uniform": stats.uniform(1 - sigma * math.sqrt(3), 2 * sigma * math.sqrt(3)),
    }[distribution]
    assert stats.kstest(f.numpy(), law.cdf).pvalue > 1e-3


def test_threshold_and_leak_are_independent():
    threshold, decay = constants(on_chip(NeuronVariation(0.1, 0.1), LIF(0.9)), (N,))
    assert stats.pearsonr(threshold.numpy(), decay.log().numpy()).pvalue > 1e-3


def test_large_deviations_are_cut_where_a_threshold_would_not_be_positive():
    threshold, _ = constants(on_chip(NeuronVariation(threshold=2.0), LIF()), (N,))
    assert threshold.min() == 0.01
    assert 0.2 < (threshold == 0.01).double().mean() < 0.4
    _, decay = constants(on_chip(NeuronVariation(leak=2.0), LIF(0.5)), (N,))
    assert 0 < decay.min() < 0.5 < decay.max() < 1


SHAPE = (3, 4, 5)  # of neurons: channels and positions
PER_CHANNEL = [0.5, 0.8, 1.1]


def learnt():
    neuron = LearnableThresholdLIF(decay=PER_CHANNEL[0], threshold=PER_CHANNEL, learn_decay=False)
    return neuron, lambda x, th, de: lif(x, de, th)


CASES = {
    "LIF": lambda: (LIF(0.8, 0.6), lambda x, th, de: lif(x, de, th)),
    "channels": lambda: (LIF([0.7, 0.8, 0.9], PER_CHANNEL), lambda x, th, de: lif(x, de, th)),
    "hard": lambda: (LIF(0.8, reset="hard", refractory=2), lambda x, th, de: lif(x, de, th, "hard", refractory=2)),
    "PLIF": lambda: (PLIF(0.7), lambda x, th, de: lif(x, de, th)),
    "PLIF input": lambda: (PLIF([0.7, 0.8, 0.9], threshold=0.3, decay_input=True), lambda x, th, de: lif(x * (1 - de), de, th)),
    "learnt": learnt,
    "learnt both": lambda: (
        LearnableThresholdLIF(0.8, PER_CHANNEL, features=3, learn_decay=True), lambda x, th, de: lif(x, de, th)
    ),
    "ALIF": lambda: (
        ALIF(0.8, 0.5, adaptation=[0.1, 0.2, 0.3]),
        lambda x, th, de: alif(x, de, th, torch.tensor([0.1, 0.2, 0.3]).repeat_interleave(20)),
    ),
    "CuBaLIF": lambda: (CuBaLIF(0.4, 0.8), lambda x, th, de: lif(leaky_integral(x, 0.4), de, th)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_neuron_has_its_own_constants(case):
    """The functional form with one constant for each neuron, laid in a row; float32 and gradients too."""
    neuron, function = CASES[case]()
    varied = on_chip(NeuronVariation(0.2, 0.3), neuron)
    threshold, decay = (c.detach() for c in constants(varied, SHAPE, torch.float32))
    assert threshold.shape == decay.shape == (60,)
    assert len(threshold.unique()) == len(decay.unique()) == 60
    x = 2 * torch.rand(6, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.no_grad():
        assert not torch.equal(varied(x), neuron(x))
    spikes, expected = varied(a), function(b.flatten(2), threshold, decay).view_as(x)
    assert torch.equal(spikes, expected)
    weight = torch.rand(x.shape)
    (spikes * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    state, each = varied.initial_state(x[0]), []
    for x_t in x:
        y, state = varied.step(x_t, state)
        each.append(y)
        assert varied.potential(state).shape == x_t.shape
    assert (torch.stack(each) == spikes).float().mean() > 0.995  # another order of rounding at the threshold


@pytest.mark.parametrize(
    "neuron",
    [
        PLIF(PER_CHANNEL[:1] * 3, threshold=PER_CHANNEL),
        LearnableThresholdLIF(0.5, PER_CHANNEL),
        LearnableThresholdLIF(0.5, PER_CHANNEL, features=3, learn_decay=True),
        CuBaLIF(0.3, 0.5, PER_CHANNEL),
        ALIF(0.5, PER_CHANNEL),
    ],
)
def test_a_chip_varies_all_kinds_alike_learnt_or_not(neuron):
    variation = NeuronVariation(0.2, 0.3)
    of_lif, found = (constants(on_chip(variation, n, seed=4), SHAPE) for n in (LIF(0.5, PER_CHANNEL), neuron))
    for mine, theirs in zip(found, of_lif, strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-6, atol=0)


def test_channels_keep_their_nominal_values():
    varied = on_chip(NeuronVariation(threshold=1e-3), LIF([0.7, 0.8, 0.9], PER_CHANNEL))
    threshold, decay = constants(varied, SHAPE)
    torch.testing.assert_close(
        threshold.view(SHAPE).mean((1, 2)), torch.tensor(PER_CHANNEL).double(), rtol=1e-3, atol=0
    )
    assert torch.equal(decay.view(SHAPE)[1], torch.full((4, 5), 0.8))


def test_the_charge_of_a_precharged_neuron_follows_its_threshold():
    varied = on_chip(NeuronVariation(threshold=0.2), PrechargedIF(initial=0.5))
    threshold, _ = constants(varied, (7,))
    state = varied.initial_state(torch.zeros(1, 7, dtype=torch.float64))
    assert torch.equal(varied.potential(state)[0], threshold * 0.5)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_variation_that_rounds_to_nothing_is_the_neuron_bit_for_bit(reset):
    neuron = LIF(0.9, 0.6, reset=reset)
    varied, x = on_chip(NeuronVariation(1e-12, 1e-12), neuron), torch.rand(8, 3, 40)
    assert torch.equal(varied(x), neuron(x))
    assert on_chip(NeuronVariation(), neuron).__class__ is LIF


def test_a_chip_is_its_seed_and_does_not_draw():
    neuron, x = LIF(), torch.rand(6, 4, 30)
    one, again, other = (on_chip(NeuronVariation(0.3, 0.3), neuron, seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    chip = on_chip(NeuronVariation(0.3, 0.3), neuron, 1)
    assert not is_stochastic(chip)
    assert torch.equal(chip(x[:, 1:3]), one[:, 1:3])
    with draws(chip, 4):
        assert torch.equal(chip(x), one)


def test_learnt_constants_get_gradients():
    neuron = LearnableThresholdLIF(0.8, 1.0, learn_decay=True)
    varied = on_chip(NeuronVariation(0.2, 0.2), neuron)
    varied(torch.rand(6, 4, 30)).sum().backward()
    inner = varied.neuron
    assert inner.log_threshold.grad.abs() > 0
    assert inner.logit_decay.grad.abs() > 0
    assert [n for n, _ in varied.named_parameters()] == ["neuron.logit_decay", "neuron.log_threshold"]


def test_attacks_choose_the_surrogate():
    varied, x = on_chip(NeuronVariation(0.2), LIF()), torch.rand(6, 4, 30, requires_grad=True)
    grads = [torch.autograd.grad(varied(x).sum(), x)[0]]
    with override(varied, Sigmoid(4.0)):
        grads.append(torch.autograd.grad(varied(x).sum(), x)[0])
    assert not torch.equal(*grads)


def test_in_whole_networks_and_in_recurrent_layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Conv(4), Dense(6)), (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)).eval()
        recurrent = Recurrent(9, ALIF(threshold=0.3))
    x = torch.rand(5, 1, 4, 4)
    chip = deploy(model, NeuronVariation(0.4, 0.4), seed=0)
    assert not torch.equal(chip(x), model(x))
    chip = deploy(Sequential(recurrent), NeuronVariation(0.4), seed=0)
    sequence = torch.rand(6, 2, 9)
    assert not torch.equal(chip(sequence), recurrent(sequence))
    assert chip[0].membrane(sequence).shape == sequence.shape


def test_the_order_of_a_chain_does_not_matter():
    x = torch.rand(6, 4, 30)
    chip = on_chip(Chain(DeadNeurons(0.2), NeuronVariation(0.3)), LIF())
    dead = (chip(x + 10) == 0).all(0).all(0)
    assert 0 < dead.sum() < 30
    alone = chip.neuron(x)  # the varied neuron inside
    assert not torch.equal(alone, LIF()(x))
    assert torch.equal(chip(x), alone * ~dead)


class Own(Neuron):
    def __init__(self):
        super().__init__("soft", LIF().surrogate, True, 0)


del NEURONS["Own"]  # it is for this test alone


def test_errors_name_the_remedy():
    with pytest.raises(
        TypeError, match=r"NeuronVariation acts on the spiking neurons of snnrobust, got ReLU.*no threshold"
    ):
        deploy(ordinary((Dense(4),), (1, 4, 4), 3), NeuronVariation(0.1), seed=0)
    for neuron in (IF(), PrechargedIF(), LIF([1.0, 1.0])):
        with pytest.raises(ValueError, match=r"leak must be 0 for \w+ with decay 1"):
            NeuronVariation(0.1, 0.1).neuron(neuron)
    with pytest.raises(TypeError, match="NeuronVariation knows no threshold of Own"):
        NeuronVariation(0.1).neuron(Own())
    with pytest.raises(ValueError, match=r"threshold must be .* got -0.1"):
        NeuronVariation(threshold=-0.1)
    with pytest.raises(ValueError, match=r"distribution must be one of .*did you mean 'lognormal'"):
        NeuronVariation(0.1, distribution="log-normal")
    with pytest.raises(ValueError, match="3 values, one per channel, which do not fit neurons of shape"):
        on_chip(NeuronVariation(0.1), LIF([0.7, 0.8, 0.9]))(torch.rand(2, 2, 5))
