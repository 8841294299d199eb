import pytest
import torch
from torch import nn

from snnrobust.attacks import L2, Linf
from snnrobust.attacks.closest import Closest
from snnrobust.attacks.goal import Goal
from snnrobust.draws import Stochastic, Stream


class Step(nn.Module):
    """Class 1 where the first pixel is above 0.5."""

    def forward(self, x):
        return torch.stack([torch.full_like(x[:, 0], 0.5), x[:, 0]], 1)


def keeper(threat, model=None, n=3, draws=4):
    x = torch.full((n, 2), 0.2)
    return Closest(
        model or Step(), x, Goal(torch.zeros(n, dtype=torch.int64)), threat, Stream(0, torch.arange(n)), draws
    )


def points(*first):
    return torch.tensor([[v, 0.2] for v in first])


def test_keeps_the_closest_that_reaches_the_goal():
    closest, model = keeper(Linf(1.0)), Step()
    everyone = torch.arange(3)
    for candidate in (points(0.9, 0.4, 0.7), points(0.6, 0.3, 0.8)):
        assert closest.offer(everyone, candidate, model(candidate)).tolist() == [True, False, True]
    assert torch.equal(closest.x_adv, points(0.6, 0.2, 0.7))
    assert closest.distance.tolist() == pytest.approx([0.4, float("inf"), 0.5], abs=1e-7)


def test_offers_for_some_samples_only():
    closest = keeper(L2(torch.tensor([1.0, 0.5, 0.2])))
    candidate = points(0.8, 0.9)
    closest.offer(torch.tensor([2, 0]), candidate, Step()(candidate))
    assert torch.equal(closest.x_adv, points(0.9, 0.2, 0.8))
    assert len(closest.offer(torch.arange(0), candidate[:0], Step()(candidate[:0]))) == 0


def test_within_the_budget_the_closest_and_else_the_worst():
    """Sample 0: found inside. 1: found beyond, its projection beats the attempt's. 2: nothing found, the attempt."""
    closest, model = keeper(Linf(0.35)), Step()
    found = points(0.54, 0.9, 0.3)
    closest.offer(torch.arange(3), found, model(found))
    result = closest.within(points(0.1, 0.3, 0.45))
    assert torch.allclose(result, points(0.54, 0.55, 0.45))
    assert torch.equal(
        closest.within(points(0.1, 0.1, 0.1))[2], points(0.2)[0]
    )  # x is worse for the model than the attempt
    closest.threat.validate(closest.x, result)


class Coin(Stochastic):
    """Class 1 with the probability that the first pixel says."""

    def forward(self, x):
        return torch.stack([self.uniform((1, len(x)))[0], x[:, 0]], 1)


def test_a_random_model_has_to_be_wrong_in_all_draws():
    closest = keeper(Linf(1.0), Coin(), n=2, draws=200)
    candidate = points(0.9, 1.0)
    lucky = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert closest.offer(torch.arange(2), candidate, lucky).tolist() == [False, True]
    assert keeper(Linf(1.0), Coin(), n=2, draws=1).offer(torch.arange(2), candidate, lucky).all()
