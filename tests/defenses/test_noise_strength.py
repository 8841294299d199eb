"""The schedule of the noise: a pure keyed function, what the layers get of it, resume."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust.defenses import NoiseStrength, NoiseTraining
from snnrobust.draws import derive
from snnrobust.hardware import Chain, GaussianNoise
from snnrobust.quantization import Uniform

VARIED = NoiseStrength(spread=0.5, start=0.2, ramp=6)


@given(st.integers(0, 2**62), st.integers(0, 1000), st.sampled_from(["normal", "uniform"]))
def test_it_is_a_function_of_key_and_batch(key, batch, distribution):
    schedule = NoiseStrength(spread=0.3, distribution=distribution, start=0.5, ramp=100)
    state = torch.get_rng_state()
    found = schedule.factor(key, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert found == NoiseStrength(spread=0.3, distribution=distribution, start=0.5, ramp=100).factor(key, batch) >= 0
    # the ramp is a factor on what is drawn
    mean = 0.5 + 0.5 * min(batch / 100, 1)
    assert found == pytest.approx(mean * schedule.factor(key, 10_000), rel=1e-12)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_its_strengths_have_the_declared_distribution(distribution):
    """Kolmogorov-Smirnov on 2000 keys, seed fixed, level 0.1 %; and each mean and deviation within 4 standard errors."""
    schedule = NoiseStrength(spread=0.2, distribution=distribution)
    found = np.array([schedule.factor(derive(5, i), 0) for i in range(2000)])
    law = stats.norm(1, 0.2) if distribution == "normal" else stats.uniform(1 - 0.2 * 3**0.5, 0.4 * 3**0.5)
    assert stats.kstest(found, law.cdf).pvalue > 1e-3
    assert found.mean() == pytest.approx(1.0, abs=4 * 0.2 / 2000**0.5)
    assert found.std() == pytest.approx(0.2, rel=0.07)


def test_the_ramp_and_no_spread():
    ramp = NoiseStrength(start=0.2, ramp=4)
    assert [ramp.factor(7, i) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert NoiseStrength(start=3.0, ramp=2).factor(0, 1) == 2.0
    assert NoiseStrength().factor(1, 0) == 1.0


def test_it_never_goes_below_nothing():
    found = [NoiseStrength(spread=3.0).factor(i, 0) for i in range(200)]
    assert min(found) == 0.0
    assert max(found) > 3.0


def seen(monkeypatch):
    """Strengths of each read in train mode."""
    found, original = [], GaussianNoise.read

    def spy(self, y, start):
        if self.training and y.shape[1] > 1:
            found.append((self.sigma, self.additive))
        return original(self, y, start)

    monkeypatch.setattr(GaussianNoise, "read", spy)
    return found


def test_all_layers_of_a_batch_have_its_strength(digits, monkeypatch):
    found = seen(monkeypatch)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    backend = Chain(Uniform(bits=6), GaussianNoise(snr_db=20.0, additive=0.3))
    NoiseTraining(backend=backend, strength=VARIED, batch_size=25, seed=3, accumulate=2).fit(
        model, digits, epochs=2, progress=False
    )
    expected = [VARIED.factor(derive(3, "train", i // 4, i % 4), i) for i in range(8)]
    assert len(found) == 8 * 2 * 2  # batches, parts, layers
    for i, (multiplicative, additive) in enumerate(found):
        assert (multiplicative, additive) == pytest.approx((0.1 * expected[i // 4], 0.3 * expected[i // 4]))
    assert backend.each()[1].additive == 0.3  # the recipe is as it was
    assert backend.each()[1].snr_db == 20.0


def test_a_strength_of_one_changes_nothing(model, digits):
    other = deepcopy(model)
    for victim, strength in ((model, None), (other, NoiseStrength())):
        rule = NoiseTraining(backend=GaussianNoise(additive=0.2), strength=strength, batch_size=50)
        rule.fit(victim, digits, epochs=1, progress=False)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("more", [{}, {"keep": "best", "accumulate": 2}])
def test_resuming_is_bit_for_bit(digits, make, tmp_path, more):
    """The ramp goes on where it was: it is not yet at its end when the training stops."""

    def fit(victim, epochs, **kept):
        rule = NoiseTraining(backend=GaussianNoise(additive=0.5), strength=VARIED, batch_size=25, **more)
        return rule.fit(victim, digits, digits, epochs=epochs, progress=False, **kept)

    whole, model, path = make("mlp"), make("mlp"), tmp_path / "state"
    expected = fit(whole, 3)
    fit(model, 1, checkpoint=path)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.rand(3)
    history = fit(model, 3, checkpoint=path)
    assert [r["loss"] for r in history.records] == [r["loss"] for r in expected.records]
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in whole.state_dict().items())
    rule = NoiseTraining(backend=GaussianNoise(additive=0.5), strength=NoiseStrength(spread=0.1), batch_size=25, **more)
    with pytest.raises(ValueError, match="strength differ"):
        rule.fit(model, digits, digits, epochs=4, progress=False, checkpoint=path)


def test_it_trains_spiking_networks(digits, make, monkeypatch):
    found = seen(monkeypatch)
    model = make("direct")
    before = deepcopy(model.state_dict())
    NoiseTraining(backend=GaussianNoise(additive=0.1), strength=VARIED).fit(model, digits, epochs=1, progress=False)
    assert len({additive for _, additive in found}) == 2
    assert model.state_dict().keys() == before.keys()
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"spread": -0.1}, ValueError, "spread must be"),
        ({"spread": float("nan")}, ValueError, "spread must be"),
        ({"distribution": "gauss"}, ValueError, "distribution must be one of normal, uniform"),
        ({"ramp": 1.5}, TypeError, "ramp must be an integer"),
        ({"ramp": -1}, ValueError, "ramp must be at least 0"),
        ({"start": 0.0}, ValueError, "start=0.0 needs ramp"),
        ({"start": -1.0, "ramp": 3}, ValueError, "start must be"),
    ],
)
def test_bad_schedules_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        NoiseStrength(**arguments)


def test_bad_batches_and_keys_are_named():
    with pytest.raises(ValueError, match="batch must be at least 0"):
        VARIED.factor(0, -1)
    with pytest.raises(TypeError, match="key must be an integer"):
        VARIED.factor(0.5, 1)


def test_experiment_files_name_it():
    from snnrobust.experiments import parse
    from snnrobust.experiments.build import build_rule, rehearse

    def rule(strength):
        text = f"""
name = "noisy"
[[models]]
name = "snn"
[models.training.rule]
type = "NoiseTraining"
backends = [{{ type = "GaussianNoise", additive = 0.3 }}]
strength = {strength}
[[attacks]]
name = "pgd"
attack = {{ type = "PGD" }}
"""
        experiment = parse(text, "here")
        rehearse(experiment)
        return build_rule(experiment.models[0], 0)

    assert rule("{ spread = 0.5, ramp = 10, start = 0.0 }").strength == NoiseStrength(spread=0.5, ramp=10, start=0.0)
    with pytest.raises(ValueError, match=r"rule: strength argument must be one of spread.*did you mean 'spread'"):
        rule("{ sprad = 0.5 }")
    with pytest.raises(ValueError, match=r"rule: spread must be in \[0, 10\]"):
        rule("{ spread = -1.0 }")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"strength": 0.3}, TypeError, "strength must be a NoiseStrength"),
        (
            {"strength": VARIED, "backend": Uniform(4)},
            ValueError,
            "strength changes GaussianNoise, and the backend has none",
        ),
    ],
)
def test_bad_rules_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        NoiseTraining(**arguments)
