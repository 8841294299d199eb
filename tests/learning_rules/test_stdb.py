"""STDB: both phases, their surrogates and thresholds, resuming in either, and what it gains."""

import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust import data
from snnrobust.data import load, take
from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import RULES, STDB, Conversion, convert, scale_thresholds
from snnrobust.learning_rules.conversion_scales import neurons
from snnrobust.models import ARCHITECTURES, Conv, Dense, Dropout, Pool, Residual, SpikingClassifier, spiking
from snnrobust.neurons import IF, LIF, PrechargedIF
from snnrobust.neurons.surrogate import ATan, SpikeTime, Triangle

TRAIN, TEST = take(load("digits", "train"), 400), take(load("digits", "test"), 200)


MLP = (Dense(24), Dense(16))


def make(architecture=MLP, T=6, seed=0, neuron=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spiking(architecture, (1, 8, 8), 10, Direct(T), neuron or IF(), "none", MeanOutput())


def same(a, b):
    x = TEST[0]
    with torch.no_grad():
        return repr(a) == repr(b) and torch.equal(a(x), b(x))


def written_out(model, x, y, alpha, beta):
    """Loss and gradients of a network of linear layers and IF neurons, step by step in float64, by autograd."""
    synapses = [m for m in model.network if isinstance(m, nn.Linear)]
    thetas = [n.threshold for _, n in neurons(model)]
    parameters = [p.detach().clone().requires_grad_() for m in synapses for p in (m.weight, m.bias)]
    v = [torch.zeros(len(x), m.out_features, dtype=torch.float64) for m in synapses[:-1]]
    quiet = [torch.full_like(u, 1000.0) for u in v]
    total = 0.0
    for _ in range(model.time_steps):
        s = x.flatten(1)
        for i, theta in enumerate(thetas):
            h = v[i] + s @ parameters[2 * i].T + parameters[2 * i + 1]
            slope = alpha / theta * torch.exp(-beta * quiet[i])
            fired = (h.detach() >= theta).double()
            s = fired + slope * (h - h.detach())
            v[i] = h - theta * fired
            quiet[i] = torch.where(fired > 0, 1.0, quiet[i] + 1)
        total = total + s @ parameters[-2].T + parameters[-1]
    loss = F.cross_entropy(total / model.time_steps, y)
    return loss, torch.autograd.grad(loss, parameters)


def test_the_gradient_is_that_of_the_equations():
    torch.manual_seed(0)
    model = make().double()
    for (_, neuron), theta in zip(neurons(model), (0.4, 0.15), strict=True):
        neuron.threshold = theta
    x, y = TEST[0][:9].double(), TEST[1][:9]
    loss, expected = written_out(model, x, y, 0.3, 0.1)
    with STDB(surrogate=SpikeTime(0.3, 0.1), ann_epochs=0).lend(model, x[:1]) as lent:
        found, logits = lent.backward(x, y, 0.5)
    assert found == pytest.approx(loss.item())
    assert torch.equal(logits, model(x))
    assert all((g != 0).any() for g in expected)
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 0.5 * g, rtol=1e-9, atol=1e-12)


def test_the_input_gradient_is_each_samples_own():
    model, rule = make().double(), STDB(ann_epochs=0, surrogate=ATan(1.0))
    for _, neuron in neurons(model):
        neuron.threshold = 0.3
    x, y = TEST[0][:5].double(), TEST[1][:5]
    own = [n.surrogate for _, n in neurons(model)]
    whole = rule.input_gradient(model, x, y)
    for i in range(5):
        torch.testing.assert_close(rule.input_gradient(model, x[i : i + 1], y[i : i + 1]), whole[i : i + 1])
    assert (whole != 0).any()
    assert [n.surrogate for _, n in neurons(model)] == own


