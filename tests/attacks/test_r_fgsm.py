import copy

import pytest
import torch

from snnrobust.attacks import FGSM, L0, L1, L2, RFGSM, Linf


def test_equals_torchattacks(digits_ann, monkeypatch):
    """Their first of several steps, half of the budget at random; from the same random signs."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    eps = 0.1
    signs = torch.sign(torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) - 0.5)
    monkeypatch.setattr(torch, "randn_like", lambda _: signs)
    reference = torchattacks.RFGSM(copy.deepcopy(model), eps=eps, alpha=eps / 2, steps=1)(x, y)
    monkeypatch.setattr(Linf, "boundary", lambda threat, x, _: threat.project(x + threat.eps * signs, x))
    assert (RFGSM(Linf(eps))(model, x, y) - reference).abs().max() < 1e-6


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_what_the_two_steps_are(share, digits_ann):
    model, x, y = digits_ann
    eps = 0.1
    x_adv = RFGSM(Linf(eps), random_share=share)(model, x, y, seed=2)
    asked = []

    def spy(model, x, y, loss, stream):
        asked.append(x)
        return torch.ones_like(x), torch.zeros(len(x), 10, dtype=x.dtype)

    up = RFGSM(Linf(eps), random_share=share, gradient=spy)(model, x, y, seed=2)
    first = (asked[0] - x)[(x > eps) & (x < 1 - eps)]
    assert torch.allclose(first.abs(), torch.full_like(first, share * eps), atol=1e-12)
    if share:
        assert abs(first.sign().mean()) < 4 / len(first) ** 0.5
    inner = (x > 0.2) & (x < 0.8)
    assert torch.allclose((up - asked[0])[inner], torch.full_like(up[inner], (1 - share) * eps), atol=1e-12)
    if share == 0:
        assert torch.equal(x_adv, FGSM(Linf(eps))(model, x, y))


@pytest.mark.parametrize("threat", [L2(0.5), L1(1.5)])
def test_other_norms_spend_the_budget(threat, digits_ann):
    model, x, y = digits_ann
    x_adv = RFGSM(threat)(model, x, y, seed=0)
    assert (threat.distance(x, x_adv) > 0.5 * threat.eps).all()
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == y).sum() < (model(x).argmax(1) == y).sum()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"random_share": 1.5}, ValueError, "random_share"),
        ({"gradient": 8}, TypeError, "gradient"),
        ({"loss": "margin"}, TypeError, "loss"),
        ({"threat": L0(3)}, ValueError, "use Linf, L2 or L1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        RFGSM(**({"threat": Linf(0.1)} | arguments))
