"""Planted errors are recovered, clusters are found, chips and samples are kept apart, and chips are left alone."""

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust.codesign import (
    chip_accuracy,
    chip_yield,
    fit_knobs,
    fit_tuner,
    judge_tuning,
    signatures,
    tune,
    with_knobs,
)
from snnrobust.codesign.chip_tuning import chip_digest
from snnrobust.draws import keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import GaussianNoise, WeightVariation, deploy, fleet
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import BPTT
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF
from snnrobust.statistics import mean_interval

CLASSES, FEATURES = 4, 12


def samples(n, seed):
    """Four blobs in [0, 1]^12."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    y = torch.randint(CLASSES, (n,), generator=generator)
    x = (centres[y] + 0.28 * torch.randn(n, FEATURES, generator=generator)).clamp(0, 1)
    return x, y


TRAIN, VALIDATION, TEST = samples(600, 0), samples(200, 1), samples(300, 2)
IMAGES = samples(6, 3)[0]


@pytest.fixture(scope="module", params=["ann", "snn"])
def model(request):
    """Hidden biases for ReLU, which would not notice a gain without them; none for LIF, so that a threshold can undo one."""
    with keyed(0):
        hidden = (nn.ReLU(), nn.ReLU()) if request.param == "ann" else (LIF(0.9, 0.5), LIF(0.9, 0.5))
        first, second = (nn.Linear(*sizes, bias=request.param == "ann") for sizes in ((FEATURES, 24), (24, 16)))
        parts = first, hidden[0], second, hidden[1], nn.Linear(16, CLASSES, bias=False)
        made = nn.Sequential(*parts)
        if request.param == "snn":
            made = SpikingClassifier(Direct(6), Sequential(*parts), MeanOutput())
    BPTT(lr=1e-2).fit(made, TRAIN, epochs=12, progress=False)
    return made.eval()


SYSTEMATIC = WeightVariation(1.2, 1.0)


@pytest.fixture(scope="module")
def tuner(model):
    return fit_tuner(
        fleet(model, SYSTEMATIC, 24), IMAGES, TRAIN, VALIDATION, clusters=3, steps=60, lr=0.05, batch_size=64
    )


def test_the_exact_inverse_of_a_planted_gain_gives_the_ideal_model():
    """Without biases a gain g of each layer is undone by 1 / g in front of its neurons: no statistics, no training."""
    torch.manual_seed(0)
    parts = nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)
    ideal, x = nn.Sequential(*parts).double(), torch.rand(9, 5, dtype=torch.float64)
    chip = deploy(ideal, WeightVariation(0.5, 1.0), seed=3)
    gains = [chip[i].layer.array.weight[0, 0] / ideal[i].weight.detach()[0, 0] for i in (0, 2)]
    knobs = torch.tensor([[-float(g.log()), 0.0] for g in gains], dtype=torch.float64)
    tuned = with_knobs(chip, knobs)
    hidden = nn.Sequential(*list(tuned)[:4])(x)
    assert torch.allclose(hidden, ideal[:4](x), atol=1e-12)


def test_fitted_knobs_undo_a_planted_gain(model):
    """The first layer's weights times 0.2 (biases stay) or 0.1: accuracy falls, and most of it comes back."""
    chip = deploy(model, WeightVariation(0.0), seed=0)
    arrays = [m for m in chip.modules() if hasattr(m, "array")]
    arrays[0].array.weight.mul_(0.2 if isinstance(model, nn.Sequential) else 0.1)
    before = {name: value.clone() for name, value in chip.state_dict().items()}
    ideal, broken = chip_accuracy(model, TEST), chip_accuracy(chip, TEST)
    knobs = fit_knobs([chip], TRAIN, steps=150, lr=0.05)
    tuned = chip_accuracy(with_knobs(chip, knobs), TEST)
    assert broken < ideal - 0.1
    assert tuned > ideal - 0.4 * (ideal - broken)
    assert knobs[0, 0].exp() > 1.5  # the first gain goes up
    if not isinstance(model, nn.Sequential):
        assert knobs[:, 1].max() == pytest.approx(0.1, abs=1e-6)  # as far as a leak of 0.9 goes
    assert all(torch.equal(value, before[name]) for name, value in chip.state_dict().items())
    assert all(p.grad is None for p in chip.parameters())


