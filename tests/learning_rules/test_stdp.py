"""STDP: what it learns, what it never sees, and what is left afterwards."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnrobust import data
from snnrobust.draws import derive, draws
from snnrobust.encoders import Direct, Poisson, SignedPoisson
from snnrobust.layers import LastOutput, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.learning_rules import RULES, STDP, TrainingWarning
from snnrobust.learning_rules.plasticity import bounded, compete, pair_sums
from snnrobust.learning_rules.stdp import _logistic_regression, _Training
from snnrobust.models import ARCHITECTURES, Conv, Dense, SpikingClassifier, load, ordinary, save, spiking
from snnrobust.neurons import IF, LIF, PLIF


def fresh(neurons=20, encoder=None, neuron=None, readout=None, shape=(1, 8, 8)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Poisson(6) if encoder is None else encoder
        return spiking((Dense(neurons),), shape, 10, encoder, neuron, norm="none", readout=readout)


@pytest.fixture(scope="module")
def digits():
    x, y = data.take(data.load("digits", "train"), 400)
    return (x[:300], y[:300]), (x[300:], y[300:])


def fit(model, digits, epochs=1, rule=None, **k):
    rule = STDP() if rule is None else rule
    return rule.fit(model, digits[0], digits[1], epochs=epochs, progress=False, **k)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "neuron"), [(Poisson(8), None), (Direct(4), IF(reset="hard"))])
def test_digits_are_learnt(encoder, neuron):
    """500 test samples: three standard errors are below 0.04."""
    model = fresh(100, encoder, neuron)
    test = data.load("digits", "test")
    history = STDP().fit(model, data.load("digits", "train"), test, epochs=1, progress=False)
    x, y = data.take(test)
    assert history.last["validation_accuracy"] > 0.9
    assert history.last["accuracy"] > 0.95
    assert abs((model(x).argmax(1) == y).float().mean() - history.last["validation_accuracy"]) < 0.04


def test_neurons_become_what_there_is_to_see():
    """Four patterns that overlap by half, with noise: each neuron's weights end on one, and each pattern has a neuron."""
    g = torch.Generator().manual_seed(0)
    patterns = torch.zeros(4, 16)
    for k in range(4):
        patterns[k, [(4 * k + i) % 16 for i in range(8)]] = 1.0
    x = (patterns[torch.randint(0, 4, (400,), generator=g)] * 0.8 + 0.05).view(-1, 1, 4, 4)
    model = fresh(8, Poisson(10), shape=(1, 4, 4))
    rule = STDP(mean_weight=0.4, spikes=3.0, batch_size=8)
    history = rule.fit(model, (x, torch.randint(0, 10, (400,), generator=g)), epochs=3, progress=False)
    cosine = F.normalize(history.learnt["weight"], dim=1) @ F.normalize(patterns, dim=1).T
    assert (cosine.max(1).values > 0.95).all()
    assert set(cosine.argmax(1).tolist()) == {0, 1, 2, 3}


@torch.no_grad()
def test_a_batch_is_the_written_out_update(digits):
    """Two batches with the weights and thresholds between them, in the order of ``batches``."""
    rule, model = STDP(lr=0.03, depression=0.7, batch_size=150, spikes=4.0), fresh(encoder=Direct(5))
    training = _Training(rule, model)
    w = training.weights.clone()
    threshold = None
    training.compete(digits[0], 0, _Silent())
    for batch in data.batches(digits[0], 150, derive(rule.seed, "shuffle", "train", 0)):
        pre = batch.x.flatten(1).expand(5, -1, -1)
        current = pre @ w.T
        threshold = 2 * current.mean() * torch.ones(20) if threshold is None else threshold
        post = compete(current, 0.95, threshold, "soft", 1.0)
        up, down = pair_sums(pre, post, 5.0, 5.0)
        w = bounded(w + 0.03 * ((1 - w) * up - 0.7 * w * down), 0.1)
        threshold = threshold * torch.exp(0.02 * (post.sum((0, 1)) - 4.0 * 150 / 20))
    torch.testing.assert_close(training.weights, w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(training.threshold, threshold, rtol=1e-4, atol=1e-5)


class _Silent:
    def batch(self, *_):
        pass


def test_weights_stay_within_bounds_and_of_one_mean(digits):
    learnt = fit(fresh(), digits, 2, STDP(lr=1.0, depression=2.0, mean_weight=0.3)).learnt
    assert learnt["weight"].min() >= 0
    assert learnt["weight"].max() <= 1
    torch.testing.assert_close(learnt["weight"].mean(1), torch.full((20,), 0.3))
    assert (learnt["threshold"] > 0).all()


@torch.no_grad()
def _spread(model, digits, rule):
    """Of the spikes of each neuron in one more epoch of competition."""
    training, counts = _Training(rule, model), torch.zeros(20)
    for epoch in range(3):
        training.compete(digits[0], epoch, _Silent())
    for _, pre in training._batches(digits[0], 32, "train", 3):
        counts += compete(pre @ training.weights.T, 0.95, training.threshold, "soft", 1.0).sum((0, 1))
    return (counts.std() / counts.mean()).item()


def test_homeostasis_equalises_rates(digits):
    with_it, without = (_spread(fresh(), digits, STDP(homeostasis=k, spikes=3.0, batch_size=8)) for k in (0.01, 0.0))
    assert with_it < 1.0
    assert without > 2 * with_it


def test_afterwards_the_neurons_of_the_plain_model_fire_at_the_rate(digits):
    model = fresh()
    history = fit(model, digits, 2, STDP(rate=0.2, batch_size=8))
    with torch.no_grad(), draws(model, 3):
        rates = Sequential(*list(model.network)[:3])(model.encoder(digits[0][0])).mean((0, 1))
    assert (rates - 0.2).abs().max() < 0.08
    assert abs(rates.mean() - 0.2) < 0.02
    assert abs(history.last["spike_rate"] - rates.mean()) < 0.01
    assert history.last["rates"] == {"network.2": history.last["spike_rate"]}


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_reach_the_readout_only(digits):
    (x, y), validation = digits
    models = [fresh(), fresh()]
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    histories = [fit(m, ((x, labels), validation)) for m, labels in zip(models, (y, shuffled), strict=True)]
    assert same(histories[0].learnt, histories[1].learnt)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]) == (not name.startswith("network.3")), name
    assert histories[1].last["validation_accuracy"] < 0.3 < histories[0].last["validation_accuracy"]