def test_surrogates_are_lent_in_proportion_and_put_back():
    model = make()
    for (_, neuron), theta in zip(neurons(model), (0.5, 2.0), strict=True):
        neuron.threshold = theta
    own = [n.surrogate for _, n in neurons(model)]
    rule = STDB(ann_epochs=0, surrogate=Triangle(0.3, 1.0))
    seen = []

    def fail():
        with rule.lend(model, TEST[0][:1]):
            seen.extend(n.surrogate for _, n in neurons(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [Triangle(0.6, 0.5), Triangle(0.15, 2.0)]
    assert [n.surrogate for _, n in neurons(model)] == own


def test_thresholds_are_scaled_after_the_conversion():
    model, plain = make(), make()
    history = STDB(ann_epochs=2, scaling=0.7).fit(model, TRAIN, TEST, epochs=1, progress=False)
    settings = {"method": "balancing", "initial": 0.0}
    before = Conversion(**settings).fit(plain, TRAIN, TEST, epochs=2, progress=False)
    thetas = [n.threshold for _, n in neurons(plain)]
    assert [n.threshold for _, n in neurons(model)] == pytest.approx([0.7 * theta for theta in thetas])
    report = history.conversion
    assert [layer["threshold"] for layer in report["layers"]] == thetas
    assert report["validation_accuracy"] == before.conversion["validation_accuracy"]
    assert [r["loss"] for r in report["ann_records"]] == [r["loss"] for r in before.records]
    scale_thresholds(plain, 0.7)
    with torch.no_grad():
        right = float((plain(TEST[0]).argmax(1) == TEST[1]).float().mean())
    assert report["scaled_validation_accuracy"] == pytest.approx(right)
    assert [r["epoch"] for r in history.records] == [1]
    for _, neuron in neurons(model):  # the model's own surrogate, as wide as its threshold
        assert neuron.surrogate.alpha == pytest.approx(2.0 / neuron.threshold)


def test_from_a_network_that_was_converted_apart():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    for initial in (0.0, 0.5):
        model, _ = convert(ann, TRAIN, time_steps=6, method="balancing", initial=initial)
        scale_thresholds(model, 0.7)
        theta = neurons(model)[0][1].threshold
        history = STDB(ann_epochs=0, lr=1e-2).fit(model, TRAIN, TEST, epochs=3, progress=False)
        assert neurons(model)[0][1].threshold == theta
        assert type(neurons(model)[0][1]) is (PrechargedIF if initial else IF)
        assert history.conversion == {}
        assert history.last["loss"] < history.records[0]["loss"]


class Killed(BaseException):
    pass


class Limited(torch.utils.data.Dataset):
    def __init__(self, left):
        self.left = left

    def __len__(self):
        return len(TRAIN[0])

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return TRAIN[0][index], TRAIN[1][index]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("epochs_before", "files"), [(1.5, {"c.ann"}), (3.5, {"c.ann", "c.converted", "c"})])
def test_resuming_in_either_phase(epochs_before, files, schedule, tmp_path):
    rule = STDB(ann_epochs=2, lr=1e-3, batch_size=50, schedule=schedule, samples=100)
    settings = {"epochs": 2, "progress": False}
    architecture = (Dense(24), Dropout(0.2), Dense(16))
    whole = make(architecture)
    history = rule.fit(whole, Limited(10**9), TEST, **settings)
    path = tmp_path / "c"
    with pytest.raises(
        Killed
    ):  # samples are read for the model's check, two epochs, the calibration, another check, two epochs
        rule.fit(make(architecture), Limited(int(400 * epochs_before) + 110), TEST, **settings, checkpoint=path)
    assert {p.name for p in tmp_path.iterdir()} == files
    resumed = make(architecture, seed=7)
    again = rule.fit(resumed, Limited(10**9), TEST, **settings, checkpoint=path)
    assert same(resumed, whole)
    assert again.conversion["accuracies"] == history.conversion["accuracies"]
    assert [r["loss"] for r in again.records] == [r["loss"] for r in history.records]


@pytest.mark.parametrize("initial", [0.0, 0.5])
@pytest.mark.parametrize(("epochs_before", "second"), [(2.8, False), (3.5, True)])
def test_the_very_model_that_was_interrupted_goes_on(epochs_before, second, initial, tmp_path):
    """Killed in the first or second epoch of phase two; then extended by an epoch."""
    rule = STDB(ann_epochs=2, lr=1e-3, batch_size=50, samples=100, initial=initial)
    settings = {"progress": False, "checkpoint": tmp_path / "c"}
    whole, model = make(), make()
    rule.fit(whole, Limited(10**9), TEST, epochs=2, progress=False)
    with pytest.raises(Killed):
        rule.fit(model, Limited(int(400 * epochs_before) + 110), TEST, epochs=2, **settings)
    assert (tmp_path / "c").exists() == second
    with pytest.raises(ValueError, match=r"was converted already.*start from a new one.*ann_epochs=0"):
        rule.fit(model, Limited(10**9), TEST, epochs=2, progress=False)
    (tmp_path / "c.ann").unlink()  # what it became is enough
    first = rule.fit(model, Limited(10**9), TEST, epochs=2, **settings)
    assert same(model, whole)
    again = rule.fit(model, Limited(10**9), TEST, epochs=3, **settings)
    assert again.records[:2] == first.records
    assert len(again.records) == 3
    assert again.conversion == first.conversion
    for _, neuron in neurons(model):
        assert neuron.surrogate.alpha == pytest.approx(2.0 / neuron.threshold)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(ValueError, match=r"c\.converted is of another training \(ann_epochs differ\)"):
        STDB(ann_epochs=3, lr=1e-3, batch_size=50, samples=100, initial=initial).fit(
            make(), Limited(10**9), TEST, epochs=3, **settings
        )
    assert (tmp_path / "c").read_bytes() == before


def test_without_the_file_of_what_it_became_it_is_converted_once_more(tmp_path):
    rule, model = STDB(ann_epochs=1, samples=100), make()
    settings = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "c"}
    first = rule.fit(model, TRAIN, TEST, **settings)
    (tmp_path / "c.converted").unlink()
    assert rule.fit(model, TRAIN, TEST, **settings).conversion == first.conversion


