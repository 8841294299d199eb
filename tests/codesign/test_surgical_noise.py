"""The scan against scores computed by hand, the combination step by step, the judgement against its definition."""

import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.attacks import FGSM, PGD, Linf, cross_entropy
from snnrobust.codesign import Score, SurgicalNoise
from snnrobust.codesign.surgical_noise import _Search
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import SRAM, deploy, deploy_each
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, ordinary, spiking

FAST = FGSM(Linf(0.1))
CONFIGURATIONS = (SRAM(0.83, ratio="4:4"), SRAM(0.79, ratio="4:4"), SRAM(0.79, ratio="2:6"))


def trained(kind):
    with keyed(0):
        layers, shape = (Dense(20), Dense(16)), data.SHAPES["digits"]
        model = ordinary(layers, shape, 10) if kind == "ann" else spiking(layers, shape, 10, Direct(3))
    BPTT(lr=1e-2, seed=0).fit(model, data.load("digits", "train"), epochs=2, progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {kind: trained(kind) for kind in ("ann", "snn")}


@pytest.fixture(scope="module")
def samples():
    x, y = data.take(data.load("digits", "test"), 300)
    return (x[:120], y[:120]), (x[120:], y[120:])


def search(model, samples, seed=0, **arguments):
    arguments = {"attack": FAST, "configurations": CONFIGURATIONS, "chips": 2, "judge_chips": 2} | arguments
    return SurgicalNoise(**arguments)(model, *samples, seed=seed)


def names(model):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_scores_are_those_of_the_chips(models, samples, kind):
    """The adversarial loss of one layer's memory, image by image, on the two chips of the selection."""
    model, (x, y) = models[kind], samples[0]
    result = search(model, samples, least=1e9)
    ideal = deploy(model, SRAM(1.0), seed=0)
    x_adv = FAST(ideal, x, y, seed=derive(0, "surgical noise", "craft") >> 1)
    assert result.chosen == {}
    assert len(result.trials) == len(names(model)) * len(CONFIGURATIONS)
    with torch.no_grad():
        z = ideal(x_adv)
        assert result.baseline.loss == pytest.approx(float(cross_entropy(z, y).mean()), rel=1e-5)
        assert result.baseline.accuracy == pytest.approx(float((z.argmax(1) == y).double().mean()))
        for trial in result.trials[::2]:
            memories = dict.fromkeys(names(model), SRAM(1.0)) | {trial.layer: trial.sram}
            found = []
            for i in range(2):
                chip = deploy_each(model, memories, seed=derive(0, "selection chip", i) >> 1)
                z, clean = chip(x_adv), chip(x)
                right = [float((logits.argmax(1) == y).double().mean()) for logits in (z, clean)]
                found.append((float(cross_entropy(z, y).mean()), *right))
            mean = [sum(values) / 2 for values in zip(*found, strict=True)]
            assert [trial.score.loss, trial.score.accuracy, trial.score.clean] == pytest.approx(mean, rel=1e-5)
            assert trial.gain == pytest.approx(result.baseline.loss - trial.score.loss)


def scripted(monkeypatch, table, baseline=Score(2.0, 0.5, 0.9)):  # noqa: B008
    """Scores by the number of noisy layers' configurations, in place of measurements."""
    asked = []

    def score(self, memories):
        key = frozenset((layer, CONFIGURATIONS.index(sram)) for layer, sram in memories.items())
        asked.append(key)
        return table(key) if memories else baseline

    monkeypatch.setattr(_Search, "score", score)
    return asked


def test_the_combination_is_greedy(models, samples, monkeypatch):
    """First layer: its second configuration is best. Second: fits alone, spoils the set. Third: improves it."""
    model = models["ann"]
    a, b, c = names(model)
    losses = {
        (a, 0): 1.8, (a, 1): 1.5, (a, 2): 1.9, (b, 0): 1.6, (b, 1): 2.5, (b, 2): 2.1, (c, 0): 3.0, (c, 1): 1.7, (c, 2): 1.9,
    }  # fmt: skip
    together = {frozenset({(a, 1), (b, 0)}): 1.55, frozenset({(a, 1), (c, 1)}): 1.3}

    def table(key):
        return Score(losses[next(iter(key))] if len(key) == 1 else together[key], 0.5, 0.9)

    asked = scripted(monkeypatch, table)
    result = search(model, samples)
    assert result.chosen == {a: CONFIGURATIONS[1], c: CONFIGURATIONS[1]}
    assert [(t.layer, t.sram) for t in result.trials if t.kept] == list(result.chosen.items())
    assert [score.loss for _, score in result.combined] == [1.5, 1.3]
    assert asked[-2:] == list(together)
    lone = search(model, samples, layers=[b])
    assert lone.chosen == {b: CONFIGURATIONS[0]}
    assert {t.layer for t in lone.trials} == {b}


@pytest.mark.parametrize(
    ("rule", "score", "gain"),
    [
        ("loss", Score(1.5, 0.1, 0.9), 0.5),
        ("accuracy", Score(9.0, 0.6, 0.9), 0.1),
        ("gap", Score(9.0, 0.5, 0.89), 0.01),
        (lambda before, after: after.loss / before.loss, Score(4.0, 0.5, 0.9), 2.0),
    ],
)
def test_rules(models, samples, monkeypatch, rule, score, gain):
    scripted(monkeypatch, lambda key: score)
    result = search(models["ann"], samples, rule=rule)
    assert result.trials[0].gain == pytest.approx(gain)
    assert len(result.chosen) == 1  # a second layer does not add to it
    assert not search(models["ann"], samples, rule=rule, least=gain + 1e-6).chosen


def test_a_layer_that_costs_clean_accuracy_is_not_kept(models, samples, monkeypatch):
    scripted(monkeypatch, lambda key: Score(1.0, 0.9, 0.87))
    assert not search(models["ann"], samples, clean_drop=0.029).chosen
    assert search(models["ann"], samples, clean_drop=0.031).chosen


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_judgements_are_of_other_images_and_chips(models, samples, kind):
    model, (x, y) = models[kind], samples[1]
    before = {n: p.clone() for n, p in model.state_dict().items()}
    judges = {"FGSM": FAST, "PGD": PGD(Linf(0.1), steps=3)}
    result = search(model, samples, rule=lambda a, b: 1 - b.loss / a.loss + 5, clean_drop=1.0, judges=judges)
    assert result.chosen
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    seeds = [derive(0, "judge chip", i) >> 1 for i in range(2)]
    assert not set(seeds) & {derive(0, "selection chip", i) >> 1 for i in range(2)}
    key = derive(0, "surgical noise", "craft") >> 1
    ideal, chips = deploy(model, SRAM(1.0), seed=0), [result.deploy(model, seed=s) for s in seeds]
    for judged, attack in zip(result.judgements, judges.values(), strict=True):

        def right(chip, images):
            with torch.no_grad():
                return (chip(images).argmax(1) == y).double()

        shown = attack(ideal, x, y, seed=key)
        assert torch.equal(judged.ideal, right(ideal, shown))
        assert torch.equal(judged.software, torch.stack([right(chip, shown) for chip in chips]).mean(0))
        own = [right(chip, attack(chip, x, y, seed=key)) for chip in chips]
        assert torch.equal(judged.on_chip, torch.stack(own).mean(0))
        gain, low, high = judged.gain("on_chip")
        assert low <= gain <= high
        assert gain == pytest.approx(float((judged.on_chip - judged.ideal).mean()))
    text = str(result)
    assert "PGD, crafted on the chip: ideal" in text
    assert "no robustness" in text
    assert str(search(model, samples, rule=lambda a, b: 1 - b.loss / a.loss + 5, clean_drop=1.0, judges=judges)) == text


def test_maps_of_each_pass_are_attacked_by_expectation(models, samples):
    """Shares are over the draws of the judgement, each of which meets other maps."""
    model, moving = models["ann"], (SRAM(0.79, ratio="2:6", drawn="inference"),)
    few = [tuple(t[:40] for t in part) for part in samples]
    arguments = {
        "configurations": moving, "rule": lambda a, b: 1.0, "clean_drop": 1.0, "layers": names(model)[:1], "judge_draws": 6,
        "judge_chips": 1, "chips": 1, "draws": 2,
    }  # fmt: skip
    result = search(model, few, eot=4, **arguments)
    chip = result.deploy(model, seed=derive(0, "judge chip", 0) >> 1)
    x, y = few[1]
    shares = torch.zeros(len(x), dtype=torch.float64)
    for i in range(6):
        with torch.no_grad(), draws(chip, derive(derive(0, "surgical noise", "judge"), "draw", i)):
            shares += (chip(x).argmax(1) == y).double() / 6
    torch.testing.assert_close(result.clean[1], shares)
    assert (result.judgements[0].on_chip * 6).frac().abs().max() < 1e-9
    assert 0 < result.judgements[0].on_chip.mean() < 1


def test_on_the_chip_means_another_selection(models, samples):
    model = models["ann"]
    arguments = {"configurations": CONFIGURATIONS[2:], "layers": names(model)[:1], "least": 1e9}
    software, chip = (search(model, samples, crafted_on=where, **arguments) for where in ("software", "chip"))
    assert software.baseline == chip.baseline
    assert chip.trials[0].score.loss > software.trials[0].score.loss  # the attack knows the chip
    assert chip.trials[0].score.clean == software.trials[0].score.clean


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"attack": "FGSM"}, TypeError, "attack must be an attack such as"),
        ({"configurations": []}, TypeError, "configurations must be a list of SRAM"),
        ({"configurations": [0.8]}, TypeError, "configurations must be a list of SRAM"),
        ({"rule": "los"}, ValueError, r"rule must be one of .*did you mean 'loss'"),
        ({"crafted_on": "eot"}, ValueError, "crafted_on must be one of"),
        ({"judges": {}}, TypeError, "judges must map names to attacks"),
        ({"judges": {"x": 1}}, TypeError, "judges must map names to attacks"),
        ({"clean_drop": -0.1}, ValueError, "clean_drop"),
        ({"chips": 0}, ValueError, "chips"),
        ({"bits": 1.5}, TypeError, "bits"),
        ({"layers": ["nothing"]}, ValueError, "layers must be one of"),
    ],
)
def test_bad_arguments_are_named(models, samples, arguments, error, match):
    with pytest.raises(error, match=match):
        search(models["ann"], samples, **arguments)


def test_images_of_the_choice_are_refused_as_judges(models, samples):
    (x, y), (x_judge, y_judge) = samples
    mixed = torch.cat([x_judge, x[5:7]]), torch.cat([y_judge, y[5:7]])
    with pytest.raises(ValueError, match="judge must be other images than data: 2 are in both"):
        search(models["ann"], ((x, y), mixed))
    with pytest.raises(ValueError, match="of one shape"):
        search(models["ann"], ((x, y), (x_judge[..., :4], y_judge)))
