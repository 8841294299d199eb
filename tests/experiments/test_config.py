"""Every mistake in an experiment file is named, with its path and the nearest valid name, before anything runs."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from snnrobust import experiments
from snnrobust.attacks import L0, L1, L2, Linf
from snnrobust.experiments.build import build_attack, build_threat
from snnrobust.learning_rules import BPTT, RULES

GOOD = """
name = "small"
[data]
name = "digits"
[[models]]
name = "snn"
encoder = { type = "Poisson", time_steps = 2 }
neuron = { type = "LIF", surrogate = { type = "ATan", alpha = 3.0 } }
training = { epochs = 1, rule = { type = "BPTT", lr = 1e-2 } }
[[models]]
name = "ann"
kind = "ordinary"
[[attacks]]
name = "pgd"
attack = { type = "PGD", steps = 2 }
[[chips]]
name = "chip"
backends = [{ type = "Uniform", bits = 4 }]
[evaluation]
eps = [0.1, "8/255"]
[diagnosis]
eps = 0.1
"""


def test_a_good_file_is_resolved_with_all_defaults() -> None:
    experiment = experiments.parse(GOOD)
    assert experiment.evaluation.eps == [0.1, 8 / 255]
    assert experiment.models[0].kind == "spiking"
    assert experiment.model_dump(mode="json")["evaluation"]["judge_draws"] == 128


def test_the_shipped_files_are_valid() -> None:
    experiments.parse((resources.files("snnrobust.experiments") / "demo.toml").read_text())
    for path in (Path(__file__).parents[2] / "examples").glob("*.toml"):
        experiments.read(path)


@pytest.mark.parametrize(
    ("old", "new", "path", "remedy"),
    [
        ('name = "small"', 'name = "small"\nsed = 1', "sed", "did you mean 'seed'?"),
        ('name = "digits"', 'name = "digit"', "data.name", "did you mean 'digits'?"),
        ('name = "digits"', "nam = 1", "data.nam", "did you mean 'name'?"),
        ('kind = "ordinary"', 'kind = "ordinray"', "models[1].kind", "'ordinary'"),
        ('kind = "ordinary"', 'architecture = "conv-smal"', "models[1]", "did you mean 'conv-small'?"),
        ('kind = "ordinary"', 'kind = "ordinary"\nnorm = "none"', "models[1]", "an ordinary network has no norm"),
        ('kind = "ordinary"', 'name2 = "x"', "models[1].name2", "did you mean 'name'?"),
        ("time_steps = 2", "time_step = 2", "models.snn.encoder.time_step", "did you mean 'time_steps'?"),
        ("time_steps = 2", "time_steps = 0", "models.snn.encoder", "time_steps must be at least 1, got 0"),
        ('"Poisson", time_steps = 2', '"Poison", time_steps = 2', "models.snn.encoder.type", "did you mean 'Poisson'?"),
        ('"ATan", alpha', '"Atan", alpha', "models.snn.neuron.surrogate.type", "did you mean 'ATan'?"),
        ("alpha = 3.0", "alpha = -3.0", "models.snn.neuron.surrogate", "ATan.alpha must be in (0, inf]"),
        ("epochs = 1", "epochs = 0", "models[0].training.epochs", "greater than or equal to 1"),
        ("epochs = 1", 'epochs = "one"', "models[0].training.epochs", "valid integer"),
        ("epochs = 1", "epoch = 1", "models[0].training.epoch", "did you mean 'epochs'?"),
        ("lr = 1e-2", "lr = -1", "models.snn.training.rule", "lr must be in"),
        ('{ type = "PGD"', '{ type = "PDG"', "attacks.pgd.attack.type", "did you mean 'PGD'?"),
        ('"PGD", steps = 2', '"PGD", step = 2', "attacks.pgd.attack.step", "did you mean 'steps'?"),
        ('"PGD", steps = 2', '"PGD", loss = "margins"', "attacks.pgd.attack.loss", "did you mean 'margin'?"),
        ('{ type = "PGD", steps = 2 }', '{ type = "RandomSign" }\neot = 3', "attacks.pgd", "uses no gradient"),
        ('"PGD", steps = 2 }', '"PGD", steps = 2 }\nsource = "anm"', "attacks.pgd.source", "did you mean 'ann'?"),
        ('"PGD", steps = 2 }', '"PGD", steps = 2 }\nmodels = ["sn"]', "attacks.pgd.models", "did you mean 'snn'?"),
        ("bits = 4", "bits = 1", "chips.chip.backends[0]", "bits must be in 2..16"),
        ("[{ type", "[] #", "chips[0].backends", "at least 1 item"),
        ('[0.1, "8/255"]', "[-0.1]", "evaluation.eps[0]", "eps must be in [0, inf], got -0.1"),
        ('[0.1, "8/255"]', '["8/0"]', "evaluation.eps[0]", "fraction"),
        ('[0.1, "8/255"]', "[nan]", "evaluation.eps[0]", "eps must be in [0, inf], got nan"),
        ("[evaluation]", "[evaluations]", "evaluations", "did you mean 'evaluation'?"),
        ('name = "ann"', 'name = "snn"', "models", "given twice"),
        ('name = "ann"', 'name = "SNN"', "models", "same file name"),
        ('name = "ann"', 'name = "../x"', "models[1].name", "pattern"),
        ('name = "small"', "name = 3", "name", "valid string"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, path: str, remedy: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is checked below)
        experiments.parse(GOOD.replace(old, new, 1), "mine.toml")
    message = str(error.value)
    assert message.startswith("mine.toml")
    assert path in message, message
    assert remedy in message, message


def test_all_mistakes_are_told_at_once() -> None:
    text = GOOD.replace("epochs = 1", "epochs = 0").replace("[evaluation]", "[evaluation]\nsample = 3")
    with pytest.raises(ValueError, match="2 mistakes") as error:
        experiments.parse(text)
    assert "models[0].training.epochs" in str(error.value)
    assert "did you mean 'samples'?" in str(error.value)


def test_broken_toml_is_told_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"not valid TOML.*line 2"):
        experiments.parse('name = "x"\nseed = = 1')


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no experiment file"):
        experiments.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "chip"', 'name = "ideal"', "chips: the report uses the name 'ideal'"),
        ('name = "pgd"', 'name = "worst case"', "attacks: the report uses the name 'worst case'"),
        ('"PGD", steps = 2 }', '"PGD", steps = 2 }\nsource = "ann"', "models.ann: no attack applies to it"),
        (
            '"PGD", steps = 2 }',
            '"PGD", steps = 2 }\nsurrogate = { type = "ATan" }',
            "models.ann: no attack applies to it",
        ),
        (
            '[[models]]\nname = "ann"\nkind = "ordinary"',
            '[[models]]\nname = "ann"\narchitecture = "mlp"\nsame_weights_as = "snn"',
            "models.ann: the weights of 'snn' do not fit",
        ),
        ('"PGD", steps = 2 }', '"pgd", steps = 2 }', "did you mean 'PGD'?"),
    ],
)
def test_what_would_fail_only_after_training_is_named_before(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        experiments.parse(GOOD.replace(old, new, 1))


def test_a_trainer_is_one_key() -> None:
    """It stands for the rule and for what a model for it must have; what the section says itself stays."""
    text = GOOD.replace('training = { epochs = 1, rule = { type = "BPTT", lr = 1e-2 } }', 'trainer = "bptt"')
    model = experiments.parse(text).models[0]
    assert (model.training.rule.type, model.training.rule.arguments) == ("BPTT", {})
    text = text.replace('"bptt"', '{ type = "b-p-t-t", lr = 0.5 }\ntraining = { epochs = 7 }')
    model = experiments.parse(text).models[0]
    assert (model.training.epochs, model.training.rule.arguments) == (7, {"lr": 0.5})
    assert "trainer" not in model.model_dump(mode="json")


class Needy(BPTT):
    name = "Needy"
    needs: ClassVar[dict[str, Any]] = {"norm": "none", "neuron": {"type": "IF"}}


def test_a_rule_brings_what_its_models_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Needy", Needy)
    own = GOOD.replace('training = { epochs = 1, rule = { type = "BPTT", lr = 1e-2 } }', 'trainer = "needy"')
    model = experiments.parse(own).models[0]
    assert (model.norm, model.neuron.type) == ("none", "LIF")  # the section names its neuron itself
    other = '[[models]]\nname = "again"\nsame_weights_as = "snn"\nencoder = { type = "Direct", time_steps = 2 }\n[[attacks]]'
    experiment = experiments.parse('trainer = "needy"\n' + GOOD.replace("[[attacks]]", other, 1))
    snn, ann, again = experiment.models
    assert (snn.norm, snn.neuron.type, snn.training.epochs, snn.training.rule.type) == ("none", "IF", 1, "Needy")
    assert (again.norm, again.neuron.type) == ("none", "IF")
    assert ann.training.rule.type == "BPTT"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "small"', 'name = "small"\ntrainer = "BPPT"', "did you mean 'BPTT'"),
        ('name = "small"', 'name = "small"\ntrainer = 3', 'must be a rule such as "DFA"'),
        ('name = "snn"', 'name = "snn"\ntrainer = "BPTT"', "models.snn: trainer is given twice"),
        ('kind = "ordinary"', 'kind = "ordinary"\ntrainer = { lr = 1.0 }', "models.ann.trainer must be a rule"),
        ('kind = "ordinary"', 'kind = "ordinary"\ntrainer = "OTTT"', "OTTT trains spiking networks only"),
        ('kind = "ordinary"', 'same_weights_as = "snn"\ntrainer = "DFA"', "same_weights_as is not trained"),
    ],
)
def test_a_wrong_trainer_is_named(old: str, new: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        experiments.parse(GOOD.replace(old, new, 1))


class Refusing(BPTT):
    name = "Refusing"

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        raise TypeError("not this model: take another")


def test_a_rule_that_cannot_train_a_model_says_so_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Refusing", Refusing)
    with pytest.raises(ValueError, match=r"models\.snn: not this model: take another"):
        experiments.parse(GOOD.replace('"BPTT", lr = 1e-2', '"Refusing"'))


def with_threat(threat: str, eps: str = "[0.5]") -> str:
    text = re.sub(r"eps = \[.*?\]", f"eps = {eps}", GOOD, count=1)
    return text.replace("[[models]]", f"[threat]\n{threat}\n[[models]]", 1)


@pytest.mark.parametrize(
    ("threat", "expected"),
    [
        ('type = "L2"', L2(0)),
        ('type = "L1"\ndensity = 0.1', L1(0, density=0.1)),
        ('type = "L0"\nunit = "element"', L0(0, unit="element")),
        ('type = "Linf"', Linf(0)),
    ],
)
def test_one_threat_is_that_of_every_attack(threat: str, expected: Linf) -> None:
    experiment = experiments.parse(with_threat(threat, "[1]").replace("eps = 0.1", "eps = 1", 1))
    built = build_threat(experiment.threat)
    assert built == expected
    assert build_attack(experiment.attacks[0], {}, False, built).threat == expected


@pytest.mark.parametrize(
    ("threat", "eps", "words"),
    [
        ('type = "L3"', "[0.1]", "threat.type must be one of Linf, L"),
        ('type = "L2"\neps = 0.1', "[0.1]", "threat.eps: L2 has no argument of this name"),
        ('type = "L1"\ndensity = 3', "[0.1]", "threat: density must be in"),
        ('type = "L2"', "[0.1, 9]", "evaluation.eps: eps must be at most 8, the largest L2 distance"),
        ('type = "L0"', "[0.1]", "evaluation.eps: eps must be a whole number"),
        ('type = "L0"', "[2]", "diagnosis.eps: eps must be a whole number"),
        ('type = "Linf"', "[8]", r"evaluation.eps: eps must be in \[0, 1\], the width of the box"),
    ],
)
def test_a_threat_that_does_not_fit_is_named(threat: str, eps: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        experiments.parse(with_threat(threat, eps))


def test_signs_are_noise_for_linf_only() -> None:
    text = with_threat('type = "L2"').replace('{ type = "PGD", steps = 2 }', '{ type = "RandomSign" }', 1)
    with pytest.raises(ValueError, match=r"attacks.pgd.attack: RandomSign is noise for Linf.*use RandomNoise"):
        experiments.parse(text)