def test_a_fleet_is_better_after_tuning_and_its_accuracy_is_told(model, tuner):
    report = judge_tuning(
        tuner, fleet(model, SYSTEMATIC, 24, seed=1000), TEST, threshold=chip_accuracy(model, TEST) - 0.03
    )
    assert report.after.mean() > report.before.mean() + 0.05
    assert report.yield_after.share > report.yield_before.share
    assert report.r2 > 0.5
    assert report.error == pytest.approx(np.abs(report.predicted_before - report.before).mean())
    assert set(report.clusters) <= {0, 1, 2}
    assert f"{100 * report.threshold:.1f} %" in str(report)
    assert report.json()["after"] == report.after.tolist()


@pytest.mark.slow
def test_regression_tells_knobs_from_the_signature(model):
    """All of the variation is systematic, so that knobs told for a new chip are worth those fitted to it, to 3 points."""
    tuner = fit_tuner(
        fleet(model, SYSTEMATIC, 24), IMAGES, TRAIN, VALIDATION, method="regression", steps=20, lr=0.1, batch_size=64
    )
    chips = list(fleet(model, SYSTEMATIC, 8, seed=1000))
    before = np.mean([chip_accuracy(chip, TEST) for chip in chips])
    told = np.mean([chip_accuracy(tune(chip, tuner), TEST) for chip in chips])
    fitted = np.mean(
        [
            chip_accuracy(
                with_knobs(c, fit_knobs([c], TRAIN, steps=20, lr=0.1, units=tuner.units), units=tuner.units), TEST
            )
            for c in chips
        ]
    )
    assert told > before + 0.03
    assert told > fitted - 0.03


def test_planted_clusters_are_found_and_new_chips_go_to_theirs(model):
    """Two kinds of chips: the first layer times 0.4 or times 2.5, and a little variation."""

    def planted(seed):
        chip = deploy(model, WeightVariation(0.05), seed=seed)
        next(m for m in chip.modules() if hasattr(m, "array")).array.weight.mul_((0.4, 2.5)[seed % 2])
        return chip

    tuner = fit_tuner([planted(s) for s in range(12)], IMAGES, TRAIN, VALIDATION, clusters=2, steps=40, lr=0.05)
    assert len(set(tuner.members[::2])) == 1
    assert len(set(tuner.members[1::2])) == 1
    assert tuner.members[0] != tuner.members[1]
    for seed in range(100, 106):
        assert tuner.cluster(tuner.signature(planted(seed))) == tuner.members[seed % 2]
    gain = tuner.knobs[:, 0, 0]
    assert gain[tuner.members[0]] > gain[tuner.members[1]]


def test_tuning_leaves_the_chip_as_it_is_and_is_what_the_cluster_says(model, tuner):
    chip = deploy(model, SYSTEMATIC, seed=77)
    before = {name: value.clone() for name, value in chip.state_dict().items()}
    y = chip(IMAGES)
    tuned = tune(chip, tuner)
    assert torch.equal(chip(IMAGES), y)
    assert all(torch.equal(value, before[name]) for name, value in chip.state_dict().items())
    (row,) = signatures([chip], IMAGES)
    z = tuner.standard(row)
    nearest = int(np.argmin([np.sum((z - centre) ** 2) for centre in tuner.centres]))
    by_hand = with_knobs(chip, tuner.knobs[nearest], tuner.second, tuner.units)
    assert torch.equal(tuned(IMAGES), by_hand(IMAGES))
    assert not torch.equal(tuned(IMAGES), y)
    assert torch.equal(tune(chip, tuner)(IMAGES), tuned(IMAGES))


def test_good_chips_can_be_left_alone(model, tuner):
    chip = deploy(model, SYSTEMATIC, seed=78)
    told = float(tuner.predictor.predict(tuner.signature(chip)[None])[0])
    assert torch.equal(tune(chip, tuner, below=told)(IMAGES), chip(IMAGES))
    assert torch.equal(tune(chip, tuner, below=1.0)(IMAGES), tune(chip, tuner)(IMAGES)) or told == 1.0


