"""Quantized models under membership inference, against the attacks called by hand and against models with known answers."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.attacks import OfflineLiRA, ShadowMIA, ThresholdMIA
from snnrobust.attacks.membership import Settings
from snnrobust.codesign import FittedQuantizer, early_stops, membership_experiment
from snnrobust.codesign.quantized_membership import LIRA, REGRESSION, WEAK
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import BPTT
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF


def remember(pair, seed, moments=(4, 20, 80)):
    """Networks along a training that learns a few noisy labels by heart."""
    x, y = pair
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = []
    for step in range(max(moments)):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
        if step + 1 in moments:
            found.append(deepcopy(model))
    return found


def rounded(levels):
    """A quantizer to at most ``2 * levels + 1`` values a layer."""

    def quantize(model):
        made = deepcopy(model)
        for layer in made.modules():
            if isinstance(layer, nn.Linear):
                step = layer.weight.detach().abs().amax() / levels
                layer.weight.data = (layer.weight.data / step).round() * step
        return made

    return quantize


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 10)


@pytest.fixture(scope="module")
def split():
    x, y = data.take(data.load("digits", "train"))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(len(y), generator=generator) < 0.3
    y = torch.where(noisy, torch.randint(0, 10, y.shape, generator=generator), y)
    return (x[:150], y[:150]), (x[150:350], y[150:350]), (x[350:650], y[350:650])


@pytest.fixture(scope="module")
def experiment(split):
    return membership_experiment(remember, *split, seeds=(0, 1), shadows=4, seed=3)


def scores(reports):
    return [np.concatenate([report.members, report.non_members]) for report in reports]


def test_the_float_models_leak(experiment):
    found = experiment.leakage()
    assert found.name == "float"
    assert set(found.reports) == {"threshold on loss", "threshold on modified_entropy", REGRESSION, LIRA}
    for reports in found.reports.values():
        assert all(report.auc.low > 0.55 for report in reports)
    assert min(found.on_members) > max(found.on_others) + 0.1


@pytest.mark.parametrize("quantize", [lambda m: m, deepcopy, FittedQuantizer(deepcopy, lambda m, pair, seed: None)])
def test_the_identity_changes_nothing(experiment, quantize):
    plain, found = experiment.leakage(), experiment.leakage(quantize)
    for attack, reports in plain.reports.items():
        for kind in (attack, attack + WEAK):
            if kind in found.reports:
                for one, other in zip(scores(reports), scores(found.reports[kind]), strict=True):
                    np.testing.assert_array_equal(one, other)
    assert REGRESSION + WEAK in found.reports
    assert LIRA + WEAK in found.reports
    assert (plain.on_members, plain.on_others, plain.on_pool) == (found.on_members, found.on_others, found.on_pool)


def test_reports_are_those_of_the_attacks_called_by_hand(experiment, split):
    members, others, _ = split
    quantize = rounded(2)
    found = experiment.leakage(quantize)
    known = experiment.shadows[-1]
    adaptive = replace(known, models=tuple(quantize(m) for m in known.models))
    attacks = {
        "threshold on loss": ThresholdMIA(signal="loss"),
        "threshold on modified_entropy": ThresholdMIA(signal="modified_entropy"),
        REGRESSION: ShadowMIA(shadows=adaptive),
        LIRA: OfflineLiRA(shadows=adaptive),
        REGRESSION + WEAK: ShadowMIA(shadows=known),
        LIRA + WEAK: OfflineLiRA(shadows=known),
    }
    assert set(attacks) == set(found.reports)
    for name, attack in attacks.items():
        for models, report in zip(experiment.victims, found.reports[name], strict=True):
            expected = attack(quantize(models[-1]), members, others, seed=3)
            assert str(expected) == str(report)
            np.testing.assert_array_equal(expected.members, report.members)
            np.testing.assert_array_equal(expected.non_members, report.non_members)
    x, y = others
    right = [(quantize(models[-1])(x).argmax(1) == y).double().mean() for models in experiment.victims]
    assert found.on_others == pytest.approx([float(r) for r in right])


@pytest.mark.parametrize("attack", [REGRESSION, LIRA])
def test_the_adaptive_attacker_has_quantized_shadows(experiment, attack, monkeypatch):
    """Each attack sees shadows of at most three values a layer, and the weaker one sees float ones."""
    seen = []
    kind = {REGRESSION: ShadowMIA, LIRA: OfflineLiRA}[attack]
    check = kind.__post_init__

    def spy(self):
        check(self)
        seen.append(max(len(m[1].weight.unique()) for m in self.shadows.models))

    monkeypatch.setattr(kind, "__post_init__", spy)
    found = experiment.leakage(rounded(1))
    assert seen[0] <= 3 < seen[1]
    assert len(seen) == 2
    different = zip(scores(found.reports[attack]), scores(found.reports[attack + WEAK]), strict=True)
    assert all(not np.array_equal(one, other) for one, other in different)


def test_a_quantizer_to_a_constant_leaves_chance(experiment):
    found = experiment.leakage(lambda m: Constant(), name="constant")
    for attack in ("threshold on loss", LIRA):
        for report in found.reports[attack]:
            assert report.auc.value == report.balanced_accuracy.value == report.balanced_accuracy_max == 0.5
            assert all(at.tpr is None or at.tpr.value == 0.0 for at in report.at_fpr)
    # the others see the label too, in "correct" and in the last bits, and float shadows how hard a sample is
    for reports in found.reports.values():
        for report in reports:
            assert report.auc.low < 0.5 < report.auc.high
            assert report.balanced_accuracy.low < 0.5


def test_each_shadow_is_fitted_with_its_own_samples(experiment, split):
    seen = []

    def fit(model, pair, seed):
        seen.append((pair[0], pair[1], seed, float(torch.rand(()))))
        model[1].weight.data.zero_()

    state = torch.random.get_rng_state()
    found = experiment.leakage(FittedQuantizer(deepcopy, fit))
    assert torch.equal(torch.random.get_rng_state(), state)
    known = experiment.shadows[-1]
    for (x, y, *_), rows in zip(seen[2:], known.inside, strict=True):
        assert torch.equal(x, known.x[rows])
        assert torch.equal(y, known.y[rows])
    for x, y, *_ in seen[:2]:
        assert torch.equal(x, split[0][0])
        assert torch.equal(y, split[0][1])
    assert len({s for *_, s, _ in seen}) == len({u for *_, u in seen}) == 6
    assert max(found.on_members) < 0.3  # what fit did counts
    again = len(seen)
    experiment.leakage(FittedQuantizer(deepcopy, fit))
    assert [s[2:] for s in seen[:again]] == [s[2:] for s in seen[again:]]


def test_the_control_is_the_earliest_that_is_as_accurate(experiment):
    x, y = experiment.shadows[-1].x, experiment.shadows[-1].y
    accuracy = [
        float(np.mean([float((models[k](x).argmax(1) == y).double().mean()) for models in experiment.victims]))
        for k in range(3)
    ]
    assert accuracy[0] < accuracy[1] - 0.01
    plain = experiment.leakage()
    for k in range(3):
        aim = replace(plain, on_pool=(accuracy[k] - 1e-9,))
        expected = next(j for j in range(3) if accuracy[j] >= accuracy[k] - 1e-9)
        control = experiment.early_stopped(aim)
        assert control.checkpoint == expected
        assert control.matched
        direct = experiment.leakage(checkpoint=expected)
        for attack, reports in direct.reports.items():
            for one, other in zip(scores(reports), scores(control.reports[attack]), strict=True):
                np.testing.assert_array_equal(one, other)
    beyond = experiment.early_stopped(replace(plain, on_pool=(1.0, 1.0)), name="control")
    assert beyond.name == "control"
    assert beyond.matched is False
    assert beyond.checkpoint == int(np.argmax(accuracy))


def test_less_trained_models_leak_less_to_shadows_stopped_alike(experiment):
    first, last = experiment.leakage(checkpoint=0), experiment.leakage(checkpoint=-1)
    for attack in first.reports:
        assert np.mean(first.values(attack, "auc")) < np.mean(last.values(attack, "auc")) - 0.05


def test_early_stops_are_a_longer_training_s_states(split):
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    trainer = BPTT(lr=1e-2, seed=5)
    found = early_stops(trainer, build(), split[0], (1, 3))
    assert len(found) == 2
    for count, model in zip((1, 3), found, strict=True):
        straight = build()
        trainer.fit(straight, split[0], epochs=count, progress=False)
        assert torch.equal(straight[1].weight, model[1].weight)


def test_random_models_and_results_do_not_depend_on_the_batch(split):
    members, others, pool = [(x[:40], y[:40]) for x, y in split]

    def train(pair, seed):
        torch.manual_seed(seed)
        network = Sequential(nn.Flatten(), nn.Linear(64, 8), LIF(threshold=0.3), nn.Linear(8, 10))
        return SpikingClassifier(Poisson(2), network, MeanOutput()).double()

    found = []
    for batch_size in (256, 7):
        settings = Settings(draws=2, batch_size=batch_size, fpr=(0.1,))
        made = membership_experiment(
            train,
            *((x.double(), y) for x, y in (members, others, pool)),
            seeds=(1,), shadows=2, settings=settings,
        )  # fmt: skip
        found.append(made.leakage(rounded(1)))
        by_hand = OfflineLiRA(shadows=made.shadows[0], draws=2, batch_size=batch_size)
        victim = rounded(1)(made.victims[0][0])
        report = by_hand(victim, (members[0].double(), members[1]), (others[0].double(), others[1]))
        np.testing.assert_array_equal(report.members, found[-1].reports[LIRA + WEAK][0].members)
    for attack, reports in found[0].reports.items():
        assert [at.fpr for at in reports[0].at_fpr] == [0.1]
        for one, other in zip(scores(reports), scores(found[1].reports[attack]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


def test_bad_quantizers_are_named(experiment):
    def in_place(model):
        model[1].weight.data.mul_(0.5)
        return model

    kept = deepcopy(experiment.shadows[-1].models[0].state_dict())
    with pytest.raises(ValueError, match="quantize changed the model that it was given"):
        experiment.leakage(in_place)
    experiment.shadows[-1].models[0].load_state_dict(kept)
    with pytest.raises(TypeError, match=r"what quantize returns must be a torch\.nn\.Module.*got Parameter"):
        experiment.leakage(lambda m: m[1].weight)
    shared = Constant()
    with pytest.raises(ValueError, match="quantize returned the same model for several"):
        experiment.leakage(lambda m: shared)
    with pytest.raises(ValueError, match="must return a copy where it is fitted afterwards"):
        experiment.leakage(FittedQuantizer(lambda m: m, lambda m, pair, seed: None))
    with pytest.raises(TypeError, match="quantize must be a function"):
        experiment.leakage(4)
    with pytest.raises(TypeError, match="fit must be a function"):
        FittedQuantizer(deepcopy, 5)
    with pytest.raises(ValueError, match=r"checkpoint must be in -3\.\.2, .* got 3"):
        experiment.leakage(checkpoint=3)
    with pytest.raises(ValueError, match="threshold_on must be one of"):
        experiment.leakage(threshold_on=("losses",))


def test_bad_experiments_are_named(split):
    members, others, pool = split
    options = {"seeds": (0,), "shadows": 2}
    with pytest.raises(ValueError, match="shadows must be at least 2"):
        membership_experiment(remember, members, others, pool, shadows=1)
    with pytest.raises(ValueError, match="seeds must be the training seeds of at least one victim"):
        membership_experiment(remember, members, others, pool, seeds=())
    with pytest.raises(TypeError, match="train must be a function"):
        membership_experiment(nn.Linear(64, 10).weight, members, others, pool)
    for inside, outside, known, message in (
        (members, members, pool, "150 of 150 members are among the non_members"),
        (members, others, members, "150 of 150 members are among the pool"),
        (members, others, others, "200 of 200 non_members are among the pool"),
    ):
        with pytest.raises(ValueError, match=message):
            membership_experiment(lambda pair, seed: pytest.fail("trained"), inside, outside, known, **options)
    linear = nn.Linear(64, 10)
    with pytest.raises(ValueError, match="train must return a model, or different models"):
        membership_experiment(lambda pair, seed: [linear, linear], members, others, pool, **options)
    with pytest.raises(ValueError, match=r"equally many models along each training, got \[1, 2\]"):
        membership_experiment(
            lambda pair, seed: [nn.Linear(64, 10) for _ in range(1 + (len(pair[1]) == len(members[1]) and seed == 0))],
            members, others, pool, **options,
        )  # fmt: skip
    for epochs in ((), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="epochs must be rising"):
            early_stops(BPTT(), linear, members, epochs)
    with pytest.raises(ValueError, match="constant learning rate to be stopped early, got schedule='cosine'"):
        early_stops(BPTT(schedule="cosine"), linear, members, (1, 2))
