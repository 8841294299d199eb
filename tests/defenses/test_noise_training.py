from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from snnrobust import data
from snnrobust.defenses import NoiseTraining
from snnrobust.draws import Stream, derive, draws
from snnrobust.encoders import Poisson
from snnrobust.experiments import parse
from snnrobust.hardware import Chain, GaussianNoise, deploy
from snnrobust.learning_rules import BPTT, RULES
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.quantization import Uniform

BACKEND = Chain(Uniform(bits=6), GaussianNoise(multiplicative=0.2, additive=0.05, drawn="chip"), GaussianNoise(0.1))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


def test_a_step_is_backpropagation_through_the_chip_of_its_batch(digits, make):
    """The logits are those of ``deploy`` with the chip that the key of the step names."""
    x, y, ids = digits[0][:8], digits[1][:8], torch.arange(30, 38)
    for kind in ("mlp", "direct"):
        model = make(kind)
        reference = deepcopy(model)
        with NoiseTraining(backend=BACKEND).lend(model, x[:1]) as lent:
            lent.before(Stream(5, ids), ids)
            with draws(model.train(), 5, ids):
                loss, logits = lent.backward(x, y, 1.0)
        chip = deploy(reference, BACKEND, seed=derive(5, "chip"))
        with torch.no_grad(), draws(chip, 5, ids):
            expected = chip(x)
        assert torch.equal(logits, expected)
        assert loss == F.cross_entropy(expected, y)


def test_without_noise_it_is_bptt(model, digits):
    """A whole step of gradient descent, in float32 to rounding."""
    reference = deepcopy(model)
    settings = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "batch_size": 100}
    NoiseTraining(backend=GaussianNoise(multiplicative=0.0), **settings).fit(model, digits, epochs=1, progress=False)
    BPTT(**settings).fit(reference, digits, epochs=1, progress=False)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6)


def test_every_batch_is_on_a_chip_of_its_own(digits, make, monkeypatch):
    """What is drawn once a chip differs between batches and is one in a batch, however it is divided."""
    seen, original = [], GaussianNoise.read

    def spy(self, y, start):
        given = original(self, y, start)
        if self.training and y.shape[1] > 1:
            seen.append((given - y).detach()[0])
        return given

    monkeypatch.setattr(GaussianNoise, "read", spy)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    rule = NoiseTraining(backend=GaussianNoise(additive=0.1, drawn="chip"), batch_size=25, accumulate=2)
    rule.fit(model, digits, epochs=2, progress=False)
    patterns = torch.stack([noise[0] for noise in seen])
    assert all(torch.allclose(noise, noise[:1].expand_as(noise), atol=1e-6) for noise in seen)
    assert patterns.shape == (16, 10)
    assert torch.allclose(patterns[::2], patterns[1::2], atol=1e-6)
    assert len(patterns[::2].unique(dim=0)) == 8


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "keep": "best", "accumulate": 2}])
def test_one_seed_decides_all_and_resuming_is_bit_for_bit(model, digits, settings, tmp_path):
    def fit(victim, epochs, **more):
        rule = NoiseTraining(backend=BACKEND, batch_size=50, **{**settings, "schedule": "constant"})
        return rule.fit(victim, digits, digits, epochs=epochs, progress=False, **more)

    whole, resumed, path = deepcopy(model), deepcopy(model), tmp_path / "state"
    expected = fit(whole, 3)
    fit(model, 1, checkpoint=path)
    with torch.no_grad():
        for p in resumed.parameters():
            p.zero_()
    torch.rand(3)
    assert records(fit(resumed, 3, checkpoint=path)) == records(expected)
    assert same(whole, resumed)
    assert not any(m.training for m in whole.modules())


def test_settings_of_bptt_go_with_it(digits, make):
    for settings in ({"truncate": 2}, {"loss": "tet"}, {"precision": "bfloat16"}):
        plain, model = make("direct"), make("direct")
        for victim, more in ((plain, {}), (model, settings)):
            NoiseTraining(backend=BACKEND, batch_size=50, **more).fit(victim, digits, epochs=1, progress=False)
        assert not same(plain, model)


