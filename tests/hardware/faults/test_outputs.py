from copy import deepcopy

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct, Poisson
from snnrobust.hardware import BACKENDS, Chain, deploy
from snnrobust.hardware.faults import DeadNeurons, SpikeInsertion, SpikeLoss, StuckNeurons
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, PrechargedIF, Recurrent

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
LIVELY = LIF(threshold=0.1)  # untrained layers would not spike at 1
N = 10_000


def on_chip(backend, neuron, seed=0, features=N):
    """A chip with one neuron layer, and the module in its place, for ``[T, B, features]``."""
    model = Sequential(nn.Linear(1, 1), neuron)
    return deploy(model, backend, seed=seed)[1]


def spikes(T=4, B=2, features=N, rate=0.4, seed=0):
    return (torch.rand(T, B, features, generator=torch.Generator().manual_seed(seed)) < rate).float()


def agrees(hits, trials, p):
    """Binomial test, level 0.001."""
    assert stats.binomtest(int(hits), int(trials), p).pvalue > 1e-3


def relay():
    """Emits what it is given."""
    return IF(threshold=0.5, reset="hard")


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_rates(rate, seed):
    s = spikes()
    clean = relay()(s)
    assert torch.equal(clean, s)
    dead = on_chip(DeadNeurons(rate), relay(), seed)(torch.ones_like(s))
    assert torch.equal(dead, dead[:1, :1].expand_as(dead))
    agrees((dead[0, 0] == 0).sum(), N, rate)
    stuck = on_chip(StuckNeurons(rate), relay(), seed)(torch.zeros_like(s))
    assert torch.equal(stuck, stuck[:1, :1].expand_as(stuck))
    agrees(stuck[0, 0].sum(), N, rate)
    with draws(chip := on_chip(SpikeLoss(rate), relay(), seed), seed):
        lossy = chip(s)
    assert (lossy <= s).all()
    agrees((s - lossy).sum(), s.sum(), rate)
    with draws(chip := on_chip(SpikeInsertion(rate), relay(), seed), seed):
        more = chip(s)
    assert (more >= s).all()
    agrees((more - s).sum(), (1 - s).sum(), rate)


@pytest.mark.parametrize("fault", [SpikeLoss, SpikeInsertion])
@pytest.mark.parametrize(
    ("drawn", "steps_equal", "samples_equal", "forwards_equal"),
    [("step", False, False, False), ("inference", True, False, False), ("chip", True, True, True)],
)
def test_when_faults_of_spikes_are_drawn(fault, drawn, steps_equal, samples_equal, forwards_equal):
    chip = on_chip(fault(0.3, drawn=drawn), relay())
    x = torch.ones(4, 3, 50) if fault is SpikeLoss else torch.zeros(4, 3, 50)
    found = []
    for key in (1, 1, 2):
        with draws(chip, key):
            found.append(chip(x))
    one, again, other = found
    assert torch.equal(one, again)
    assert torch.equal(one[0], one[1]) == steps_equal
    assert torch.equal(one[:, 0], one[:, 1]) == samples_equal
    assert torch.equal(one, other) == forwards_equal
    assert is_stochastic(chip) == (drawn != "chip")


@pytest.mark.parametrize("drawn", ["step", "inference"])
def test_steps_and_samples_are_independent(drawn):
    """Two draws with rate 1/2 agree as often as not; binomial test at 0.001."""
    chip = on_chip(SpikeLoss(0.5, drawn=drawn), relay())
    with draws(chip, 0):
        y = chip(torch.ones(2, 2, N))
    agrees((y[:, 0] == y[:, 1])[0].sum(), N, 0.5)
    if drawn == "step":
        agrees((y[0] == y[1]).sum(), 2 * N, 0.5)


@pytest.mark.parametrize("fault", [DeadNeurons, StuckNeurons, SpikeLoss, SpikeInsertion])
def test_a_sample_does_not_depend_on_its_batch(fault):
    chip, x = on_chip(fault(0.3), LIF()), torch.rand(4, 6, 30)
    ids = torch.tensor([3, 5, 8, 13, 21, 34])
    with draws(chip, 1, ids):
        whole = chip(x)
    with draws(chip, 1, ids[2:4]):
        part = chip(x[:, 2:4])
    assert torch.equal(whole[:, 2:4], part)