@pytest.mark.parametrize("readout", [MeanOutput(), MeanMembrane(0.8), SpikeCount(), LastOutput()])
@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_of_the_model_are_those_of_the_regression(readout, bias, digits):
    """On features that are the readout's, the bias too; scikit-learn finds the same minimum."""
    from sklearn.linear_model import LogisticRegression

    model = fresh(12, Direct(5), readout=readout)
    if not bias:
        model.network[3].bias = None
    rule = STDP(l2=1e-2)
    history = fit(model, digits, 1, rule)
    x, y = digits[0]
    with torch.no_grad():
        features = model.readout(Sequential(*list(model.network)[:3])(model.encoder(x)))
        logits = model(x)
    features = features / features.var(0, correction=0).mean().sqrt()
    reference = LogisticRegression(C=1 / (2 * 1e-2 * len(x)), fit_intercept=bias, tol=1e-8, max_iter=5000)
    p = torch.from_numpy(reference.fit(features.numpy(), y.numpy()).predict_proba(features.numpy()))
    torch.testing.assert_close(logits.softmax(1), p.float(), rtol=0, atol=5e-3)
    assert history.last["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), abs=1e-4)
    assert history.last["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), abs=1 / 150)


def test_regression_on_features_that_say_nothing():
    y = torch.tensor([0, 0, 0, 1])
    weight, bias = _logistic_regression(torch.zeros(4, 3), y, 2, 1e-4, True)
    assert not weight.any()
    torch.testing.assert_close(bias.softmax(0), torch.tensor([0.75, 0.25]), rtol=0, atol=1e-3)


# --- a plain model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("threshold", [1.0, 0.25, "each"])
def test_thresholds_are_folded_into_the_weights(reset, threshold, digits):
    """The neuron keeps its threshold, and fires as with the one that homeostasis found."""
    own = torch.linspace(0.5, 2.0, 20) if threshold == "each" else threshold
    models = [fresh(neuron=LIF(0.9, t, reset)) for t in (own, 1.0)]
    for model in models:
        fit(model, digits)
    assert torch.equal(torch.as_tensor(models[0].network[2].threshold), torch.as_tensor(own))
    ratio = models[0].network[1].weight / models[1].network[1].weight
    expected = torch.as_tensor(own).expand(20)[:, None].expand(20, 64)
    heard = models[1].network[1].weight.abs() > 1e-5
    torch.testing.assert_close(ratio[heard], expected[heard], rtol=1e-4, atol=0)
    assert not models[0].network[1].bias.any()


def test_the_model_is_plain_afterwards(digits, tmp_path):
    model = fresh()
    modules, names = [type(m) for m in model.modules()], list(model.state_dict())
    fit(model, digits)
    assert [type(m) for m in model.modules()] == modules
    assert list(model.state_dict()) == names
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    save(model, tmp_path / "model")
    loaded, x = load(tmp_path / "model"), digits[1][0]
    with draws(loaded, 1), draws(model, 1):
        assert torch.equal(loaded(x), model(x))
    x = x.clone().requires_grad_()
    model(x).logsumexp(1).sum().backward()
    assert x.grad.any()


# --- seeds and resuming --------------------------------------------------------------------------------------------


def test_one_seed_decides_all(digits):
    def run(seed, elsewhere):
        model = fresh()
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)
            history = fit(model, digits, 1, STDP(seed=seed))
        return model.state_dict(), [{k: v for k, v in r.items() if k != "seconds"} for r in history.records]

    one, again, other = run(1, 0), run(1, 5), run(2, 0)
    assert same(one[0], again[0])
    assert one[1] == again[1]
    assert not same(one[0], other[0])


def test_it_does_not_begin_from_the_weights_of_the_model(digits):
    models = [fresh(), fresh()]
    nn.init.normal_(models[1].network[1].weight)
    nn.init.normal_(models[1].network[1].bias)
    for model in models:
        fit(model, digits)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_a_resumed_training_is_the_same(digits, tmp_path):
    whole, parts = fresh(), fresh()
    history = fit(whole, digits, 3)
    fit(parts, digits, 1, checkpoint=tmp_path / "state")
    resumed = fit(parts, digits, 3, checkpoint=tmp_path / "state")
    assert same(whole.state_dict(), parts.state_dict())
    assert same(history.learnt, resumed.learnt)
    drop = [[{k: v for k, v in r.items() if k != "seconds"} for r in h.records] for h in (history, resumed)]
    assert drop[0] == drop[1]
    with pytest.raises(ValueError, match="already at epoch 3, past epochs=2"):
        fit(fresh(), digits, 2, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=r"another training \(lr differ"):
        fit(fresh(), digits, 3, STDP(lr=0.1), checkpoint=tmp_path / "state")


# --- refusals -----------------------------------------------------------------------------------------------------


def _two_hidden():
    return spiking((Dense(4), Dense(4)), (1, 8, 8), 10, Poisson(2), norm="none")


class _Other(SpikeCount):
    pass


REFUSED = {
    "ANN": (lambda: ordinary((Dense(4),), (1, 8, 8), 10), TypeError, "SpikingClassifier of a Sequential, got Sequential"),
    "norm": (lambda: spiking((Dense(4),), (1, 8, 8), 10, Poisson(2)), TypeError, "Linear, BNTT, LIF, Linear.*norm='none'"),
    "conv": (lambda: spiking((Conv(4),), (1, 8, 8), 10, Poisson(2), norm="none"), TypeError, "the network is Conv2d"),
    "deep": (_two_hidden, TypeError, "Linear, LIF, Linear, LIF, Linear: use architecture='dense'"),
    "neuron": (lambda: fresh(neuron=PLIF()), TypeError, "the network is Flatten, Linear, PLIF, Linear"),
    "refractory": (lambda: fresh(neuron=LIF(refractory=2)), ValueError, "use refractory=0"),
    "negative": (lambda: fresh(encoder=SignedPoisson(4, 0.5, 0.2)), ValueError, "SignedPoisson gives negative values"),
    "readout": (lambda: fresh(readout=_Other()), TypeError, "a readout that is linear .*got _Other"),
    "frozen": (lambda: _frozen(), ValueError, "one is frozen"),
}  # fmt: skip


def _frozen():
    model = fresh()
    model.network[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_anything_is_changed(case, digits):
    make, error, message = REFUSED[case]
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error, match=message):
        fit(model, digits)
    assert same(before, model.state_dict())


def test_more_than_one_process_is_refused(digits):
    class Two:
        world_size = 2

    with pytest.raises(ValueError, match=r"runs in one process, and the fabric has 2: use devices=1"):
        fit(fresh(), digits, fabric=Two())


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"inhibition": 1.5}, {"mean_weight": 1.0}, {"rate": 0.0}, {"tau_plus": 0.0}, {"spikes": -1.0}, {"l2": -1.0}],
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        STDP(**wrong)


