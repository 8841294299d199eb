"""What holds for all trainings on adversarial examples."""

import json
import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnrobust import attacks, data
from snnrobust.defenses import RAT, TRADES, FastAT, PGDTraining, TradeOff
from snnrobust.encoders import Poisson, SignedPoisson
from snnrobust.experiments import parse
from snnrobust.learning_rules import BPTT, RULES
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons import LIF, surrogate

EPS = 0.1
RULES_HERE = {
    "PGDTraining": lambda **k: PGDTraining(**{"eps": EPS, "steps": 2, **k}),
    "half": lambda **k: PGDTraining(**{"eps": EPS, "steps": 2, "share": 0.5, **k}),
    "TradeOff": lambda **k: TradeOff(**{"eps": EPS, "steps": 2, **k}),
    "TRADES": lambda **k: TRADES(**{"eps": EPS, "steps": 2, "start": 0.02, **k}),
    "FastAT": lambda **k: FastAT(**{"eps": EPS, "check_steps": 1, "check_samples": 20, "lr": 1e-3, **k}),
    "RAT": lambda **k: RAT(**{"eps": EPS, **k}),
    "RAT by PGD": lambda **k: RAT(**{"eps": EPS, "steps": 2, **k}),
}


@pytest.fixture(params=list(RULES_HERE))
def rule(request):
    return RULES_HERE[request.param]


@pytest.fixture
def seen(monkeypatch):
    """Every x and x' of the attacks, and the modes of the model that they meet."""
    found = []

    def note(threat, x, x_adv):
        found.append((x.clone(), x_adv.clone()))

    monkeypatch.setattr(attacks.Linf, "validate", note)
    return found


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


def test_they_are_learning_rules_by_name():
    for name, kind in (
        ("PGDTraining", PGDTraining),
        ("TradeOff", TradeOff),
        ("TRADES", TRADES),
        ("FastAT", FastAT),
        ("RAT", RAT),
    ):
        assert RULES[name] is kind
        assert kind().name == name


def test_budgets_hold_and_every_sample_is_attacked_once_an_epoch(rule, seen, model, digits):
    x, y = digits
    rule(batch_size=32).fit(model, (x, y), epochs=1, progress=False)
    share = getattr(rule(), "share", 1.0)
    training = seen[: len(seen) - 1] if isinstance(rule(), FastAT) else seen  # the last is its check
    assert sum(len(clean) for clean, _ in training) == {1.0: 100, 0.5: 3 * 16 + 2}[share]
    assert len(torch.cat([clean for clean, _ in training]).flatten(1).unique(dim=0)) >= 48
    for clean, adversarial in seen:
        assert (adversarial.double() - clean.double()).abs().max() <= EPS
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert (adversarial != clean).flatten(1).any(1).float().mean() > 0.9
        assert any((row == x).flatten(1).all(1).any() for row in clean[:3])  # of the data as they are


def test_attacks_meet_the_model_in_eval_mode_and_leave_its_statistics_and_data_alone(rule, digits):
    """Statistics move by the batches that are learnt alone, which is one forward pass a step, or two of TRADES and TradeOff."""
    modes, model = [], nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    model[1].register_forward_hook(lambda m, _, y: modes.append((m.training, y.requires_grad)))
    before = deepcopy(digits)
    rule(batch_size=50, lr=1e-5).fit(model, digits, epochs=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, digits, strict=True))
    learnt = 2 * (2 if isinstance(rule(), TRADES | TradeOff) else 1)
    assert sum(training for training, _ in modes) == learnt == int(model[1].num_batches_tracked)
    assert any(not training for training, _ in modes[2:])
    assert all(p.requires_grad for p in model.parameters())


def test_one_seed_decides_all(rule, digits, make):
    def run(seed, elsewhere):
        model = make("poisson")
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)  # where torch's generator stands is of no account
            history = rule(seed=seed, batch_size=32).fit(model, digits, epochs=2, progress=False)
        return model, records(history)

    (one, first), (again, second), (other, _) = run(1, 0), run(1, 5), run(2, 0)
    assert same(one, again)
    assert first == second
    assert not same(one, other)


def test_resuming_is_bit_for_bit(rule, digits, make, tmp_path):
    def fit(model, epochs, **settings):
        return rule(batch_size=32, schedule="constant").fit(model, digits, epochs=epochs, progress=False, **settings)

    whole, resumed, path = make("poisson"), make("poisson", 9), tmp_path / "state"
    expected = fit(whole, 3)
    fit(make("poisson"), 1, checkpoint=path)
    assert records(fit(resumed, 3, checkpoint=path)) == records(expected)
    assert same(whole, resumed)


