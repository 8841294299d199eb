"""Layers that are dead or saturated are named while they are trained, and watching changes nothing."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.encoders import Direct, Poisson, Rows
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import BPTT, TrainingWarning, supervised
from snnrobust.learning_rules.activity import Activity
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, Recurrent


@pytest.fixture(scope="module")
def digits():
    return data.take(data.load("digits", "train"), 80)


@pytest.fixture
def always(monkeypatch):
    """Every step is watched."""
    monkeypatch.setattr(supervised, "_WATCH", 1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def dense(neuron, encoder=None):
    network = Sequential(nn.Flatten(), nn.Linear(64, 12), neuron, nn.Linear(12, 10))
    return SpikingClassifier(encoder or Direct(4), network, MeanOutput())


def recurrent(threshold):
    network = Sequential(nn.Linear(8, 12), Recurrent(12, IF(threshold)), nn.Linear(12, 10))
    return SpikingClassifier(Rows(8), network, MeanOutput())


def relu():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    model[1].bias.data.fill_(-100.0)
    return model


def saturated():
    model = dense(IF(1e-3))
    model.network[1].bias.data.fill_(100.0)
    return model


CASES = {
    "dead": (lambda: dense(LIF(0.5, 1e4)), r"network\.2 \(LIF\) has not fired in the last 3 .*: lower its threshold"),
    "dead ALIF": (lambda: dense(ALIF(0.5, 1e4)), r"network\.2 \(ALIF\) has not fired"),
    "saturated": (saturated, r"network\.2 \(IF\) fires at 100\.0% of all steps .*: raise its threshold"),
    "recurrent": (lambda: recurrent(1e4), r"network\.1 \(Recurrent\) has not fired"),
    "ReLU": (relu, r"2 \(ReLU\) has been zero in the last 3 watched batches .*: lower lr"),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.usefixtures("always")
def test_a_dead_or_saturated_layer_is_named_once_and_while_it_happens(kind, digits):
    make, words = CASES[kind]
    x, y = digits
    model = seeded(make)
    done = []
    handle = model.register_forward_hook(lambda *_: done.append(model.training))
    with pytest.warns(TrainingWarning, match=words) as caught:
        BPTT(batch_size=16).fit(model, (x, y), epochs=2, progress=False)
    handle.remove()
    assert len(caught) == 1
    assert "(epoch 1, step 3)" in str(caught[0].message)


@pytest.mark.usefixtures("always")
def test_a_warning_that_is_an_error_stops_the_training_in_its_third_step(digits):
    model = seeded(lambda: dense(LIF(0.5, 1e4))).eval()
    before = deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TrainingWarning):
            BPTT(batch_size=16).fit(model, digits, epochs=1, progress=False)
    assert not torch.equal(model.network[3].bias, before["network.3.bias"])
    assert not model.training
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


def test_a_layer_that_looks_dead_is_watched_again_soon_and_one_that_fires_is_not(digits):
    x, y = (t.repeat(*(4,) + (1,) * (t.dim() - 1)) for t in digits)
    with pytest.warns(TrainingWarning, match=r"epoch 1, step 11\)"):
        BPTT(batch_size=4).fit(seeded(lambda: dense(LIF(0.5, 1e4))), (x, y), epochs=1, progress=False)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        judge = Activity.judge
        patch.setattr(
            Activity, "judge", lambda self, e, step, *rest: (seen.append(step), judge(self, e, step, *rest))[1]
        )
        BPTT(batch_size=4).fit(seeded(lambda: dense(LIF(0.5, 0.1))), (x, y), epochs=1, progress=False)
    assert seen == list(range(0, -(-len(x) // 4), 50))


def test_passes_in_eval_mode_as_of_an_attack_are_not_counted():
    model = nn.Sequential(nn.ReLU())
    activity = Activity(model)
    with activity.watching():
        model.eval()(torch.ones(4))
        model.train()(-torch.ones(4))
    activity.judge(0, 0)
    assert activity.rates() == ({"0": 0.0}, None)


def test_strikes_have_to_be_in_a_row():
    model = nn.Sequential(nn.ReLU())
    activity = Activity(model)

    def batch(value):
        with activity.watching():
            model(torch.full((4,), value))
        activity.judge(0, 0)

    for value in (-1.0, -1.0, 1.0, -1.0, -1.0):
        batch(value)
    with pytest.warns(TrainingWarning, match="0 "):
        batch(-1.0)
    assert activity.rates() == ({"0": pytest.approx(1 / 6)}, None)
    assert activity.rates() == ({}, None)  # begun again


def test_a_relu_that_is_never_zero_is_no_fault():
    activity = Activity(model := nn.Sequential(nn.ReLU()))
    for step in range(4):
        with activity.watching():
            model(torch.ones(3))
        activity.judge(0, step)


def test_rates_are_weighted_by_neurons():
    big, small = LIF(0.0, 0.5), LIF(0.0, 0.5)
    activity = Activity(model := nn.ModuleDict({"big": big, "small": small, "relu": nn.ReLU()}))
    with activity.watching():
        big(torch.ones(2, 1, 30))
        small(torch.zeros(2, 1, 10))
        small(torch.ones(2, 1, 10))
        model["relu"](torch.tensor([-1.0, 2.0]))
    activity.judge(0, 0)
    rates, mean = activity.rates()
    assert rates == {"big": 1.0, "small": 0.5, "relu": 0.5}
    assert mean == pytest.approx(80 / 100)


def test_what_a_layer_does_inside_its_forward_is_not_counted_again():
    layer = Recurrent(5, IF(0.5))  # its forward takes the steps one by one
    activity = Activity(nn.Sequential(layer))
    seen = []
    with activity.watching():
        layer(torch.ones(3, 2, 5))
    activity.judge(0, 0, lambda *counts: seen.extend(counts) or list(counts))
    assert seen[1] == 3 * 2 * 5


def test_a_rule_that_runs_neurons_itself_reports_them():
    layer = LIF(0.0, 0.5)
    activity = Activity(nn.Sequential(layer))
    activity.see(layer, torch.ones(3, 2))  # nobody watches
    with activity.watching(hooks=False):
        assert activity.on
        layer(torch.ones(2, 1, 3))  # no hook
        activity.see(layer, torch.tensor([1.0, 0.0, 0.0, 0.0]))
        activity.see(nn.ReLU(), torch.ones(3))  # not one of its layers
    activity.judge(0, 0)
    assert activity.rates() == ({"0": 0.25}, 0.25)


def test_counts_of_all_processes_are_judged_together():
    layer = LIF(0.0, 0.5)
    activity = Activity(nn.Sequential(layer))
    for step in range(4):
        with activity.watching():
            layer(torch.zeros(1, 1, 4))
        activity.judge(0, step, lambda fired, size: [fired + 3, size + 4])  # another one's neurons fire
    assert activity.rates() == ({"0": 3 / 8}, 3 / 8)
    for step in range(3):
        with activity.watching():
            layer(torch.zeros(1, 1, 4))
        activity.judge(0, step, speak=False)  # without a word


@pytest.mark.parametrize("encoder", [Direct(6), Poisson(6)], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("neuron", [LIF(0.8, 0.3), PLIF(0.8, 0.3), ALIF(0.8, 0.3)], ids=lambda n: type(n).__name__)
def test_truncated_training_is_watched_too(encoder, neuron, digits):
    """Pieces of a sequence go by no hook; the rate is that of the whole sequence, recomputed pieces not counted twice."""
    rates = []
    for truncate in (None, 2, 4):
        model = seeded(lambda: dense(deepcopy(neuron), encoder))
        history = BPTT(batch_size=80, truncate=truncate, lr=1e-9).fit(model, digits, epochs=1, progress=False)
        rates.append(history.last["rates"])
        assert not any({"advance", "step"} & vars(m).keys() for m in model.modules())
    assert 0.01 < rates[0]["network.2"] < 0.9
    assert rates[0] == rates[1] == rates[2]


MODELS = {
    "no norm, Poisson": lambda: spiking(
        (Conv(3), Pool(), Dense(8)), (1, 8, 8), 10, Poisson(4), LIF(0.8, 0.1), norm="none"
    ),
    "TEBN": lambda: spiking((Conv(3), Pool(), Dense(8)), (1, 8, 8), 10, Poisson(4), norm="TEBN"),
    "ANN": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_watching_changes_no_bit_where_nothing_is_fused(kind, digits, monkeypatch):
    found = []
    for every in (1, 10**9):
        monkeypatch.setattr(supervised, "_WATCH", every)
        model = seeded(MODELS[kind])
        BPTT(lr=1e-2, batch_size=16).fit(model, digits, epochs=2, progress=False)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(("encoder", "norm"), [(Direct(4), "none"), (Direct(4), "BNTT"), (Poisson(4), "BatchNorm")])
def test_elsewhere_it_changes_roundings(encoder, norm, digits, monkeypatch):
    """A layer with a hook is shown every step, and its normalisation by itself: sums are in another order."""
    found = []
    for every in (1, 10**9):
        monkeypatch.setattr(supervised, "_WATCH", every)
        model = seeded(lambda: spiking((Conv(3), Pool(), Dense(8)), (1, 8, 8), 10, encoder, LIF(0.8, 0.1), norm))
        BPTT(batch_size=80, optimizer="sgd", momentum=0.0, lr=1.0).fit(model, digits, epochs=1, progress=False)
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_a_compiled_model_is_trained_and_not_watched(digits):
    torch.compiler.reset()
    compiled = []
    plain = seeded(MODELS["ANN"])

    def backend(graph, _):
        compiled.append(graph)
        return graph

    model = torch.compile(seeded(MODELS["ANN"]), backend=backend)
    history = BPTT(lr=1e-2, batch_size=16).fit(model, digits, epochs=2, progress=False)
    assert history.last["rates"] == {}
    assert len(compiled) < 8  # by mode and batch size, and not by step
    BPTT(lr=1e-2, batch_size=16).fit(plain, digits, epochs=2, progress=False)
    for name, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[f"_orig_mod.{name}"], value, rtol=1e-5, atol=1e-6)
