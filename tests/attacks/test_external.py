"""Attacks of torchattacks and foolbox under the rules of this library."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust import evaluation
from snnrobust.attacks import L2, PGD, External, Linf, from_foolbox, from_torchattacks
from snnrobust.attacks.attack import Bound

torchattacks = pytest.importorskip("torchattacks")
foolbox = pytest.importorskip("foolbox")

EPS = 8 / 255
THREAT = Linf("8/255")
STEPS = {"alpha": 2 / 255, "steps": 5}


EXTERNAL = {
    "torchattacks FGSM": lambda: from_torchattacks(torchattacks.FGSM, THREAT),
    "torchattacks PGD": lambda: from_torchattacks(torchattacks.PGD, THREAT, **STEPS),
    "torchattacks PGDL2": lambda: from_torchattacks(torchattacks.PGDL2, L2(0.3), alpha=0.1, steps=5),
    "torchattacks APGD": lambda: from_torchattacks(torchattacks.APGD, THREAT, steps=5),
    "torchattacks Square": lambda: from_torchattacks(torchattacks.Square, THREAT, n_queries=20),
    "torchattacks CW": lambda: from_torchattacks(torchattacks.CW, L2(0.3), beyond="clean", steps=20, lr=0.05),
    "foolbox PGD": lambda: from_foolbox(foolbox.attacks.LinfPGD(steps=5), THREAT),
    "foolbox L2": lambda: from_foolbox(foolbox.attacks.L2PGD(steps=5), L2(0.3)),
    "foolbox CW": lambda: from_foolbox(foolbox.attacks.L2CarliniWagnerAttack(steps=10, binary_search_steps=2), L2(0.3)),
    "numpy": lambda: External(THREAT, lambda model, eps: lambda x, y: noisy(x, np.random.uniform(-eps, eps, x.shape))),  # noqa: NPY002
    "python": lambda: External(THREAT, lambda model, eps: lambda x, y: noisy(x, random.uniform(-eps, eps))),
}


def noisy(x, noise):
    return (x + torch.as_tensor(noise, dtype=x.dtype)).clamp(0, 1)


@pytest.fixture(params=["ann", "direct", "poisson"])
def victim(request, victims):
    return victims(request.param)


@pytest.mark.parametrize("name", EXTERNAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_budget_seed_and_traces(name, dtype, victim):
    model, x, y = victim
    model, x = model.to(dtype), x.to(dtype)
    y = model(x).argmax(1)  # some leave alone what is wrong already
    attack = EXTERNAL[name]()
    model.train()
    modes = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before = x.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first, again = (attack(model, x, y, seed=1) for _ in range(2))
    attack.threat.validate(x, first)
    assert torch.equal(first, again)
    assert torch.equal(x, before)
    assert not first.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    if name in ("torchattacks PGD", "torchattacks PGDL2", "torchattacks Square", "foolbox L2", "numpy", "python"):
        assert not torch.equal(attack(model, x, y, seed=2), first)


def test_the_result_is_the_library_s_own(victims):
    model, x, y = victims("ann")
    theirs = torchattacks.PGD(model, eps=EPS, random_start=False, **STEPS)(x, y)
    ours = from_torchattacks(torchattacks.PGD, THREAT, random_start=False, **STEPS)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    box = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, theirs, _ = foolbox.attacks.LinfPGD(steps=5, random_start=False)(box, x, y, epsilons=EPS)
    ours = from_foolbox(foolbox.attacks.LinfPGD(steps=5, random_start=False), THREAT)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    same = PGD(THREAT, steps=5, step_size=2 / 255, random_start=False)(model, x, y)
    torch.testing.assert_close(
        from_torchattacks(torchattacks.PGD, THREAT, random_start=False, **STEPS)(model, x, y), same, rtol=0, atol=1e-12
    )


def test_in_evaluate(victims):
    model, x, y = victims("ann")
    attacks = {
        "theirs": from_torchattacks(torchattacks.PGD, THREAT, **STEPS),
        "foolbox": from_foolbox(foolbox.attacks.LinfPGD(steps=3), THREAT),
        "ours": PGD(THREAT, steps=5),
    }
    report = evaluation.evaluate(model, (x, y), attacks, eps=["4/255", "16/255"], progress=False, batch_size=4)
    rows = {(row["attack"], row["eps"]): row for row in report.rows}
    for eps in (4 / 255, 16 / 255):
        assert rows["theirs", eps]["forwards"] == rows["theirs", eps]["gradients"] == 5 * 6
        assert rows["foolbox", eps]["gradients"] == 3 * 6
        assert rows["foolbox", eps]["forwards"] == 4 * 6  # it also asks whether it succeeded


def test_stored_cells_are_read_back(victims, tmp_path):
    model, x, y = victims("ann")

    def run():
        attacks = {
            "a": from_torchattacks(torchattacks.PGD, THREAT, **STEPS),
            "b": from_foolbox(foolbox.attacks.LinfPGD(), THREAT),
        }
        return evaluation.evaluate(model, (x, y), attacks, progress=False, folder=tmp_path)

    assert run().rows == run().rows
    files = sorted(tmp_path.iterdir())
    run()
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_projected_and_more_is_an_error(dtype, victims):
    model, x, y = victims("ann")
    model, x = model.to(dtype), x.to(dtype)
    ulp = torch.finfo(torch.float32).eps

    def beyond(excess):
        return External(THREAT, lambda model, eps: lambda x, y: x + (x < 0.5).to(dtype) * (eps + excess), name="over")

    x_adv = beyond(4 * ulp)(model, x, y)
    assert ((x_adv.double() - x.double()).abs() <= EPS).all()
    for excess in (40 * ulp, 0.01):
        with pytest.raises(
            ValueError, match=r"over left the threat Linf\(eps=0.031.*\) on 6 of 6 samples: its inputs reach 0\.0"
        ):
            beyond(excess)(model, x, y)
    box = External(THREAT, lambda model, eps: lambda x, y: x - eps)
    with pytest.raises(ValueError, match=r"lie in \[-0\.0"):
        box(model, x, y)
    given_up = External(THREAT, lambda model, eps: lambda x, y: x - eps, beyond="clean")(model, x, y)
    kept = (given_up == x).flatten(1).all(1)
    assert torch.equal(kept, ((x - EPS) < -16 * ulp).flatten(1).any(1))


def test_the_budget_of_the_threat_is_what_counts(victims):
    """An attack with an eps of its own is weaker or an error, never silently stronger."""
    model, x, y = victims("ann")
    fixed = External(THREAT, lambda model, eps: torchattacks.FGSM(model, eps=EPS))
    fixed(model, x, y)
    with pytest.raises(ValueError, match="External left the threat"):
        fixed.at("4/255")(model, x, y)


def test_the_mode_trap(victims):
    """torchattacks can put a model into training mode and leave it there."""

    def trap(model, eps):
        attack = torchattacks.FGSM(model, eps=eps)
        attack.set_model_training_mode(model_training=True, batchnorm_training=False)
        return attack

    model, x, y = victims("direct")
    model.eval()
    External(THREAT, trap)(model, x, y)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: External(THREAT, 3), TypeError, "make must be a function"),
        (lambda: External(THREAT, lambda m, e: None, beyond="keep"), ValueError, "beyond must be one of"),
        (lambda: from_torchattacks("PGD", THREAT), TypeError, "kind must be a class such as torchattacks.PGD"),
        (
            lambda: from_torchattacks(torchattacks.PGD(nn.Linear(1, 1)), THREAT),
            TypeError,
            r"External\(threat, lambda model, eps",
        ),
        (lambda: from_torchattacks(torchattacks.PGD, THREAT, eps=0.1), ValueError, "leave eps out"),
        (lambda: from_foolbox(foolbox.attacks.LinfPGD, THREAT), TypeError, "attack must be an object such as foolbox"),
        (
            lambda: from_foolbox(foolbox.attacks.L2PGD(), THREAT),
            ValueError,
            "L2Projected.* measures in L2, but the threat is Linf",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, words):
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: None, "must return inputs of shape .* got NoneType"),
        (lambda x: x[:1], "must return inputs of shape .* got shape"),
        (lambda x: x * torch.nan, "External returned NaN"),
    ],
)
def test_bad_results_are_named(answer, words, victims):
    with pytest.raises(ValueError, match=words):
        External(THREAT, lambda model, eps: lambda x, y: answer(x))(*victims("ann"))
    with pytest.raises(ValueError, match="External needs one eps for all samples"):
        External(Linf(torch.full((6,), 0.1)), lambda model, eps: lambda x, y: x)(*victims("ann"))


def test_ours_as_theirs(victims):
    model, x, y = victims("ann")
    ours = PGD(THREAT, steps=3).bind(model, seed=5)
    assert isinstance(ours, Bound)
    assert torch.equal(ours(x, y), PGD(THREAT, steps=3)(model, x, y, seed=5))
    multi = torchattacks.MultiAttack([torchattacks.FGSM(model, eps=EPS), ours])
    found = multi(x, y)
    THREAT.validate(x, found)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        PGD(THREAT).bind("model")
