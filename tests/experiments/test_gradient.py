"""``gradient = { type = ... }`` in the section of an attack."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from snnrobust import experiments
from snnrobust.attacks import (
    ASSG,
    BPDA,
    EOT,
    HART,
    PGD,
    SPSA,
    Attack,
    Backprop,
    EvolutionStrategies,
    Mixed,
    Surrogate,
    Transfer,
)
from snnrobust.experiments.build import NAMES, build_attack
from snnrobust.neurons.surrogate import ATan

FILE = """
name = "gradients"
[data]
train = 40
[[models]]
name = "snn"
architecture = "mlp"
encoder = {{ type = "Poisson", time_steps = 2 }}
training = {{ epochs = 1 }}
[[models]]
name = "ann"
kind = "ordinary"
architecture = "mlp"
training = {{ epochs = 1 }}
[[attacks]]
name = "plain"
attack = {{ type = "FGSM" }}
[[attacks]]
name = "examined"
attack = {{ type = "PGD", steps = 2 }}
{gradient}
[evaluation]
samples = 6
eps = [0.1]
selection_draws = 2
judge_draws = 2
"""

SPIKING = {"ASSG", "BPTR", "HART", "Mixed", "PDSG", "RGA", "StraightThrough"}


def _parse(gradient: str) -> experiments.Experiment:
    return experiments.parse(FILE.format(gradient=gradient))


def _attack(gradient: str, random: bool = True) -> Any:
    attack: Attack = build_attack(_parse(gradient).attacks[1], {"snn": nn.Identity()}, random)
    return attack.gradient if isinstance(attack, PGD) else attack


@pytest.mark.parametrize("name", sorted(NAMES["gradient source"]))
def test_every_source_has_a_name_and_the_models_to_which_it_applies(name: str) -> None:
    more = {"BPDA": ', target = "encoder"', "Mixed": ', sources = [{ type = "ASSG" }, { type = "RGA" }]'}.get(name, "")
    experiment = _parse(f'gradient = {{ type = "{name}"{more} }}')
    applies = {m.name for m in experiment.models if len(experiment.attacks_on(m)) == 2}
    assert applies == ({"snn"} if name in SPIKING else {"snn", "ann"})


def test_what_is_built() -> None:
    assert _attack("") == Backprop()
    assert _attack('gradient = { type = "ASSG", degree = 0.3 }') == ASSG(degree=0.3)
    assert _attack('gradient = { type = "HART", width = 0.5 }\neot = 3') == EOT(3, HART(0.5))
    assert _attack('gradient = { type = "HART", width = 0.5 }\neot = 3', random=False) == HART(0.5)
    assert _attack('gradient = { type = "SPSA", delta = "8/255", bounds = [0.0, 0.5] }') == SPSA(
        delta="8/255", bounds=(0.0, 0.5)
    )
    assert _attack('gradient = { type = "EvolutionStrategies", queries = 6 }') == EvolutionStrategies(6)
    both = _attack('gradient = { type = "BPDA", target = "encoder" }\nsurrogate = { type = "ATan" }\neot = 2')
    assert both == EOT(2, Surrogate(ATan(), BPDA("encoder")))
    sources = '[{ type = "ASSG", degree = 0.3 }, { type = "Surrogate", surrogate = { type = "ATan" } }]'
    assert _attack(f'gradient = {{ type = "Mixed", sources = {sources} }}\neot = 2') == EOT(
        2, Mixed((ASSG(degree=0.3), Surrogate(ATan())))
    )
    transfer = _attack('gradient = { type = "ASSG" }\nsource = "snn"')
    assert isinstance(transfer, Transfer)
    assert isinstance(transfer.attack, PGD)
    assert transfer.attack.gradient == ASSG()


def test_a_transfer_of_a_source_for_spiking_neurons_meets_other_models() -> None:
    experiment = _parse('gradient = { type = "RGA" }\nsource = "snn"')
    assert [len(experiment.attacks_on(m)) for m in experiment.models] == [1, 2]


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        ('gradient = { type = "ASG" }', r"attacks\.examined\.gradient\.type must be one of .*did you mean 'ASSG'"),
        (
            'gradient = { type = "ASSG", degre = 0.3 }',
            r"attacks\.examined\.gradient\.degre: ASSG has no argument.*'degree'",
        ),
        ('gradient = { type = "ASSG", source = 3 }', r"attacks\.examined\.gradient\.source: ASSG has no argument"),
        ('gradient = { type = "ASSG", degree = 0.7 }', r"attacks\.examined\.gradient: degree must be"),
        ('gradient = { type = "BPDA" }', r"attacks\.examined\.gradient: .*target"),
        ('gradient = { type = "EOT", samples = 3 }', r"attacks\.examined\.gradient: EOT is written eot = 8"),
        ('gradient = { type = "Surrogate" }', r"gradient: Surrogate is written surrogate = "),
        ('gradient = { type = "FromModel" }', r"gradient: FromModel is written source = "),
        ('gradient = { type = "RGA" }\nsurrogate = { type = "ATan" }', "attacks.examined: RGA uses no surrogate"),
        ('gradient = { type = "SPSA" }\nsurrogate = { type = "ATan" }', "attacks.examined: SPSA uses no surrogate"),
        ('gradient = { type = "Mixed" }', r"attacks\.examined\.gradient: sources must be .* at least two"),
        (
            'gradient = { type = "Mixed", sources = ["ASSG", "RGA"] }',
            r"examined\.gradient\.sources must be a list such as",
        ),
        (
            'gradient = { type = "Mixed", sources = [{ type = "RGB" }, { type = "RGA" }] }',
            r"sources\[0\]\.type .*'RGA'",
        ),
        ('gradient = { type = "Mixed", source = [] }', r"gradient\.source: Mixed has no argument of this name"),
        ("gradient = 3", r"attacks\[1\]\.gradient"),
    ],
)
def test_mistakes_are_named(gradient: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _parse(gradient)


def test_an_attack_without_gradient_takes_none() -> None:
    text = FILE.format(gradient='gradient = { type = "ASSG" }').replace('"PGD", steps = 2', '"RandomSign"')
    with pytest.raises(ValueError, match="RandomSign uses no gradient, so eot, gradient and surrogate say nothing"):
        experiments.parse(text)


def test_a_run(tmp_path: Path) -> None:
    text = FILE.format(gradient='gradient = { type = "ASSG" }\neot = 2')
    results = experiments.run(experiments.parse(text), text, tmp_path / "run", progress=False)
    rows = {(row["model"], row["attack"]) for row in results["report"]["rows"]}
    assert ("snn", "examined") in rows
    assert ("ann", "examined") not in rows
