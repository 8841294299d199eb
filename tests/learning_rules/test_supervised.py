"""The loop around a rule: what a step is, what is recorded, when it ends, and what it leaves behind."""

import json
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snnrobust import data
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT, Lent, Supervised
from snnrobust.models import Dense, spiking


@pytest.fixture(scope="module")
def digits():
    x, y = data.take(data.load("digits", "train"), 150)
    return (x[:100], y[:100]), (x[100:], y[100:])


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def fit(rule, model, *given, epochs=1, **settings):
    return rule.fit(model, *given, epochs=epochs, progress=False, **settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def records(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


# --- a step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "decay", "clip"), [(0.0, 0.0, None), (0.9, 0.1, None), (0.7, 0.0, 0.05)])
def test_equals_sgd_written_out(momentum, decay, clip, digits):
    """v <- m v + g + d w, w <- w - lr v, with g no longer than ``clip``; whole batches, so their order is of no account."""
    (x, y), _ = digits
    x = x.double()
    model = seeded(linear).double()
    w = torch.cat([model[1].weight.detach(), model[1].bias.detach()[:, None]], 1).requires_grad_()
    settings = {"optimizer": "sgd", "momentum": momentum, "weight_decay": decay, "clip": clip, "schedule": "step"}
    fit(BPTT(lr=0.3, batch_size=100, **settings), model, (x, y), epochs=4)
    v, clipped = torch.zeros_like(w), 0
    for epoch in range(4):  # a tenth after 2 and again after 3 of 4 epochs
        flat = x.flatten(1)
        (g,) = torch.autograd.grad(F.cross_entropy(flat @ w[:, :-1].T + w[:, -1], y), w)
        if clip is not None and g.norm() > clip:
            g, clipped = g * clip / g.norm(), clipped + 1
        with torch.no_grad():
            v = momentum * v + g + decay * w
            w -= (0.3, 0.3, 0.03, 0.003)[epoch] * v
    assert clipped == (0 if clip is None else 4)
    assert torch.allclose(torch.cat([model[1].weight, model[1].bias[:, None]], 1), w, rtol=0, atol=1e-7)


class Sizes(nn.Linear):
    """Remembers how large its batches were while training."""

    def __init__(self):
        super().__init__(64, 10)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(len(x))
        return super().forward(x)


def test_accumulated_parts_are_the_whole_batch(digits):
    (x, y), validation = digits
    found = []
    for parts in (1, 3):
        model = seeded(lambda: nn.Sequential(nn.Flatten(), Sizes())).double()
        given = (x.double(), y), (validation[0].double(), validation[1])
        history = fit(BPTT(lr=1e-2, batch_size=30, accumulate=parts, clip=0.3), model, *given, epochs=2)
        found.append((weights(model), records(history), model[1].seen))
    (one, record, _), (three, other, sizes) = found
    assert (one - three).abs().max() < 1e-12
    for a, b in zip(record, other, strict=True):
        assert a.pop("loss") == pytest.approx(b.pop("loss"), rel=1e-12)
        assert a == b
    assert sizes == [10] * 10 * 2  # of the last batch, of 10 samples, one part is made


def test_a_data_loader_is_divided_by_its_first_batch(digits):
    model = seeded(lambda: nn.Sequential(nn.Flatten(), Sizes()))
    fit(BPTT(batch_size=3, accumulate=4), model, DataLoader(TensorDataset(*digits[0]), batch_size=40))
    assert model[1].seen == [10] * 8 + [10] * 2


def test_cyclic_rates_are_those_of_the_steps(digits, monkeypatch):
    seen = []
    original = torch.optim.AdamW.step

    def spy(optimizer, *args):
        seen.extend(group["lr"] for group in optimizer.param_groups)
        return original(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    history = fit(BPTT(lr=1.0, batch_size=25, schedule="cyclic"), linear(), digits[0], epochs=5)
    assert seen == pytest.approx([(k + 0.5) / 8 if k < 8 else (19.5 - k) / 12 for k in range(20)])
    assert [record["lr"] for record in history.records] == seen[3::4]


class Endless(IterableDataset):
    """Its length is not known."""

    def __init__(self, x, y):
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.pairs)


def test_a_cyclic_rate_without_a_known_length_is_never_zero(digits):
    history = fit(BPTT(lr=1.0, schedule="cyclic"), linear(), DataLoader(Endless(*digits[0]), batch_size=50), epochs=2)
    assert [record["lr"] for record in history.records] == pytest.approx([0.25 / 0.4, 0.25 / 0.6])


# --- when it ends, and with what ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scripted(Supervised):
    """Learns nothing: sets the bias so that the validation accuracy of each epoch is what ``shares`` says."""

    name: ClassVar[str] = "Scripted"
    shares: tuple[float, ...] = (0.2, 0.6, 0.4, 0.6, 0.5, 0.8)

    @contextmanager
    def lend(self, model, example):
        learnt = nn.Linear(1, 1, bias=False)
        epoch = -1

        def backward(x, y, scale):
            (model(x).sum() * 0 + learnt.weight.sum() * 0).backward()
            return torch.zeros(()), torch.zeros(len(x), 2)

        def after():
            nonlocal epoch
            epoch = int(model.epochs) if epoch < 0 else epoch
            with torch.no_grad():
                model.share.fill_(self.shares[epoch])
                learnt.weight.fill_(epoch)
                model.epochs += 1
            epoch += 1

        yield Lent(backward, learnt, after)


class Told(nn.Module):
    """Is right on the first ``share`` of ten samples, of class 1."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        right = (x[:, 0] < 10 * self.share - 0.5).float()
        return torch.stack([1 - right, right], 1)


ROWS = torch.arange(10.0)[:, None], torch.ones(10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("patience", "ended", "best"), [(None, 6, 0.8), (1, 3, 0.6), (2, 4, 0.6), (3, 5, 0.6), (4, 6, 0.8)]
)
@pytest.mark.parametrize("keep", ["last", "best"])
def test_patience_and_the_best_weights(patience, ended, best, keep, tmp_path):
    """The best of epochs 2 and 4, which are equal, is 2. The same when each epoch is a call of its own."""
    rule = Scripted(patience=patience, keep=keep, batch_size=10)

    def end(model, history):
        assert [r["validation_accuracy"] for r in history.records] == pytest.approx(rule.shares[:ended])
        index = rule.shares.index(best) if keep == "best" else ended - 1
        assert model.share.item() == pytest.approx(rule.shares[index])
        assert int(history.learnt["weight"]) == index
        assert int(model.epochs) == index + 1  # buffers too

    whole = Told()
    end(whole, fit(rule, whole, ROWS, ROWS, epochs=6))
    for epochs in range(1, 7):
        part = Told()
        history = fit(rule, part, ROWS, ROWS, epochs=epochs, checkpoint=tmp_path / "state")
    end(part, history)


def test_best_weights_across_a_resume_are_bit_for_bit(digits, tmp_path):
    rule = BPTT(lr=0.05, batch_size=20, keep="best", optimizer="sgd", momentum=0.9, schedule="cyclic")
    whole, part = seeded(mlp), seeded(mlp)
    expected = fit(rule, whole, *digits, epochs=5)

    class StopError(Exception):
        pass

    path = tmp_path / "state"
    with pytest.MonkeyPatch.context() as patch:
        save = torch.optim.SGD.step
        steps = [0]

        def killed(optimizer, *args):
            steps[0] += 1
            if steps[0] > 17:  # in the fourth epoch
                raise StopError
            return save(optimizer, *args)

        patch.setattr(torch.optim.SGD, "step", killed)
        with pytest.raises(StopError):
            fit(rule, part, *digits, epochs=5, checkpoint=path)
    again = seeded(mlp, 5)
    history = fit(rule, again, *digits, epochs=5, checkpoint=path)
    assert records(history) == records(expected)
    assert torch.equal(weights(again), weights(whole))
    best = max(r["validation_accuracy"] for r in history.records)
    assert (again(digits[1][0]).argmax(1) == digits[1][1]).double().mean() == pytest.approx(best)


@pytest.mark.parametrize("settings", [{"patience": 2}, {"keep": "best"}])
def test_what_goes_by_the_validation_needs_it(settings, digits):
    with pytest.raises(ValueError, match="give validation data"):
        fit(BPTT(**settings), linear(), digits[0])


def test_other_validation_data_or_frozen_layers_are_another_training(digits, tmp_path):
    train, (vx, vy) = digits
    fit(BPTT(keep="best"), mlp(), train, (vx, vy), checkpoint=tmp_path / "best")
    with pytest.raises(ValueError, match=r"another training \(validation differ\)"):
        fit(BPTT(keep="best"), mlp(), train, (vx[:9], vy[:9]), epochs=2, checkpoint=tmp_path / "best")
    frozen = mlp()
    frozen[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"another training \(frozen differ\)"):
        fit(BPTT(keep="best"), frozen, train, (vx, vy), epochs=2, checkpoint=tmp_path / "best")
    before = frozen[1].weight.clone()
    fit(BPTT(), frozen, train)
    assert torch.equal(frozen[1].weight, before)


# --- what is left behind --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Raising(Supervised):
    """Lends a forward pass, and raises in the second step."""

    name: ClassVar[str] = "Raising"

    @contextmanager
    def lend(self, model, example):
        steps = 0

        def backward(x, y, scale):
            nonlocal steps
            steps += 1
            assert "forward" in vars(model[1])
            if steps == 2:
                raise KeyError("stop")
            loss = F.cross_entropy(model(x), y)
            (loss * scale).backward()
            return loss.detach(), model(x).detach()

        model[1].forward = model[1].forward
        try:
            yield Lent(backward)
        finally:
            del model[1].forward


def test_a_training_that_raises_leaves_the_model_as_it_was(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 10))
    modes = [m.training for m in model.modules()]
    assert len(set(modes)) == 2
    names = [set(vars(m)) for m in model.modules()]
    with pytest.raises(KeyError):
        fit(Raising(batch_size=10), model, *digits)
    assert [m.training for m in model.modules()] == modes
    assert [set(vars(m)) for m in model.modules()] == names
    assert not any(m._forward_hooks for m in model.modules())


def test_weights_that_are_not_finite_after_the_last_step_are_an_error(digits):
    @dataclass(frozen=True, kw_only=True)
    class Spoilt(BPTT):
        @contextmanager
        def lend(self, model, example):
            with super().lend(model, example) as lent:
                lent.after = lambda: model[1].bias.data.fill_(torch.inf)
                yield lent

    with pytest.raises(FloatingPointError, match="the largest weight is nan in epoch 1"):
        fit(Spoilt(batch_size=100), linear(), digits[0])


def test_a_gradient_that_is_not_finite_makes_no_step(digits):
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return self.scale.abs().sqrt() + 0 * x.flatten(1)[:, :10]  # the derivative at 0 is not finite

    model = Infinite()
    with pytest.raises(FloatingPointError, match="the gradient is nan in epoch 1: lower lr"):
        fit(BPTT(clip=1.0), model, digits[0])
    assert (model.scale == 0).all()


def test_nothing_to_learn_is_an_error(digits):
    model = linear().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        fit(BPTT(), model, digits[0])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"momentum": 1.5}, ValueError),
        ({"accumulate": 0}, ValueError),
        ({"clip": 0.0}, ValueError),
        ({"patience": 0}, ValueError),
        ({"optimizer": "adamw"}, ValueError),
        ({"keep": "first"}, ValueError),
        ({"precision": "float16"}, ValueError),
    ],
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        BPTT(**arguments)


# --- what is reported -----------------------------------------------------------------------------------------


def test_a_record_is_json_and_says_what_happened(digits):
    model = seeded(lambda: spiking((Dense(12),), (1, 8, 8), 10, Direct(4), norm="none"))
    history = fit(BPTT(lr=1e-12, batch_size=100), model, *digits, epochs=2)
    assert json.loads(json.dumps(history.records)) == history.records
    rates = []
    handle = model.network[2].register_forward_hook(lambda m, x, y: rates.append(float(y.detach().mean())))
    model(digits[0][0])
    handle.remove()
    for record in history.records:
        assert list(record) == [
            *("epoch", "loss", "accuracy", "spike_rate", "rates", "lr", "validation_accuracy", "seconds")
        ]
        assert record["rates"] == {"network.2": pytest.approx(rates[0])}
        assert record["spike_rate"] == pytest.approx(rates[0])
    assert fit(BPTT(), mlp(), digits[0]).last["spike_rate"] is None  # ReLUs do not spike
    assert history.learnt == {}


def test_the_bar_shows_all_of_it(digits, capsys):
    model = spiking((Dense(12),), (1, 8, 8), 10, Direct(4), norm="none")
    BPTT(batch_size=20).fit(model, *digits, epochs=2)
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("by BPTT", "epoch 2, ", "loss", "accuracy", "firing", "validation", "samples/s", "0:00:00"):
        assert part in shown


def test_tensorboard_has_every_number_of_the_history(digits, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = spiking((Dense(12),), (1, 8, 8), 10, Direct(4), norm="none")
        history = fit(BPTT(), model, *digits, epochs=2, log=tmp_path / "log")
        accumulator = events.EventAccumulator(str(tmp_path / "log"))
        accumulator.Reload()
    names = {"loss", "accuracy", "validation_accuracy", "spike_rate", "lr", "seconds", "rates/network.2"}
    assert set(accumulator.Tags()["scalars"]) == names
    for name in names:
        points = [(point.step, point.value) for point in accumulator.Scalars(name)]
        wanted = [
            (r["epoch"], r["rates"]["network.2"] if name.startswith("rates") else r[name]) for r in history.records
        ]
        assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]


def test_without_tensorboard_nothing_is_begun(digits, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    model = linear()
    before = deepcopy(model.state_dict())
    with pytest.raises(ImportError, match=r"pip install 'snnrobust\[logging\]'"):
        fit(BPTT(), model, digits[0], log=tmp_path / "log")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not (tmp_path / "log").exists()
