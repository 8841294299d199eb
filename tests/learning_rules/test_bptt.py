import math
import random
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnrobust import data
from snnrobust.draws import Stochastic
from snnrobust.encoders import Direct, Poisson
from snnrobust.learning_rules import BPTT, RULES
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking


def fresh(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


MODELS = {
    "ann": lambda: ordinary((Dense(32),), (1, 8, 8), 10),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)),
    "poisson": lambda: spiking((Conv(4), Pool(), Dense(16)), (1, 8, 8), 10, Poisson(4)),
    "direct": lambda: spiking((Dense(32),), (1, 8, 8), 10, Direct(4), norm="none"),
}


@pytest.fixture(scope="module")
def digits():
    """200 samples to train on, 100 to validate."""
    x, y = data.take(data.load("digits", "train"), 300)
    return (x[:200], y[:200]), (x[200:], y[200:])


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


@pytest.mark.parametrize(
    ("architecture", "encoder", "epochs", "accuracy"),
    [((Dense(64),), None, 8, 0.95), ((Dense(64),), Direct(4), 6, 0.9), ((Conv(8), Pool()), Poisson(8), 6, 0.9)],
)
def test_digits_are_learnt(architecture, encoder, epochs, accuracy):
    """500 test samples: three standard errors are below 0.03."""
    make = ordinary if encoder is None else spiking
    model = fresh(lambda: make(architecture, (1, 8, 8), 10, *([encoder] if encoder else [])))
    train, test = data.load("digits", "train"), data.load("digits", "test")
    history = BPTT(lr=1e-2).fit(model, train, test, epochs=epochs, progress=False)
    assert history.last["validation_accuracy"] > accuracy
    assert history.last["accuracy"] > accuracy
    x, y = data.take(test)
    assert abs((model(x).argmax(1) == y).float().mean() - history.last["validation_accuracy"]) < 0.03


@pytest.mark.parametrize("kind", MODELS)
def test_one_seed_decides_all(kind, digits):
    train, validation = digits

    def run(seed, elsewhere):
        model = fresh(MODELS[kind])
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)  # where torch's generator stands is of no account
            history = BPTT(lr=1e-2, seed=seed).fit(model, train, validation, epochs=2, progress=False)
        return model, history

    (one, record), (again, other_record), (other, _) = run(1, 0), run(1, 5), run(2, 0)
    assert same_weights(one, again)
    assert without_seconds(record) == without_seconds(other_record)
    assert not same_weights(one, other)


@pytest.mark.parametrize("kind", MODELS)
def test_the_seed_decides_the_draws_of_the_model_also_where_the_order_is_given(kind, digits):
    loader = DataLoader(TensorDataset(*digits[0]), batch_size=50)
    weights = []
    for seed in (1, 2):
        weights.append(fresh(MODELS[kind]))
        BPTT(lr=1e-2, seed=seed).fit(weights[-1], loader, epochs=1, progress=False)
    assert same_weights(*weights) == (kind in ("ann", "direct"))


class Recorder(Stochastic):
    """Stores what it draws from its key and from torch's generator, as dropout does."""

    def __init__(self):
        super().__init__()
        self.seen = {True: [], False: []}  # by training or not: a row a sample, and one number a batch

    def forward(self, x):
        rows = self.uniform((1, len(x), 4))[0]
        if len(x) > 1:  # else it is the check before training
            self.seen[self.training].append((rows, torch.rand(())))
        return x + 0.01 * rows.sum(1, keepdim=True)


def test_every_epoch_and_batch_and_the_validation_have_draws_of_their_own(digits):
    def record(seed):
        model = fresh(lambda: nn.Sequential(nn.Flatten(), Recorder(), nn.Linear(64, 10)))
        BPTT(batch_size=40, seed=seed).fit(model, *digits, epochs=2, progress=False)
        train, validation = model[1].seen[True], model[1].seen[False]
        assert (len(train), len(validation)) == (2 * 5, 2 * 3)
        return torch.cat([r for r, _ in train + validation]), torch.stack([n for _, n in train + validation])

    rows, numbers = record(1)
    assert len(rows.unique(dim=0)) == len(rows) == 2 * (200 + 100)
    assert len(numbers.unique()) == len(numbers) == 2 * (5 + 3)
    for again, first in zip(record(1), (rows, numbers), strict=True):
        assert torch.equal(again, first)
    assert not torch.isin(record(2)[1], numbers).any()


