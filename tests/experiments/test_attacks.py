"""``attack = { type = ... }``: the gradient attacks and their arguments."""

from typing import Any

import pytest
import torch
from torch import nn

from snnrobust.attacks import (
    APGD,
    APGDT,
    ASSG,
    BIM,
    EOT,
    L0,
    L2,
    LOSSES,
    MIFGSM,
    RFGSM,
    SAPGD,
    Backprop,
    Linf,
    Standard,
    dlr,
    margin,
)
from snnrobust.experiments.build import NAMES, build_attack
from snnrobust.experiments.component import Component
from snnrobust.experiments.config import AttackSection


def _build(threat: Any = None, gradient: str | None = None, eot: int = 1, **attack: Any) -> Any:
    section = AttackSection(
        name="examined",
        attack=Component.model_validate(attack),
        gradient=None if gradient is None else Component(type=gradient),
        eot=eot,
    )
    return build_attack(section, {}, True, threat)


def test_what_is_built() -> None:
    assert _build(type="APGD", loss="dlr") == APGD(Linf(0.0), loss=dlr)
    assert _build(type="APGD", loss="margin", steps=20, restarts=3, early_stop=True, rho=0.6, momentum=1.0) == APGD(
        Linf(0.0), loss=margin, steps=20, restarts=3, early_stop=True, rho=0.6, momentum=1.0
    )
    assert _build(type="APGDT", targets=4, threat=L2(0.0)) == APGDT(L2(0.0), targets=4)
    assert _build(type="SAPGD", gradient="ASSG", eot=3) == SAPGD(Linf(0.0), gradient=EOT(3, ASSG()))
    assert _build(type="BIM", step_size="2/255") == BIM(Linf(0.0), step_size=2 / 255)
    assert _build(type="MIFGSM", decay=0.9) == MIFGSM(Linf(0.0), decay=0.9)
    assert _build(type="RFGSM", random_share=0.25) == RFGSM(Linf(0.0), random_share=0.25)


@pytest.mark.parametrize("name", ["APGD", "APGDT", "BIM", "MIFGSM", "RFGSM", "SAPGD"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_what_is_built_attacks(name: str, loss: str) -> None:
    assert name in NAMES["attack"]
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
    x, y = 0.25 + 0.5 * torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    x_adv = _build(type=name, loss=loss).at(0.2)(model, x, y, seed=0)
    assert (margin(model(x_adv), y) > margin(model(x), y)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"type": "APGB"}, "did you mean 'APGD'"),
        ({"type": "APGD", "loss": "dlrr"}, r"attacks\.examined\.attack\.loss must be one of .*'dlr'"),
        ({"type": "SAPGD", "decays": 0.5}, r"SAPGD has no argument of this name.*'decay'"),
        ({"type": "APGDT", "targets": 0}, r"attacks\.examined\.attack: targets"),
        ({"type": "RFGSM", "threat": L0(0)}, "use Linf, L2 or L1"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _build(**arguments)


def test_the_suite_is_built_with_its_source_and_keeps_its_own_gradients() -> None:
    """An EOT or a surrogate inside would multiply its cost, and win over every surrogate of its sweep."""
    section = AttackSection(name="suite", attack=Component(type="Standard"), source="other")
    other = nn.Identity()
    assert build_attack(section, {"other": other}, True) == Standard(Linf(0.0), transfer=(other,))
    assert _build(type="Standard").gradient == Backprop()
    with pytest.raises(ValueError, match="Standard has surrogates and EOT of its own"):
        _build(type="Standard", eot=2)
    with pytest.raises(ValueError, match="got ASSG"):
        _build(type="Standard", gradient="ASSG")