def test_the_same_seed_makes_the_same_tuner(model):
    def made(seed):
        chips = fleet(model, SYSTEMATIC, 12)
        return fit_tuner(chips, IMAGES, TRAIN, VALIDATION, clusters=2, steps=5, seed=seed)

    first, again, other = made(0), made(0), made(1)
    assert torch.equal(first.knobs, again.knobs)
    assert np.array_equal(first.members, again.members)
    assert not torch.equal(first.knobs, other.knobs)


def test_a_chip_that_draws_is_tuned_under_keys():
    torch.manual_seed(0)
    noisy = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    chip = deploy(noisy, GaussianNoise(multiplicative=0.2), seed=0)
    assert torch.equal(fit_knobs([chip], TRAIN, steps=3), fit_knobs([chip], TRAIN, steps=3))


def test_who_made_the_tuner_may_not_judge_it(model, tuner):
    chips = lambda: fleet(model, SYSTEMATIC, 2, seed=1000)  # noqa: E731
    with pytest.raises(ValueError, match=r"chip 1 was used to make the tuner: judge it on chips of other seeds"):
        judge_tuning(tuner, [deploy(model, SYSTEMATIC, seed=s) for s in (1000, 23)], TEST, threshold=0.9)
    for known in (TRAIN, VALIDATION, (IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))):
        mixed = torch.cat([TEST[0], known[0][:1]]), torch.cat([TEST[1], known[1][:1]])
        with pytest.raises(ValueError, match=r"1 of the 301 samples of data were used"):
            judge_tuning(tuner, chips(), mixed, threshold=0.9)
    assert len(tuner.chips) == 24
    assert chip_digest(deploy(model, SYSTEMATIC, seed=5)) in tuner.chips
    assert chip_digest(deploy(model, SYSTEMATIC, seed=24)) not in tuner.chips


def test_the_yield_is_wilsons():
    found = chip_yield(np.array([0.9, 0.95, 0.97, 0.99]), 0.95)
    assert found.share == 0.75
    assert (found.low, found.high) == mean_interval(np.array([0.0, 1, 1, 1]))
    assert str(found) == "75 % [30, 95]"
    with pytest.raises(ValueError, match="one for each chip"):
        chip_yield(np.array([]), 0.5)
    with pytest.raises(ValueError, match="threshold"):
        chip_yield(np.array([0.5]), 97.0)


def test_errors_name_the_remedy(model, tuner):
    def fit(chips, images=IMAGES, **options):
        return fit_tuner(chips, images, TRAIN, VALIDATION, steps=1, **options)

    chips = list(fleet(model, SYSTEMATIC, 12))
    with pytest.raises(ValueError, match=r"3 chips cannot fill 4 clusters: give more chips, or fewer clusters"):
        fit(chips[:3])
    with pytest.raises(ValueError, match=r"have the accuracy .* more images"):
        fit(list(fleet(model, WeightVariation(0.0), 12)), clusters=1)
    planted = np.linspace(0.5, 0.9, 12)
    with pytest.raises(ValueError, match="only 1 different signatures"):
        fit(list(fleet(model, WeightVariation(0.0), 12)), clusters=2, accuracies=planted)
    with pytest.raises(ValueError, match=r"does not take x of shape \(2, 5\)"):
        fit(chips, torch.rand(2, 5))
    other = nn.Sequential(nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, CLASSES))
    with pytest.raises(ValueError, match="chip 12 stores other tensors than chip 0"):
        fit([*chips, deploy(other, SYSTEMATIC, seed=0)])
    with pytest.raises(ValueError, match=r"gives a signature of .* from 1 layers of neurons.*tune chips of the model"):
        tune(deploy(other, SYSTEMATIC, seed=0), tuner)
    with pytest.raises(ValueError, match="12 accuracies"):
        fit(chips, accuracies=planted[:-1])
    with pytest.raises(ValueError, match="method"):
        fit(chips, method="bayes")
    with pytest.raises(ValueError, match="chips is empty"):
        judge_tuning(tuner, [], TEST, threshold=0.9)
    with pytest.raises(ValueError, match="chips is empty"):
        fit_knobs([], TRAIN)