NEURONS = [
    LIF(), IF(refractory=1), PLIF(), LearnableThresholdLIF(features=30), ALIF(), CuBaLIF(), PrechargedIF(reset="hard"),
]  # fmt: skip


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("drawn", ["step", "inference"])
def test_streaming_agrees(neuron, drawn):
    """forward, step by step, and in two pieces, under one key."""
    chip, x = on_chip(Chain(DeadNeurons(0.1), SpikeInsertion(0.2, drawn=drawn)), neuron), torch.rand(6, 3, 30) * 2
    with draws(chip, 5):
        whole = chip(x)
        state, each = chip.initial_state(x[0]), []
        for x_t in x:
            y, state = chip.step(x_t, state)
            each.append(y)
        first, middle = chip.advance(x[:2], chip.initial_state(x[0]))
        second, _ = chip.advance(x[2:], middle)
    assert torch.equal(whole, torch.stack(each))
    assert torch.equal(whole, torch.cat([first, second]))
    assert whole.unique().tolist() == [0, 1]


def test_inside_a_recurrent_layer_the_neurons_hear_the_faults():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recurrent = Recurrent(20, LIF(threshold=0.5))
    x = torch.rand(6, 3, 20)
    chip = deploy(Sequential(recurrent), DeadNeurons(0.5), seed=1)
    dead = chip[0].neuron.fault.mask(torch.Size((1, 1, 20)), 0, x.device)[0, 0]
    assert 0 < dead.sum() < 20
    by_hand = deepcopy(recurrent)
    by_hand.recurrent.weight.data[:, dead] = 0.0  # nobody hears them
    expected = by_hand(x) * ~dead
    assert torch.equal(chip(x), expected)
    assert not torch.equal(expected, recurrent(x) * ~dead)
    assert chip[0].membrane(x).shape == x.shape


@pytest.mark.parametrize(
    "make",
    [lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3), lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIVELY)],
    ids=["ann", "snn"],
)
def test_no_rate_is_the_model_bit_for_bit_and_a_chip_is_its_seed(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    spike_only = [] if isinstance(model, nn.Sequential) else [SpikeInsertion]
    for rate, equal in ((0.0, True), (0.3, False)):
        for fault in [DeadNeurons, StuckNeurons, SpikeLoss, *spike_only]:
            chips = [deploy(model, fault(rate), seed=seed) for seed in (7, 7, 8)]
            found = []
            for m in (model, *chips):
                with torch.no_grad(), draws(m, 3):
                    found.append(m(x))
            assert torch.equal(found[0], found[1]) == equal
            assert torch.equal(found[1], found[2])
            per_chip = fault in (DeadNeurons, StuckNeurons)  # the others draw by the key of the forward pass
            assert torch.equal(found[1], found[3]) == (equal or not per_chip)


def test_layers_of_neurons_have_patterns_of_their_own():
    model = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU())
    chip = deploy(model, StuckNeurons(0.5, value=-1.0), seed=0)
    stuck = [chip[i](torch.zeros(1, 200)) for i in (1, 3)]
    assert not torch.equal(*stuck)
    chain = deploy(model, Chain(StuckNeurons(0.5, value=-1.0), StuckNeurons(0.5, value=-2.0)), seed=0)[1](
        torch.zeros(1, 200)
    )
    assert chain.unique().tolist() == [-2.0, -1.0, 0.0]  # independent: some neurons are stuck by the first alone


def test_in_an_ordinary_network_each_call_is_a_step_and_forwards_begin_anew():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 100), relu, nn.Linear(100, 100), relu)
    chip = deploy(model, SpikeLoss(0.5), seed=0)
    assert is_stochastic(chip)
    x = torch.rand(2, 4)
    with draws(chip, 1):
        assert torch.equal(chip(x), chip(x))
        one = chip(x)
    with draws(chip, 2):
        assert not torch.equal(one, chip(x))