def test_black_images_are_warned_of(digits):
    dark = torch.zeros_like(digits[0][0]), digits[0][1]
    with pytest.warns(TrainingWarning, match=r"network.2 \(LIF\) has not fired in epoch 1") as found:
        STDP().fit(fresh(), dark, epochs=1, progress=False)
    assert found[0].filename == __file__


def test_what_it_needs_is_what_it_takes(digits):
    name, norm = STDP.needs["architecture"], STDP.needs["norm"]
    model = spiking(ARCHITECTURES[name], (1, 8, 8), 10, Poisson(2), norm=norm)
    with warnings.catch_warnings():
        STDP().refuse(model, digits[0][0][:1])
    assert RULES["STDP"] is STDP
    assert isinstance(model, SpikingClassifier)


def test_a_fabric_of_another_precision_is_refused(digits):
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    with pytest.raises(ValueError, match="STDP computes in float32, and the fabric has 'bf16-mixed': use '32-true'"):
        fit(fresh(), digits, fabric=fabric)


def test_a_label_out_of_range_in_a_later_batch_is_named():
    x, y = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    y[-1] = 11
    model = spiking((Dense(6),), (1, 4, 4), 4, Poisson(4), norm="none")
    with pytest.raises(ValueError, match="labels must lie in"):
        STDP(batch_size=8).fit(model, DataLoader(TensorDataset(x, y), batch_size=8), epochs=1, progress=False)