def test_parts_of_a_batch_take_the_step_of_the_batch(rule, digits, make):
    """Of 25 samples in 3 parts; the same samples are attacked, with the same draws. Float64: rounding turns no sign or spike."""
    x, y = digits[0][:25].double(), digits[1][:25]
    results = []
    for accumulate in (1, 3):
        model = make("mlp").double()
        history = rule(batch_size=25, accumulate=accumulate, optimizer="sgd", lr=0.1).fit(
            model, (x, y), epochs=2, progress=False
        )
        results.append((model, history))
    (one, a), (two, b) = results
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-9)
    for r, s in zip(a.records, b.records, strict=True):
        assert r["adversarial_accuracy"] == s["adversarial_accuracy"]
        assert abs(r["loss"] - s["loss"]) < 1e-9


def test_an_example_does_not_depend_on_the_batch_around_it(rule, digits, make, seen):
    """The same step of trainings whose batches hold other samples beside the first ten."""
    x, y = digits[0].double(), digits[1]
    found = []
    for others in (slice(10, 20), slice(30, 40)):
        seen.clear()
        given = TensorDataset(torch.cat([x[:10], x[others]]), torch.cat([y[:10], y[others]]))
        loader = DataLoader(given, batch_size=20)  # in this order
        rule(seed=3).fit(make("ann").double(), loader, epochs=1, progress=False)
        found.append(seen[0][1][:10])
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_draws_differ_from_step_to_step_and_from_sample_to_sample(rule, make, seen):
    """A batch of copies of one image, twice: only the draws tell the examples apart."""
    image = torch.full((1, 1, 8, 8), 0.5).expand(8, 1, 8, 8)
    loader = DataLoader(TensorDataset(image.repeat(2, 1, 1, 1), torch.zeros(16, dtype=torch.int64)), batch_size=8)
    rule(lr=1e-9).fit(make("poisson"), loader, epochs=1, progress=False)
    examples = torch.cat([adversarial for _, adversarial in seen[:2]]).flatten(1)
    assert len(examples.unique(dim=0)) == len(examples)


@pytest.mark.parametrize("settings", [{"surrogate": surrogate.ATan(5.0)}, {"truncate": 2}, {"loss": "tet"}])
def test_settings_of_bptt_go_with_them(rule, settings, digits, make):
    plain, model = make("poisson"), make("poisson")
    rule(batch_size=50).fit(plain, digits, epochs=1, progress=False)
    kinds = [m.surrogate for m in model.modules() if hasattr(m, "surrogate")]
    rule(batch_size=50, **settings).fit(model, digits, epochs=1, progress=False)
    assert [m.surrogate for m in model.modules() if hasattr(m, "surrogate")] == kinds
    assert not same(plain, model)


