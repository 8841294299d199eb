"""The weighted sum of two losses; what holds for all adversarial trainings is in ``test_adversarial``."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from snnrobust.attacks import PGD, Linf
from snnrobust.defenses import PGDTraining, TradeOff
from snnrobust.draws import Stream, draws

IDS = torch.arange(30, 38)


def gradients(rule, model, x, y, scale=1.0):
    model = deepcopy(model)
    with rule.lend(model, x[:1]) as lent:
        lent.before(Stream(5, IDS), IDS)
        with draws(model.train(), 5, IDS):
            loss, logits = lent.backward(x, y, scale)
    return [p.grad for p in model.parameters()], loss, logits, lent


@pytest.mark.parametrize("kind", ["mlp", "poisson"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_step_is_the_weighted_sum(kind, weight, make, digits):
    x, y = digits[0][:8], digits[1][:8]
    model = make(kind)
    rule = TradeOff(eps=0.1, steps=3, weight=weight)
    found, loss, logits, lent = gradients(rule, model, x, y, 0.5)
    x_adv = PGD(Linf(0.1), steps=3)(model, x, y, seed=5, sample_ids=IDS)
    with draws(model.train(), 5, IDS):
        clean = model(x)
    with draws(model, 5, IDS):
        far = model(x_adv)
    expected = (1 - weight) * F.cross_entropy(clean, y) + weight * F.cross_entropy(far, y)
    (0.5 * expected).backward()
    assert torch.allclose(loss, expected)
    assert torch.equal(logits, clean)
    for g, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(g, p.grad, rtol=1e-4, atol=1e-6)
    assert lent.tally["adversarial_accuracy"] == [float((far.argmax(1) == y).sum()), 8.0]


def test_weight_one_is_adversarial_training(make, digits):
    x, y = digits[0][:8], digits[1][:8]
    model = make("mlp")
    one = gradients(TradeOff(eps=0.1, steps=2, weight=1.0), model, x, y)[0]
    two = gradients(PGDTraining(eps=0.1, steps=2), model, x, y)[0]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0.0}, r"weight must be in \(0, 1\], got 0.0: without it this is BPTT"),
        ({"weight": 1.5}, r"weight must be in \(0, 1\], got 1.5"),
        ({"share": 0.5}, "share must be 1, got 0.5: the weight says how much"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TradeOff(**arguments)
