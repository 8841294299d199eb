import copy

import pytest
import torch

from snnrobust.attacks import BIM, FGSM, L0, PGD, Linf, margin


@pytest.mark.parametrize(("eps", "steps", "size"), [(0.1, 10, 0.02), (0.05, 4, None), (0.3, 7, 0.1)])
def test_equals_torchattacks(eps, steps, size, digits_ann):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    reference = torchattacks.BIM(copy.deepcopy(model), eps=eps, alpha=size or eps / steps, steps=steps)(x, y)
    assert (BIM(Linf(eps), steps=steps, step_size=size)(model, x, y) - reference).abs().max() < 1e-6


def test_is_pgd_without_a_random_start(digits_ann):
    model, x, y = digits_ann
    threat = Linf(torch.linspace(0.01, 0.2, len(x), dtype=torch.float64))
    ours = BIM(threat, steps=5, step_size="2/255", loss=margin)(model, x, y)
    theirs = PGD(threat, steps=5, step_size=2 / 255, loss=margin, random_start=False)(model, x, y)
    assert torch.equal(ours, theirs)


def test_the_default_steps_reach_the_edge(digits_ann):
    model, x, y = digits_ann
    threat = Linf(torch.linspace(0.01, 0.1, len(x), dtype=torch.float64))
    x_adv = BIM(threat, steps=4)(model, x, y)
    path = (x_adv - x).abs().flatten(1).amax(1)
    assert torch.allclose(path, torch.tensor(threat.eps, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(BIM(threat, steps=1)(model, x, y), FGSM(threat)(model, x, y), atol=1e-12)


def test_a_blunt_gradient_is_said():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    torch.nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match="exactly zero"):
        BIM(L0(2))(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"step_size": "big"}, ValueError, "step_size"),
        ({"gradient": 8}, TypeError, "gradient"),
        ({"loss": "margin"}, TypeError, "loss"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        BIM(Linf(0.1), **arguments)
