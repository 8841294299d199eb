import warnings

import pytest
import torch
from torch import nn

from snnrobust.attacks import FGSM, L0, L2, PGD, Linf, MinimalNorm, RandomNoise, Transfer
from snnrobust.attacks.attack import Attack


def first_success(model, x, y, attack, grid):
    """The smallest budget of a grid at which the attack succeeds, by trying them all."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for eps in reversed(grid):
        with torch.no_grad(), warnings.catch_warnings():
            wrong = model(attack.at(eps)(model, x, y, seed=0)).argmax(1) != y
        best[wrong] = eps
    return best


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


@pytest.mark.parametrize("make", [FGSM, lambda t: PGD(t, steps=5, random_start=False)])
def test_no_farther_than_a_grid_of_budgets(make, digits_ann):
    model, x, y = digits_ann
    x, y = x[:60], y[:60]
    grid = [0.0, *(i / 100 for i in range(1, 41))]
    attack = make(Linf(0.4))
    brute = first_success(model, x, y, attack, grid)
    x_adv = MinimalNorm(attack)(model, x, y, seed=0)
    distance = torch.where(wrong(model, x_adv, y), Linf(1.0).distance(x, x_adv), torch.inf)
    found = brute.isfinite() & distance.isfinite()
    assert found.double().mean() > 0.9
    # bisection ends in a gap below which the attack fails: the first gap of the grid, but for attacks that are not monotone
    close = (distance[found] <= brute[found]) & (distance[found] >= brute[found] - 0.01 * (1 + 1e-9))
    assert close.double().mean() > 0.9


def test_a_linear_model_to_the_tolerance():
    """FGSM is exact there: |f| / |w|_1, and is found from above."""
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(10, 2).double()
    x = 0.5 + 0.05 * torch.randn(30, 10, generator=g, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 10, generator=g))
        model.bias.copy_(-model.weight.sum(1) / 2)
        z = model(x)
    y = z.argmax(1)
    exact = (z[:, 0] - z[:, 1]).abs() / (model.weight[0] - model.weight[1]).abs().sum()
    for tolerance in (0.1, 0.001):
        x_adv = MinimalNorm(FGSM(Linf(0.4)), steps=30, tolerance=tolerance)(model, x, y)
        ratio = Linf(1.0).distance(x, x_adv) / exact
        assert ratio.min() > 1 - 1e-12
        assert ratio.max() < 1 / (1 - tolerance) + 1e-9
    assert ratio.max() > 1


def test_steps_halve_the_bracket():
    """Of one that fails at every point but the corner: 12 halvings leave 2^-12 of the budget."""

    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full_like(x[:, 0], 0.3), x[:, 0]], 1)

    class Up(Attack):
        def __init__(self, threat):
            self.threat = threat

        def at(self, eps):
            return Up(self.threat.at(eps))

        def perturb(self, model, x, goal, stream):
            seen.append(self.threat.eps)
            return self.threat.project(x + 1, x)

    from snnrobust.attacks.attack import ATTACKS

    try:
        seen = []
        x, y = torch.zeros(1, 1).double(), torch.tensor([0])
        x_adv = MinimalNorm(Up(Linf(1.0)), steps=5, tolerance=0.0)(Corner(), x, y)
        assert seen[0] == 1.0
        # 1/2 and, by projection, no run: then 1/4 fails, 3/8 works, 5/16 works, 9/32 fails
        assert seen[1:] == [(0.25,), (0.28125,)]
        assert x_adv.item() == 0.3125
    finally:
        del ATTACKS["Up"]


def test_l0_counts_pixels():
    """Two of the six pixels decide: the smallest budget is 2, whatever the steps."""

    class Two(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full_like(x[:, 0], 1.7), x[:, 0] + x[:, 3]], 1)

    x, y = torch.full((3, 6), 0.1).double(), torch.zeros(3, dtype=torch.int64)
    x_adv = MinimalNorm(PGD(L0(6), steps=5))(Two(), x, y, seed=0)
    assert L0(6).distance(x, x_adv).tolist() == [2, 2, 2]
    assert wrong(Two(), x_adv, y).all()


def test_where_nothing_is_found_the_attack_is_as_it_was(digits_ann):
    model, x, y = digits_ann
    x, y = x[:40], y[:40]
    attack = PGD(Linf(0.05), steps=5, random_start=False)
    plain, minimal = attack(model, x, y), MinimalNorm(attack)(model, x, y)
    broken = wrong(model, plain, y)
    assert 3 < broken.sum() < 37
    assert torch.equal(minimal[~broken], plain[~broken])
    assert wrong(model, minimal, y)[broken].all()
    distance = Linf(0.05).distance(x, minimal)
    assert (distance <= Linf(0.05).distance(x, plain)).all()
    clean = wrong(model, x, y)
    assert torch.equal(minimal[clean], x[clean])


def test_each_sample_has_its_own_budget(digits_ann):
    model, x, y = digits_ann
    x, y = x[:8], y[:8]
    budgets = torch.tensor([0.3, 0.01] * 4, dtype=torch.float64)
    x_adv = MinimalNorm(PGD(Linf(budgets), steps=5))(model, x, y, seed=0)
    assert (Linf(1.0).distance(x, x_adv) <= budgets).all()
    assert wrong(model, x_adv, y)[::2].all()


def test_targets(digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    targets = (y + 1) % 10
    x_adv = MinimalNorm(PGD(Linf(0.5), steps=10))(model, x, y, targets=targets, seed=0)
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == targets).double().mean() > 0.9
    free = MinimalNorm(PGD(Linf(0.5), steps=10))(model, x, y, seed=0)
    assert Linf(1.0).distance(x, free).mean() < Linf(1.0).distance(x, x_adv).mean()
    with pytest.raises(TypeError, match="takes no targets"):
        MinimalNorm(RandomNoise(Linf(0.1)))(model, x, y, targets=targets)


def test_of_a_transfer(digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    own, transfer = MinimalNorm(FGSM(Linf(0.3))), MinimalNorm(Transfer(FGSM(Linf(0.3)), model))
    assert torch.equal(own(model, x, y), transfer(model, x, y))


def test_a_random_model_is_broken_for_good(victims):
    """What is found is wrong in fresh draws too, nearly always."""
    model, x, y = victims("poisson")
    x, y = x.repeat(5, 1, 1, 1), y.repeat(5)
    x_adv = MinimalNorm(PGD(L2(4.0), steps=5), steps=4, selection_draws=16)(model, x, y, seed=0)
    near = L2(4.0).distance(x, x_adv) < 3
    assert near.sum() >= 5
    share = torch.stack([wrong(model, x_adv, y) for _ in range(50)]).double().mean(0)
    assert share[near].mean() > 0.9


@pytest.mark.parametrize(("settings", "error"), [({"steps": 0}, "steps"), ({"tolerance": -0.1}, "tolerance")])
def test_bad_settings_are_named(settings, error):
    with pytest.raises(ValueError, match=error):
        MinimalNorm(FGSM(Linf(0.1)), **settings)


def test_what_is_no_attack_is_refused():
    with pytest.raises(TypeError, match="attack must be an attack such as"):
        MinimalNorm(Linf(0.1))