@pytest.mark.parametrize("kind", MODELS)
def test_generators_data_and_gradients_are_left_alone_and_the_model_is_in_eval_mode(kind, digits):
    train, validation = digits
    before = deepcopy((train, validation))
    model = fresh(MODELS[kind])
    loader = DataLoader(TensorDataset(*train), batch_size=50, shuffle=True)
    states = torch.get_rng_state(), random.getstate()
    for given in (train, loader):
        BPTT().fit(model, given, validation, epochs=1, progress=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not any(m.training for m in model.modules())
    assert all(
        torch.equal(a, b)
        for pair, old in zip((train, validation), before, strict=True)
        for a, b in zip(pair, old, strict=True)
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_equals_adam_written_out(schedule, decay, digits):
    """Mini-batches in the order of ``batches``; Adam by Kingma and Ba 2015, decoupled decay by Loshchilov and Hutter 2019."""
    (x, y), _ = digits
    x, epochs, rule = x.double(), 3, BPTT(lr=0.01, weight_decay=decay, batch_size=64, schedule=schedule)
    model = fresh(linear).double()
    w = torch.cat([model[1].weight.data, model[1].bias.data[:, None]], 1).requires_grad_()
    seen = []
    original = nn.Linear.forward

    def spy(layer, inputs):
        if model.training:
            seen.append(inputs)
        return original(layer, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", spy)
        rule.fit(model, (x, y), epochs=epochs, progress=False)
    assert [len(batch) for batch in seen] == [64, 64, 64, 8] * epochs
    for epoch in range(epochs):  # each epoch is a permutation of the data, and each another
        shown = torch.cat(seen[4 * epoch : 4 * epoch + 4])
        assert sorted(shown.tolist()) == sorted(x.flatten(1).tolist())
        assert epoch == 0 or not torch.equal(shown, torch.cat(seen[:4]))

    label = {tuple(row): int(k) for row, k in zip(x.flatten(1).tolist(), y, strict=True)}
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step, inputs in enumerate(seen, start=1):
        epoch = (step - 1) // 4
        lr = rule.lr * ((1 + math.cos(math.pi * epoch / epochs)) / 2 if schedule == "cosine" else 1)
        target = torch.tensor([label[tuple(row)] for row in inputs.tolist()])
        (g,) = torch.autograd.grad(F.cross_entropy(inputs @ w[:, :-1].T + w[:, -1], target), w)
        with torch.no_grad():
            w *= 1 - lr * decay
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.allclose(torch.cat([model[1].weight, model[1].bias[:, None]], 1), w, rtol=0, atol=1e-9)


def test_the_history_is_that_of_the_data(digits):
    """With a step of next to nothing, each epoch's loss and accuracy are those of the untrained model."""
    (x, y), (vx, vy) = digits
    model = fresh(linear)
    with torch.no_grad():
        loss, right, valid = F.cross_entropy(model(x), y), (model(x).argmax(1) == y), (model(vx).argmax(1) == vy)
    history = BPTT(lr=1e-12, batch_size=33).fit(model, (x, y), (vx, vy), epochs=2, progress=False)
    assert [record["epoch"] for record in history.records] == [1, 2]
    for record in history.records:
        assert abs(record["loss"] - loss) < 1e-5
        assert record["accuracy"] == right.double().mean()
        assert record["validation_accuracy"] == valid.double().mean()
        assert record["seconds"] > 0
    assert BPTT().fit(model, (x, y), epochs=1, progress=False).last["validation_accuracy"] is None


def test_all_ways_of_giving_data_are_taken(digits):
    (x, y), _ = digits
    models = []
    for given in ((x, y), TensorDataset(x, y), [(a, int(b)) for a, b in zip(x, y, strict=True)]):
        models.append(fresh(linear))
        BPTT().fit(models[-1], given, epochs=1, progress=False)
    assert same_weights(models[0], models[1])
    assert same_weights(models[0], models[2])
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))  # keeps its own batches: one step
    model = fresh(linear)
    before = deepcopy(model.state_dict())
    BPTT(lr=0.1, batch_size=10).fit(model, loader, epochs=1, progress=False)
    assert ((model.state_dict()["1.bias"] - before["1.bias"]).abs() - 0.1).abs().max() < 1e-3  # the first step of Adam


X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
BAD = {
    "labels too large": ((X, Y + 5), ValueError, r"labels must lie in 0\.\.9, got 5\.\.10"),
    "labels negative": ((X, Y - 1), ValueError, r"labels must lie in 0\.\.9, got -1"),
    "labels float": ((X, Y.float()), TypeError, "labels must be int64"),
    "one-hot": ((X, F.one_hot(Y, 10)), TypeError, "labels must be int64"),
    "labels missing": ((X, Y[:-1]), ValueError, "one label a sample"),
    "nan": ((X.clone().index_fill_(0, torch.tensor(5), torch.nan), Y), ValueError, "inputs .*NaN"),
    "infinite": ((X / 0, Y), ValueError, "inputs .*infinity"),
    "bytes": ((X.byte(), Y), TypeError, "inputs must be floating"),
    "empty": ((X[:0], Y[:0]), ValueError, "empty"),
    "empty dataset": ([], ValueError, "empty"),
    "no batch": ((X[0, 0, 0], Y), ValueError, "inputs must be a batch"),
    "not data": (iter([(X, Y)]), TypeError, "data must be a map-style dataset"),
    "empty loader": (DataLoader(TensorDataset(X[:0], Y[:0])), ValueError, "empty"),
    "nan in a loader": (DataLoader(TensorDataset(X * torch.nan, Y)), ValueError, "inputs .*NaN"),
    "labels too large in a loader": (DataLoader(TensorDataset(X, Y + 90)), ValueError, "labels must lie in"),
}


@pytest.mark.parametrize("where", ["train", "validation"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_named_before_training(kind, where):
    bad, error, words = BAD[kind]
    model = fresh(linear).train()
    before = deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        BPTT(lr=1.0).fit(model, *((bad,) if where == "train" else ((X, Y), bad)), epochs=1, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ordinary((Conv(2),), (1, 8, 8), 10), "3D"),  # images without channels
        (nn.Sequential(nn.Linear(8, 10)), r"logits \[B, K\]"),
    ],
)
def test_a_rank_that_the_model_cannot_take_is_an_error_before_training(model, words):
    model.train()
    with pytest.raises((ValueError, RuntimeError), match=words):
        BPTT().fit(model, (X[:, 0], Y), epochs=1, progress=False)
    assert model.training


def test_a_loss_that_is_not_finite_stops_the_training():
    """The first step makes each weight 3e37; float32 ends at 3.4e38, and the sum over 64 pixels overflows."""
    model = fresh(linear)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 2: lower lr \(3e\+37\)"):
        BPTT(lr=3e37).fit(model, (X, Y), epochs=5, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())  # the step of that loss is not made


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"lr": 0.0}, ValueError),
        ({"lr": -1.0}, ValueError),
        ({"lr": math.nan}, ValueError),
        ({"lr": "1e-3"}, TypeError),
        ({"weight_decay": -0.1}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 8.0}, TypeError),
        ({"schedule": "cosin"}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        BPTT(**arguments)


@pytest.mark.parametrize(("epochs", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_bad_number_of_epochs_is_named(epochs, error):
    with pytest.raises(error, match="epochs"):
        BPTT().fit(fresh(linear), (X, Y), epochs=epochs)


def test_the_rule_is_registered_and_shows_progress_when_asked(capsys):
    assert RULES["BPTT"] is BPTT
    BPTT().fit(fresh(linear), (X, Y), epochs=2, progress=False)
    assert capsys.readouterr().out == ""
    BPTT().fit(fresh(linear), (X, Y), (X, Y), epochs=2)
    assert "epoch 2, loss" in capsys.readouterr().out
