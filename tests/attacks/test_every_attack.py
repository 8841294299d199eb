"""What holds for every attack in every threat on every kind of input. A new attack enters ``CASES``."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.attacks import (
    APGD,
    APGDT,
    ATTACKS,
    BIM,
    FGSM,
    L0,
    L1,
    L2,
    MIFGSM,
    PGD,
    RFGSM,
    SAPGD,
    Linf,
    RandomNoise,
    RandomSign,
    ThreatModel,
    Transfer,
)
from snnrobust.attacks.attack import Attack

BUDGETS: dict[str, float] = {"Linf": 0.1, "L2": 0.6, "L1": 1.5, "L0": 3}
THREATS = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
ALL = tuple(THREATS)
KINDS = ("ann", "chip", "events")


class Case(NamedTuple):
    make: Callable[[ThreatModel], Attack]  # small: few steps
    threats: tuple[str, ...] = ALL


CASES: dict[str, Case] = {
    "APGD": Case(lambda threat: APGD(threat, steps=5)),
    "APGD, restarts, early stop": Case(lambda threat: APGD(threat, steps=4, restarts=2, early_stop=True)),
    "APGDT": Case(lambda threat: APGDT(threat, steps=3)),
    "APGDT, early stop": Case(lambda threat: APGDT(threat, steps=3, early_stop=True)),
    "BIM": Case(lambda threat: BIM(threat, steps=3)),
    "FGSM": Case(FGSM),
    "MIFGSM": Case(lambda threat: MIFGSM(threat, steps=3)),
    "PGD": Case(lambda threat: PGD(threat, steps=3)),
    "PGD, restarts, early stop": Case(lambda threat: PGD(threat, steps=3, restarts=2, early_stop=True)),
    "RFGSM": Case(RFGSM, ("Linf", "L2", "L1")),
    "RandomNoise": Case(RandomNoise),
    "RandomSign": Case(RandomSign, ("Linf",)),
    "SAPGD": Case(lambda threat: SAPGD(threat, steps=5)),
    "SAPGD, restarts, early stop": Case(lambda threat: SAPGD(threat, steps=4, restarts=2, early_stop=True)),
}
"""The name begins with that of the class."""

EACH = [(name, threat) for name, case in CASES.items() for threat in case.threats]


def test_every_attack_has_a_case():
    named = {name.split(",")[0] for name in CASES}
    ours = {name for name, kind in ATTACKS.items() if kind.__module__.startswith("snnrobust.") and kind is not Transfer}
    assert named == ours


@pytest.mark.parametrize(("name", "threat"), EACH)
@pytest.mark.parametrize("kind", KINDS)
def test_contract(name, threat, kind, victims):
    model, x, y = victims(kind)
    attack = CASES[name].make(THREATS[threat](BUDGETS[threat]))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    modes, inputs, generator = [m.training for m in model.modules()], x.clone(), torch.get_rng_state()
    x_adv = attack(model, x, y, seed=3)
    # inside the budget and the box, computed here
    change = (x_adv - x).flatten(1)
    size = {
        "Linf": lambda: change.abs().amax(1),
        "L2": lambda: change.square().sum(1).sqrt(),
        "L1": lambda: change.abs().sum(1),
        "L0": lambda: (x_adv != x).any(-3).flatten(1).sum(1),
    }[threat]()
    assert (size <= BUDGETS[threat] * (1 + 1e-12)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    # nothing else is touched
    assert torch.equal(x, inputs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    # the same seed, the same result, whatever the batch
    ids = torch.arange(len(x))
    for index in ids.split(4):
        apart = attack(model, x[index], y[index], seed=3, sample_ids=index)
        assert (apart - x_adv[index]).abs().max() < 1e-9
    if name != "FGSM":
        assert x_adv.ne(x).any()


@pytest.mark.parametrize(("name", "threat"), EACH)
def test_float32_and_a_budget_for_each_sample(name, threat, victims):
    model, x, y = victims("ann")
    model, x = model.float(), x.float()
    budgets = BUDGETS[threat] * torch.tensor([1.0, 0.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    attack = CASES[name].make(THREATS[threat](budgets))
    x_adv = attack(model, x, y, seed=3)
    assert (attack.threat.distance(x, x_adv) <= budgets).all()
    assert torch.equal(x_adv[[1, 4]], x[[1, 4]])
    assert x_adv.dtype == torch.float32
    assert torch.equal(x_adv, attack(model, x, y, seed=3))


@pytest.mark.parametrize(("name", "threat"), EACH)
def test_targets(name, threat, victims):
    model, x, y = victims("ann")
    attack = CASES[name].make(THREATS[threat](BUDGETS[threat]))
    targets = (y + 1) % 3
    if not attack.targetable:
        with pytest.raises(TypeError, match="takes no targets"):
            attack(model, x, y, targets=targets)
        return
    x_adv = attack(model, x, y, targets=targets, seed=3)
    attack.threat.validate(x, x_adv)
    with torch.no_grad():
        before, after = (model(inputs).softmax(1).gather(1, targets[:, None]).mean() for inputs in (x, x_adv))
    assert after >= before


@pytest.mark.parametrize(("name", "threat"), EACH)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_image_and_budget(name, threat, data):
    shape = data.draw(st.sampled_from([(1, 4), (2, 1, 3, 3), (3, 2, 1, 2, 2)]))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.rand(shape, generator=g, dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    x = torch.where(torch.rand(shape, generator=g) < 0.3, x.round(), x)  # edges of the box
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 3)).to(x.dtype)
    most = THREATS[threat](0).largest(x)
    eps = float(data.draw(st.integers(0, int(most)))) if threat == "L0" else most * data.draw(st.floats(0, 1))
    attack = CASES[name].make(THREATS[threat](eps))
    x_adv = attack(model, x, torch.arange(len(x)) % 3, seed=0)
    assert (attack.threat.distance(x, x_adv) <= eps).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