def test_one_neuron_in_several_places_goes_on(tmp_path):
    def shared():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            a, b = IF(surrogate=ATan(3.0)), IF()
            linear = [nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 10)]
            network = Sequential(nn.Flatten(), linear[0], a, linear[1], b, linear[2], a, linear[3])
            return SpikingClassifier(Direct(4), network, MeanOutput())

    rule, model, fresh = STDB(ann_epochs=2, ann_lr=1e-2, samples=100), shared(), shared()
    settings = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "c"}
    rule.fit(model, TRAIN, **settings)
    alphas = [n.surrogate.alpha * n.threshold for _, n in neurons(model)]
    assert alphas == pytest.approx([3.0, 2.0, 3.0])
    rule.fit(fresh, TRAIN, **settings)
    assert same(fresh, model)


def test_the_phases_have_logs_of_their_own(tmp_path):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        STDB(ann_epochs=1, samples=50).fit(make(), TRAIN, epochs=1, progress=False, log=tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.is_file()]) == 1
    assert len(list((tmp_path / "ann").iterdir())) == 1


def test_it_gains_over_plain_conversion_and_starts_above_a_random_start():
    train, test = load("digits", "train"), load("digits", "test")
    history = STDB(ann_epochs=4, ann_lr=3e-3).fit(
        make(ARCHITECTURES["conv-small"], T=4), train, test, epochs=3, progress=False
    )
    random = STDB(ann_epochs=0).fit(make(ARCHITECTURES["conv-small"], T=4), train, test, epochs=1, progress=False)
    report = history.conversion
    assert report["scaled_validation_accuracy"] > random.last["validation_accuracy"] + 0.1
    assert history.last["validation_accuracy"] > report["validation_accuracy"] + 0.02
    assert history.last["validation_accuracy"] > 0.9