def test_the_validation_is_without_a_chip(digits, make):
    model = make("mlp")
    history = NoiseTraining(backend=GaussianNoise(multiplicative=5.0)).fit(
        model, digits, digits, epochs=2, progress=False
    )
    right = float((model(digits[0]).argmax(1) == digits[1]).double().mean())
    assert history.last["validation_accuracy"] == pytest.approx(right)


def test_backends_in_order_are_a_chain():
    one, two = Uniform(bits=4), GaussianNoise(0.3)
    rule = NoiseTraining(backends=(one, two))
    assert isinstance(rule.backend, Chain)
    assert list(rule.backend.backends) == [one, two]
    assert NoiseTraining(backends=(two,)).backend is two
    assert NoiseTraining().backend.multiplicative == 0.1
    assert RULES["NoiseTraining"] is NoiseTraining


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"backend": 0.3}, TypeError, "backend must be a hardware Backend"),
        ({"backends": (0.3,)}, TypeError, "backend"),
        ({"backends": (Uniform(4), 0.3)}, TypeError, "Backend instances"),
        ({"backend": Uniform(4), "backends": (Uniform(4),)}, ValueError, "not both"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        NoiseTraining(**arguments)


def test_a_model_that_no_chip_takes_is_refused_before_training(digits):
    model = nn.Sequential(nn.Flatten(), prune.l1_unstructured(nn.Linear(64, 10), "weight", 2))
    with pytest.raises(TypeError, match=r"1 \(Linear\) computes its weight from other parameters"):
        NoiseTraining().fit(model, digits, epochs=1, progress=False)


FILE = """
name = "noisy"
[[models]]
name = "snn"
training.rule = { type = "NoiseTraining", lr = 1e-2, backends = BACKENDS }
[[attacks]]
name = "pgd"
attack = { type = "PGD" }
"""


def test_experiment_files_name_its_backends():
    from snnrobust.experiments.build import build_rule, rehearse

    text = FILE.replace(
        "BACKENDS", '[{ type = "Uniform", bits = 4 }, { type = "GaussianNoise", multiplicative = 0.3 }]'
    )
    experiment = parse(text, "here")
    rehearse(experiment)
    rule = build_rule(experiment.models[0], 0)
    assert [type(b).__name__ for b in rule.backend.backends] == ["Uniform", "GaussianNoise"]
    assert (rule.backend.backends[0].bits, rule.backend.backends[1].multiplicative, rule.lr) == (4, 0.3, 1e-2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('[{ type = "GausianNoise" }]', r"rule\.backends\[0\]\.type must be one of .*did you mean 'GaussianNoise'"),
        ('[{ type = "Uniform", bits = 1 }]', r"rule\.backends\[0\]: bits must be in 2\.\.16"),
        ('[{ type = "Uniform", bit = 1 }]', r"rule\.backends\[0\]\.bit: Uniform has no argument"),
        ('{ type = "Uniform", bits = 4 }', r"rule\.backends must be a list"),
        ("[0.3]", r"rule\.backends must be a list"),
    ],
)
def test_mistakes_in_a_file_are_named(given, words):
    from snnrobust.experiments.build import rehearse

    with pytest.raises(ValueError, match=words):
        rehearse(parse(FILE.replace("BACKENDS", given), "here"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_it_helps_on_noisy_hardware(kind):
    """Accuracy on chips with a noise of 100 % of each product, 500 test samples and 3 draws, seed 0; an error is about 1.5 %."""
    train, (x, y) = data.load("digits", "train"), data.take(data.load("digits", "test"), 500)
    backend, found = GaussianNoise(multiplicative=1.0, drawn="inference"), []
    for rule in (BPTT(lr=5e-3), NoiseTraining(backend=backend, lr=5e-3)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ordinary((Dense(64),), (1, 8, 8), 10)
            if kind == "snn":
                model = spiking((Dense(64),), (1, 8, 8), 10, Poisson(8))
        rule.fit(model, train, epochs=8, progress=False)
        chip, right = deploy(model, backend, seed=1), []
        for key in range(3):
            with torch.no_grad(), draws(chip, key):
                right.append(float((chip(x).argmax(1) == y).float().mean()))
        found.append(sum(right) / 3)
    print(kind, found)
    assert found[1] > found[0] + 0.05