def test_a_position_of_a_channel_is_a_neuron():
    model = spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIVELY).eval()
    chip = deploy(model, StuckNeurons(0.4), seed=0)
    x, seen = torch.rand(2, 1, 4, 4), []
    chip.network[2].register_forward_hook(lambda m, given, y: seen.append(y))
    chip(x)
    mask = chip.network[2].fault.mask(seen[0].shape, 0, x.device)[0, 0]
    assert mask.shape == (4, 4, 4)
    assert (seen[0].movedim((0, 1), (-2, -1))[mask] == 1).all()
    assert all(0 < channel.float().mean() < 1 for channel in mask)


@pytest.mark.parametrize(
    ("fault", "value"),
    [(DeadNeurons(0.3), 0.0), (StuckNeurons(0.3), 1.0), (SpikeLoss(0.3), 0.0), (SpikeInsertion(0.3), 1.0)],
)
def test_the_gradient_is_that_of_the_multilinear_form(fault, value):
    neuron = on_chip(fault, LIF())
    x = torch.rand(4, 2, 50, dtype=torch.float64) * 2
    grad = torch.rand(4, 2, 50, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with draws(neuron, 0):
        y = neuron(a)
        mask = neuron.fault.mask(y.shape, 0, y.device)
    y.backward(grad)
    s = LIF()(b)
    expected = torch.where(mask, value, s)
    (s * ~mask * grad).sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(a.grad, b.grad)
    assert a.grad.abs().sum() > 0


def test_over_draws_the_gradient_is_that_of_the_mean():
    """E[(1 - r) s + r c]: over 2,000 draws within five standard errors, ReLU."""
    chip = deploy(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), SpikeLoss(0.25), seed=0)[1]
    x = torch.ones(2000, 1, requires_grad=True)
    with draws(chip, 0):
        chip(x).sum().backward()
    assert abs(float(x.grad.mean()) - 0.75) < 5 * (0.25 * 0.75 / 2000) ** 0.5


class Foreign(nn.Module):
    spike_grad = None


def test_errors_name_the_remedy():
    with pytest.raises(TypeError, match=r"SpikeInsertion acts on the spiking neurons .* got ReLU.*StuckNeurons"):
        deploy(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), SpikeInsertion(0.1), seed=0)
    with pytest.raises(TypeError, match=r"DeadNeurons acts on .*nn.ReLU, got Foreign"):
        DeadNeurons(0.1).neuron(Foreign())
    for fault in (DeadNeurons, StuckNeurons, SpikeLoss, SpikeInsertion):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
            fault(1.5)
        with pytest.raises(TypeError, match="rate must be a number"):
            fault("0.1")
    with pytest.raises(
        ValueError, match=r"drawn must be one of chip, inference, step; got 'steps' \(did you mean 'step'"
    ):
        SpikeLoss(0.1, drawn="steps")
    with pytest.raises(ValueError, match="value must be in"):
        StuckNeurons(0.1, value=float("nan"))
    with pytest.raises(RuntimeError, match="DeadNeurons is on no chip yet"):
        DeadNeurons(0.1).neuron(LIF())(torch.ones(1, 1, 1))


def test_names_and_descriptions():
    assert {"DeadNeurons", "StuckNeurons", "SpikeLoss", "SpikeInsertion"} < set(BACKENDS)
    assert "OutputFault" not in BACKENDS
    assert repr(StuckNeurons(0.1)) == "StuckNeurons(rate=0.1, value=1.0)"
    assert repr(SpikeLoss(0.1)) == "SpikeLoss(rate=0.1, drawn='step')"


def test_a_classifier_can_be_attacked_and_streamed():
    model = SpikingClassifier(Direct(3), Sequential(nn.Linear(5, 8), LIVELY, nn.Linear(8, 2)), MeanOutput())
    chip = deploy(model, Chain(DeadNeurons(0.2), SpikeLoss(0.2)), seed=3)
    x = torch.rand(4, 5, requires_grad=True)
    with draws(chip, 1):
        logits = chip(x)
        assert torch.allclose(list(chip.stream(x))[-1], logits, atol=1e-6)
    logits.sum().backward()
    assert x.grad.isfinite().all()