def test_bfloat16_is_another_training(rule, digits, make):
    plain, model = make("ann"), make("ann")
    rule(batch_size=50).fit(plain, digits, epochs=1, progress=False)
    rule(batch_size=50, precision="bfloat16").fit(model, digits, epochs=1, progress=False)
    assert not same(plain, model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.allclose(p, q, atol=0.02) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def test_the_history_has_the_accuracy_at_the_examples(rule, digits, make):
    """A model that answers 3 to all is right for the threes, attacked or not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(model[1].bias, 0.0)
    with torch.no_grad():
        model[1].bias[3] = 10.0
    x, y = digits
    chosen = torch.cat([x[y == 3], x[y == 5]]), torch.cat([y[y == 3], y[y == 5]])
    history = rule(batch_size=7, lr=1e-9).fit(model, chosen, epochs=2, progress=False)
    share = getattr(rule(), "share", 1.0)
    for record in history.records:
        assert abs(record["accuracy"] - (chosen[1] == 3).double().mean()) < 1e-9
        if share == 1.0:
            assert record["adversarial_accuracy"] == record["accuracy"]
        else:
            assert 0.2 < record["adversarial_accuracy"] < 0.8
    json.dumps(history.records)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"eps": 0.0}, ValueError, r"eps must be in \(0, inf\].*without a budget"),
        ({"eps": 8}, ValueError, "eps must be in .*8/255"),
        ({"eps": -0.1}, ValueError, "eps"),
        ({"eps": math.nan}, ValueError, "eps"),
        ({"eps": "8/0"}, ValueError, "eps"),
        ({"eps": attacks.Linf(0.1)}, TypeError, "eps must be the budget of an Linf threat"),
        ({"eps": True}, TypeError, "eps"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"bounds": 1.0}, TypeError, "bounds"),
        ({"eot": 0}, ValueError, "eot"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"loss": "tets"}, ValueError, "loss"),
    ],
)
def test_bad_arguments_are_named(rule, arguments, error, words):
    with pytest.raises(error, match=words):
        rule(**arguments)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"steps": 1.5}, {"step_size": 0.0}, {"step_size": "x"}, {"share": 0.0}, {"share": 1.1}]
)
def test_bad_arguments_of_pgd_training_are_named(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
        PGDTraining(**bad)


def test_a_fraction_is_its_number(rule):
    assert rule(eps="8/255") == rule(eps=8 / 255)
    assert rule(bounds=[0.0, 1.0]) == rule()  # as experiment files give it
    assert rule(eps=2.0, bounds=(-1, 1)).threat == attacks.Linf(2.0, (-1.0, 1.0))


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        (
            lambda: spiking((Dense(8),), (1, 8, 8), 10, Poisson(4, gradient="none")),
            r'encoder \(Poisson\) has gradient="none"',
        ),
        (lambda: spiking((Dense(8),), (1, 8, 8), 10, SignedPoisson(4, gradient="none")), r"encoder \(SignedPoisson\)"),
        (
            lambda: nn.Sequential(Cut(), nn.Flatten(), nn.Linear(64, 10)),
            "do not depend on x through any differentiable path",
        ),
    ],
)
def test_a_model_that_passes_no_gradient_to_its_input_is_refused_before_training(rule, victim, words, digits):
    model = victim()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        rule().fit(model, digits, epochs=1, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_gradient_of_exactly_zero_is_said(rule, digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    with pytest.warns(attacks.BluntGradientWarning, match=r"zero for all \d+ samples"):
        rule(batch_size=100).fit(model, digits, epochs=1, progress=False)


def test_inputs_outside_the_box_are_an_error(rule, digits, make):
    x, y = digits
    with pytest.raises(ValueError, match=r"inputs must lie in \[0, 1\].*make normalisation a layer"):
        rule().fit(make("ann"), (2 * x - 1, y), epochs=1, progress=False)
    rule(bounds=(-1, 1), batch_size=100).fit(make("ann"), (2 * x - 1, y), epochs=1, progress=False)


def test_an_error_inside_leaves_the_model_as_it_was(rule, digits, make, monkeypatch):
    model = make("poisson")
    surrogates = [m.surrogate for m in model.modules() if hasattr(m, "surrogate")]

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(attacks.Linf, "project", fail)
    with pytest.raises(KeyboardInterrupt):
        rule(surrogate=surrogate.ATan(7.0)).fit(model, digits, epochs=1, progress=False)
    assert [m.surrogate for m in model.modules() if hasattr(m, "surrogate")] == surrogates
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_expectation_over_draws_is_another_attack(digits, make, seen):
    for rule in RULES_HERE.values():
        found = []
        for eot in (1, 3):
            seen.clear()
            rule(eot=eot, batch_size=100).fit(make("poisson"), digits, epochs=1, progress=False)
            found.append(seen[0][1])
        assert not torch.equal(*found)


@pytest.mark.parametrize("name", ["PGDTraining", "TRADES", "FastAT", "RAT"])
def test_experiment_files_name_them(name):
    text = f"""
name = "robust"
[[models]]
name = "snn"
trainer = {{ type = "{name}", eps = "4/255", bounds = [0.0, 1.0] }}
[[attacks]]
name = "pgd"
attack = {{ type = "PGD" }}
"""
    from snnrobust.experiments.build import build_rule, rehearse

    experiment = parse(text, "here")
    rehearse(experiment)
    rule = build_rule(experiment.models[0], 1)
    assert (rule.name, rule.eps) == (name, 4 / 255)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Float64; the third batch has fewer samples than there are processes."""
    results = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.pt"
        script = Path(__file__).with_name("parallel.py")
        done = subprocess.run(
            [sys.executable, script, str(processes), path], timeout=300, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path, weights_only=True))
    assert [r["processes"] for r in results] == [1, 2]
    one, two = (r["rules"] for r in results)
    assert one.keys() == two.keys() == RULES_HERE.keys()
    for name in RULES_HERE:
        for key, weight in one[name]["weights"].items():
            assert (two[name]["weights"][key] - weight).abs().max() < 1e-9
        for a, b in zip(one[name]["history"], two[name]["history"], strict=True):
            assert abs(a["adversarial_accuracy"] - b["adversarial_accuracy"]) < 1e-12
            assert abs(a["loss"] - b["loss"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ann", "snn"])
@pytest.mark.parametrize(
    "rule", [PGDTraining(eps=0.15, lr=5e-3), TRADES(eps=0.15, lr=5e-3)], ids=lambda rule: rule.name
)
def test_it_makes_digits_robust(rule, kind):
    """PGD-10 at eps = 0.15 on 300 test samples, seed 0. A standard error is 3 %."""
    train, test = data.load("digits", "train"), data.load("digits", "test")
    x, y = data.take(test, 300)
    found = {}
    for trainer in (BPTT(lr=5e-3), rule):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ordinary((Dense(64),), (1, 8, 8), 10)
            if kind == "snn":
                model = spiking((Dense(64),), (1, 8, 8), 10, Poisson(8), LIF())
        trainer.fit(model, train, epochs=6, progress=False)
        attack = attacks.PGD(
            attacks.Linf(0.15), steps=10, gradient=attacks.EOT(4) if kind == "snn" else attacks.Backprop()
        )
        x_adv = attack(model, x, y, seed=1)
        with torch.random.fork_rng(), torch.no_grad():
            found[trainer.name] = tuple(float((model(z).argmax(1) == y).float().mean()) for z in (x, x_adv))
    assert found[rule.name][0] > 0.85
    assert found[rule.name][1] > found["BPTT"][1] + 0.15
