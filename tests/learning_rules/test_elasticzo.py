"""ElasticZO against closed forms and against BPTT."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust import data
from snnrobust.draws import derive, draws, normal
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import BNTT, Dropout, MeanOutput, Sequential
from snnrobust.learning_rules import BPTT, ElasticZO
from snnrobust.models import Conv, Dense, Pool, Residual, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF, LearnableThresholdLIF


def fresh(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def smooth():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))


MODELS = {
    "ann": lambda: ordinary((Conv(3), Pool(), Dense(6)), (1, 4, 4), 3),
    "dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5), nn.Dropout(),
        nn.Linear(5, 3),
    ),
    "bntt": lambda: spiking((Conv(3), Pool(), Dense(6)), (1, 4, 4), 3, Poisson(4), LIF(0.9, 0.4)),
    "tdbn": lambda: spiking((Conv(3), Pool(), Dense(6)), (1, 4, 4), 3, Direct(4), LIF(0.9, 0.4), norm="TDBN"),
    "none": lambda: spiking((Dense(6), Dense(5)), (1, 4, 4), 3, Direct(4), LearnableThresholdLIF(0.9, 0.4), norm="none"),
    "nested": lambda: SpikingClassifier(
        Poisson(4),
        Sequential(
            nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3), BNTT(3, 4), LIF(0.9, 0.3)), nn.Flatten(), Dropout(0.3),
            nn.Linear(12, 5), LIF(0.9, 0.2), nn.Linear(5, 3),
        ),
        MeanOutput(),
    ),
}  # fmt: skip


def batch(n=8, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def gradients(rule, model, x, y, key=5, steps=1, scale=1.0):
    """Of each step, as the loop takes them; loss and logits of the last."""
    rule.refuse(model, x[:1])
    found = []
    with rule.lend(model.train(), x[:1]) as lent:
        for _ in range(steps):
            model.zero_grad()
            with draws(model, key, torch.arange(len(x))):
                loss, logits = lent.backward(x, y, scale)
            found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            if lent.after is not None:
                lent.after()
    return found, loss, logits


def direction(rule, step, sample, name, p):
    key = derive(rule.seed, "direction", step, sample, name)
    words = torch.tensor([key & 0xFFFFFFFF, key >> 32])
    return normal(words, torch.zeros(1, dtype=torch.int64), (1, 1, *p.shape))[0, 0].to(p.dtype)


# --- the estimate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-3, 0.5])
@pytest.mark.parametrize("samples", [1, 3])
def test_of_a_quadratic_the_estimate_is_the_slope_along_the_direction(eps, samples):
    r"""There the central difference is exact for any eps: :math:`(z \cdot \nabla L) z`."""
    network = Sequential(nn.Flatten(), nn.Linear(16, 3))
    model = fresh(lambda: SpikingClassifier(Direct(2), network, MeanOutput())).double()
    rule, (x, y) = ElasticZO(loss="spike_count", eps=eps, samples=samples, seed=3), batch()
    found, _, _ = gradients(rule, model, x, y, steps=2, scale=0.7)
    weight, bias = model.network[1].weight.detach(), model.network[1].bias.detach()
    error = x.flatten(1) @ weight.T + bias - F.one_hot(y, 3)
    true = {
        "network.1.weight": 2 * error.T @ x.flatten(1) / error.numel(),
        "network.1.bias": 2 * error.sum(0) / error.numel(),
    }
    for step in range(2):
        z = [{n: direction(rule, step, s, n, p) for n, p in model.named_parameters()} for s in range(samples)]
        slopes = [sum((z[s][n] * true[n]).sum() for n in true) for s in range(samples)]
        for n in true:
            expected = 0.7 * sum(slope * z[s][n] for s, slope in enumerate(slopes)) / samples
            torch.testing.assert_close(found[step][n], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("zeroth", [1, 2])
def test_the_mean_over_directions_is_the_true_gradient(zeroth):
    """300 directions: each element within 4.5 standard errors."""
    model = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))).double()
    x, y = batch()
    x = x[:, :, ::2, ::2]
    F.cross_entropy(model(x), y).backward()
    true = {n: p.grad.clone() for n, p in model.named_parameters()}
    found, _, _ = gradients(ElasticZO(zeroth=zeroth, eps=1e-4, seed=2), model, x, y, steps=300)
    means, expected = [], []
    for n in ["1.weight", "1.bias", "3.weight", "3.bias"][: 2 * zeroth]:
        estimates = torch.stack([f[n] for f in found])
        z = (estimates.mean(0) - true[n]) / (estimates.std(0) / math.sqrt(len(estimates)))
        assert z.abs().max() < 4.5
        means.append(estimates.mean(0).flatten())
        expected.append(true[n].flatten())
    assert F.cosine_similarity(torch.cat(means), torch.cat(expected), 0) > 0.9


def test_directions_are_standard_normal_new_at_each_step_and_of_the_seed():
    model, (x, y) = fresh(smooth).double(), batch()
    rule = ElasticZO(eps=1e-3)
    found, _, _ = gradients(rule, model, x, y, steps=200)
    rays = torch.stack([F.normalize(f["1.weight"].flatten(), dim=0) for f in found])
    assert (rays @ rays.T - torch.eye(200)).abs().max() < 0.75  # no two alike, in 64 dimensions
    again, _, _ = gradients(rule, model, x, y, steps=2)
    other, _, _ = gradients(ElasticZO(eps=1e-3, seed=1), model, x, y)
    assert all(torch.equal(again[1][n], found[1][n]) for n in found[1])
    assert not torch.equal(other[0]["1.weight"], found[0]["1.weight"])
    assert torch.equal(other[0]["3.weight"], found[0]["3.weight"])


def test_both_losses_are_under_the_same_draws():
    """Moved weights that nothing hears have a slope of exactly zero, whatever is drawn behind them."""
    deaf = nn.Threshold(1e9, 1.0)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), deaf, nn.Dropout(0.5), nn.Linear(6, 3))
    network = Sequential(nn.Flatten(), nn.Linear(16, 6), deaf, Dropout(0.5), nn.Linear(6, 3))
    for model in (ann, SpikingClassifier(Poisson(4), network, MeanOutput())):
        (found,), _, _ = gradients(ElasticZO(), model.double(), *batch())
        first, _, last, _ = found.values()
        assert not first.any()
        assert last.any()


# --- the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("zeroth", [0, 1, 2, 3])
def test_the_rest_has_the_gradient_of_bptt_to_the_bit(kind, zeroth):
    models = [fresh(MODELS[kind]).double() for _ in range(2)]
    layers = [n for n, m in models[0].named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if zeroth > len(layers):
        pytest.skip("fewer layers")
    before = {n: p.clone() for n, p in models[1].named_parameters()}
    (true,), true_loss, true_logits = gradients(BPTT(), models[0], *batch(), scale=0.5)
    (found,), loss, logits = gradients(ElasticZO(zeroth=zeroth), models[1], *batch(), scale=0.5)
    assert found.keys() == true.keys()
    names = [n for n, _ in models[0].named_parameters()]
    border = names.index(f"{layers[zeroth]}.weight") if zeroth < len(layers) else len(names)
    border = 0 if zeroth == 0 else border
    for index, name in enumerate(names):
        assert torch.equal(found[name], true[name]) == (index >= border), name
    assert torch.equal(loss, true_loss)
    assert torch.equal(logits, true_logits)
    assert all(torch.equal(p, before[n]) for n, p in models[1].named_parameters())  # nothing was moved
    for (name, a), (_, b) in zip(models[0].named_buffers(), models[1].named_buffers(), strict=True):
        assert torch.equal(a, b), name  # statistics of one pass


def test_the_graph_begins_after_the_first_layers():
    """What is kept for the backward pass: with C layers by SPSA as much as the rest keeps, with all of them nothing."""

    def kept(run):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run()
        return sizes

    make = MODELS["bntt"]
    x, y = batch()
    with_c = [kept(lambda c=c: gradients(ElasticZO(zeroth=c), fresh(make).double(), x, y)) for c in range(4)]
    assert with_c[0] == kept(lambda: gradients(BPTT(), fresh(make).double(), x, y))
    assert sum(with_c[0]) > sum(with_c[1]) > sum(with_c[2]) > 0
    assert with_c[3] == []

    def rest():
        model = fresh(make).double().train()
        with draws(model, 5, torch.arange(8)):
            parts = list(model.network)
            with torch.no_grad():
                h = Sequential(*parts[:4])(model.encoder(x))
            F.cross_entropy(model.readout(Sequential(*parts[4:])(h)), y).backward()

    assert isinstance(list(make().network)[5], nn.Linear)
    assert with_c[1] == kept(rest)


def test_frozen_parameters_are_not_moved():
    model = fresh(smooth).double()
    model[1].weight.requires_grad_(False)
    (found,), _, _ = gradients(ElasticZO(eps=1e-3), model, *batch())
    z = direction(ElasticZO(), 0, 0, "1.bias", model[1].bias)
    assert set(found) == {"1.bias", "3.weight", "3.bias"}
    assert F.cosine_similarity(found["1.bias"], z, 0).abs() > 1 - 1e-9
    model[1].bias.requires_grad_(False)
    (found,), _, _ = gradients(ElasticZO(), model, *batch())
    assert set(found) == {"3.weight", "3.bias"}


def test_an_error_in_between_leaves_parameters_and_statistics(monkeypatch):
    model = fresh(MODELS["ann"]).double()
    parameters = dict(model.named_parameters())
    calls = []

    def forward(x):
        calls.append(model[1].running_mean.clone())
        if len(calls) == 3:
            raise RuntimeError("stop")
        return nn.BatchNorm2d.forward(model[1], x)

    monkeypatch.setattr(model[1], "forward", forward)
    with pytest.raises(RuntimeError, match="stop"):
        gradients(ElasticZO(), model, *batch())
    now = dict(model.named_parameters())
    assert all(now[n] is p for n, p in parameters.items())
    assert torch.equal(model[1].running_mean, calls[1])  # after the first pass
    assert not torch.equal(calls[0], calls[1])


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    x, y = data.take(data.load("digits", "train"), 300)
    return x[:200], y[:200]


def test_parts_of_a_batch_share_their_directions(digits):
    x, y = digits[0].double(), digits[1]
    weights = []
    for accumulate in (1, 3):
        model = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))).double()
        rule = ElasticZO(optimizer="sgd", lr=0.05, accumulate=accumulate, zeroth=2)
        rule.fit(model, (x, y), epochs=2, progress=False)
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["ann", "spiking"])
def test_a_resumed_training_is_the_same(kind, digits, tmp_path):
    make = {
        "ann": lambda: ordinary((Dense(8),), (1, 8, 8), 10),
        "spiking": lambda: spiking((Dense(8),), (1, 8, 8), 10, Poisson(3)),
    }

    def train(epochs, **k):
        model = fresh(make[kind])
        ElasticZO(seed=4).fit(model, digits, epochs=epochs, progress=False, **k)
        return model.state_dict()

    whole = train(2)
    train(1, checkpoint=tmp_path / "state")
    resumed = train(2, checkpoint=tmp_path / "state")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_digits_are_learnt():
    """500 test samples: three standard errors are below 0.03."""
    model = fresh(lambda: spiking((Dense(64),), (1, 8, 8), 10, Direct(4)))
    train, test = data.load("digits", "train"), data.load("digits", "test")
    history = ElasticZO(lr=1e-2).fit(model, train, test, epochs=5, progress=False)
    assert history.last["validation_accuracy"] > 0.9


def test_digits_are_learnt_without_any_backward_pass(monkeypatch):
    """A linear classifier; at random it would have 0.1."""
    monkeypatch.setattr(torch.Tensor, "backward", None)
    model = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    history = ElasticZO(lr=1e-2, samples=2).fit(model, data.load("digits", "train"), epochs=8, progress=False)
    assert history.last["accuracy"] > 0.6


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"the model has 2 synaptic layers: use 0\.\.2"):
        ElasticZO(zeroth=3).refuse(smooth(), x)
    with pytest.raises(ValueError, match="'cross_entropy'"):
        ElasticZO(loss="tet").refuse(smooth(), x)
    with pytest.raises(TypeError, match="ElasticZO trains a chain of layers"):
        ElasticZO().refuse(spiking((Residual((Conv(2),)),), (1, 4, 4), 3, Direct(2)), x)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16))
    tied[2].weight = tied[1].weight
    with pytest.raises(ValueError, match="share a parameter"):
        ElasticZO().refuse(tied, x)
    ElasticZO(zeroth=0).refuse(tied, x)
    for wrong in ({"zeroth": -1}, {"eps": 0.0}, {"samples": 0}, {"loss": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ElasticZO(**wrong)
