import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from snnrobust.attacks import (
    CRAFTS,
    EOT,
    FGSM,
    PGD,
    Backprop,
    FromModel,
    Frozen,
    Linf,
    MinimalNorm,
    Mixed,
    RandomSign,
    Square,
    Transfer,
    asks_the_chip,
    begin,
    crafted,
)  # fmt: skip
from snnrobust.attacks.losses import cross_entropy
from snnrobust.draws import Stream, draws
from snnrobust.evaluation import evaluate
from snnrobust.evaluation.html import render
from snnrobust.hardware import GaussianNoise, deploy

THREAT = Linf(0.1)


@pytest.fixture
def setting():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ideal = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = ideal(x).argmax(1)
    return ideal, deploy(ideal, GaussianNoise(multiplicative=0.5), seed=1), x, y


def test_each_craft_is_what_its_name_says(setting):
    ideal, _, _, _ = setting
    attack = PGD(THREAT, steps=3, gradient=EOT(2))
    assert crafted(attack, "software", ideal) == Transfer(attack, ideal)
    assert crafted(attack, "frozen") == PGD(THREAT, steps=3, gradient=Frozen(EOT(2)))
    assert crafted(attack, "eot", draws=5) == PGD(THREAT, steps=3, gradient=EOT(5, EOT(2)))
    assert crafted(attack, "ideal-gradient", ideal) == PGD(THREAT, steps=3, gradient=FromModel(ideal, EOT(2)))


def test_frozen_draws_are_the_same_at_all_steps_of_a_run_and_others_in_the_next(setting):
    _, chip, x, y = setting
    source, stream = Frozen(), Stream(3, torch.arange(6))
    first = begin(source)
    steps = [first(chip, x, y, cross_entropy, stream.fork("step", i))[0] for i in range(3)]
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])
    assert torch.equal(steps[0], Backprop()(chip, x, y, cross_entropy, stream.fork("step", 0))[0])
    other = begin(source)(chip, x, y, cross_entropy, stream.fork("step", 1))[0]
    assert not torch.equal(other, steps[0])
    fixed = Frozen(key=11)
    found = [begin(fixed)(chip, x, y, cross_entropy, stream.fork(i))[1] for i in range(2)]
    with draws(chip, 11, stream.sample_ids):
        assert torch.equal(found[0], chip(x))
    assert torch.equal(*found)


def test_an_attack_with_frozen_noise_is_the_attack_on_that_realization(setting):
    _, chip, x, y = setting

    class Held(nn.Module):
        def forward(self, x):
            with draws(chip, 11):
                return chip(x)

    frozen = PGD(THREAT, steps=4, random_start=False, gradient=Frozen(key=11))(chip, x, y, seed=1)
    assert torch.equal(frozen, PGD(THREAT, steps=4, random_start=False)(Held(), x, y, seed=1))


def test_who_asks_the_chip(setting):
    ideal, _, _, _ = setting
    attack = PGD(THREAT, steps=2)
    asking = {craft: asks_the_chip(crafted(attack, craft, ideal)) for craft in CRAFTS}
    assert asking == {"software": False, "frozen": True, "eot": True, "ideal-gradient": False}
    assert asks_the_chip(attack)
    assert asks_the_chip(Square(THREAT))
    assert not asks_the_chip(RandomSign(THREAT))
    assert not asks_the_chip(PGD(THREAT, gradient=EOT(2, FromModel(ideal))))
    assert not asks_the_chip(PGD(THREAT, gradient=Mixed((FromModel(ideal), EOT(2, FromModel(ideal))))))
    assert asks_the_chip(PGD(THREAT, gradient=Mixed((FromModel(ideal), Backprop()))))
    assert not asks_the_chip(MinimalNorm(crafted(attack, "software", ideal)))
    assert asks_the_chip(MinimalNorm(attack))


def test_a_chip_that_nobody_attacked_is_noted_and_never_called_robust(setting):
    ideal, chip, x, y = setting
    attack = FGSM(THREAT)
    run = {"n": 6, "selection_draws": 2, "judge_draws": 10, "progress": False, "examples": 0}
    data, chips = TensorDataset(x, y), {"noisy": chip}
    blind = {c: crafted(attack, c, ideal) for c in ("software", "ideal-gradient")}
    report = evaluate(ideal, data, blind, chips=chips, **run)
    assert len(report.notes) == 1
    assert "model on noisy: every attack was crafted without the chip's own gradient" in report.notes[0]
    assert "upper bound" in " ".join(report.summary().split())
    assert "upper bound" in render({"report": report.to_json()})
    assert evaluate(ideal, data, blind | {"eot": crafted(attack, "eot")}, chips=chips, **run).notes == []
    assert evaluate(ideal, data, {"from a friend": blind["software"]}, **run).notes == []


def test_what_cannot_be_crafted_is_named(setting):
    ideal, _, _, _ = setting
    with pytest.raises(ValueError, match="craft must be one of software"):
        crafted(FGSM(THREAT), "hardware", ideal)
    with pytest.raises(ValueError, match="craft='software' needs ideal"):
        crafted(FGSM(THREAT), "software")
    with pytest.raises(TypeError, match="Square uses no gradient that craft='eot' could change"):
        crafted(Square(THREAT), "eot")
    for frozen in (Frozen(), Frozen(EOT(2)), begin(Frozen())):
        with pytest.raises(ValueError, match="EOT averages fresh draws"):
            crafted(PGD(THREAT, gradient=frozen), "eot")
    with pytest.raises(TypeError, match="attack must be an attack"):
        crafted("FGSM", "eot")