@pytest.mark.parametrize("surrogate", [SpikeTime(), ATan(), Triangle()])
def test_residual_networks_and_any_surrogate(surrogate):
    model = make((Conv(4), Residual((Conv(4), Conv(4))), Pool(4)), T=5)
    rule = STDB(ann_epochs=2, ann_lr=1e-2, lr=1e-3, surrogate=surrogate)
    history = rule.fit(model, TRAIN, epochs=3, progress=False)
    assert history.conversion["validation_accuracy"] is None
    assert history.conversion["scaled_validation_accuracy"] is None
    assert history.records[-1]["loss"] < history.records[0]["loss"]


REFUSED = {
    "converted": (lambda: make(neuron=PrechargedIF()), {}, "was converted already"),
    "converted from zero": (
        lambda: convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), TRAIN, time_steps=4,
                        initial=0.0)[0],
        {}, "was converted already",
    ),
    "frozen": (lambda: make().requires_grad_(False), {}, "network.1.weight is frozen"),
    "leak": (lambda: make(neuron=LIF(0.9)), {}, "use IF(), which has no leak"),
    "leak later": (lambda: make(neuron=LIF(0.9)), {"ann_epochs": 0}, "use IF(), which has no leak"),
    "channels": (lambda: make((Dense(2),), neuron=IF([1.0, 2.0])), {"ann_epochs": 0}, "one per channel: give it a number"),
    "no bias": (
        lambda: SpikingClassifier(
            Direct(4), Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), IF(), nn.Linear(8, 10)), MeanOutput()
        ),
        {},
        "use batch_norm=False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_training(case):
    build, settings, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        STDB(**settings).refuse(build(), TRAIN[0][:1])
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        STDB(**settings).fit(build(), TRAIN, epochs=1, progress=False)


def test_settings():
    assert RULES["STDB"] is STDB
    assert STDB.needs == Conversion.needs
    rule = STDB()
    assert (rule.lr, rule.scaling, rule.method, rule.surrogate) == (1e-4, 0.7, "balancing", SpikeTime(0.3, 0.01))
    with pytest.raises(ValueError, match="channel"):
        scale_thresholds(nn.Sequential(IF([1.0, 2.0])), 0.7)
    wrong_ones = {
        "ann_epochs": -1,
        "scaling": 0.0,
        "ann_lr": 0.0,
        "surrogate": 1.0,
        "levels": 0,
        "samples": 0,
        "initial": 2.0,
    }
    for wrong in ({name: value} for name, value in wrong_ones.items()):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            STDB(**wrong)


def test_no_more_than_the_first_steps_of_a_silent_neuron():
    """One that never fired passes e^(-10), not zero and not one (Rathi et al. 2020)."""
    model = make().double()
    for _, neuron in neurons(model):
        neuron.threshold = 1e6
    x = TEST[0][:3].double()
    gradient = STDB(ann_epochs=0, surrogate=SpikeTime(0.3 * 1e6, 0.01)).input_gradient(model, x, TEST[1][:3])
    passed = STDB(ann_epochs=0, surrogate=SpikeTime(0.3 * 1e6 * math.e, 0.01)).input_gradient(model, x, TEST[1][:3])
    torch.testing.assert_close(passed, gradient * math.e**2)  # two layers of neurons
    assert 0 < gradient.abs().max() < 1e-6


@pytest.mark.slow
def test_fashion_mnist():
    try:
        train, test = take(data.load("fashion-mnist", "train"), 5000), take(data.load("fashion-mnist", "test"), 1000)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not there: set SNNROBUST_DATA")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking(ARCHITECTURES["conv-small"], (1, 28, 28), 10, Direct(8), IF(), "none", MeanOutput())
    history = STDB(ann_epochs=4).fit(model, train, test, epochs=3, progress=False)
    assert history.conversion["scaled_validation_accuracy"] > 0.3
    assert history.last["validation_accuracy"] > history.conversion["validation_accuracy"] + 0.01
