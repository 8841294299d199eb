"""HopSkipJump against closed forms, foolbox, and a count of its queries."""

import foolbox
import pytest
import torch
from torch import nn

from snnrobust.attacks import L1, L2, HopSkipJump, Linf


class Line(nn.Module):
    """Two classes; class 1 wins where w x > b."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b, self.rows = w, b, []

    def forward(self, x):
        self.rows.append(len(x))
        z = x.flatten(1) @ self.w - self.b
        return torch.stack([torch.zeros_like(z), z], 1)


def line(d=12):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(d, generator=g, dtype=torch.float64)
    x = 0.3 + 0.2 * torch.rand(4, d, generator=g, dtype=torch.float64)
    return Line(w, float((x @ w).max()) + 0.1), x, torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_nearly_the_distance_of_a_plane(norm):
    model, x, y = line()
    truth = (model.b - x @ model.w) / (model.w.norm() if norm == "L2" else model.w.abs().sum())
    threat = {"L2": L2, "Linf": Linf}[norm](0.9)
    x_adv = HopSkipJump(threat, queries=1500, first_trials=40, early_stop=False)(model, x, y, seed=0)
    distance = threat.distance(x, x_adv)
    assert (distance > truth).all()
    assert (distance < 1.15 * truth).all()
    assert (model(x_adv).argmax(1) == 1).all()


@pytest.mark.parametrize("queries", [1, 20, 57, 300])
def test_queries_are_never_more(queries):
    model, x, y = line()
    HopSkipJump(L2(0.01), queries=queries, first_trials=10)(model, x[:1], y[:1], seed=0)
    assert sum(model.rows) - 2 <= queries  # is_stochastic asks twice
    if queries == 300:
        assert sum(model.rows) > 150


def test_it_sees_predictions_only(digits_ann):
    model, x, y = digits_ann

    class Decisions(nn.Module):
        def forward(self, inputs):
            return nn.functional.one_hot(model(inputs).argmax(1), 10).double()

    attack = HopSkipJump(L2(0.5), queries=150, first_trials=20)
    assert torch.equal(attack(Decisions(), x[:10], y[:10], seed=0), attack(model, x[:10], y[:10], seed=0))


def test_what_is_wrong_already_stays():
    model, x, _ = line()
    y = torch.ones(4, dtype=torch.int64)
    assert torch.equal(HopSkipJump(L2(0.1), queries=50)(model, x, y, seed=0), x)


def test_targets(digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    with torch.no_grad():
        targets = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    x_adv = HopSkipJump(L2(4.0), queries=300, first_trials=30)(model, x, y, targets=targets, seed=0)
    assert (model(x_adv).argmax(1) == targets).double().mean() > 0.3


def test_a_vote_of_draws_decides():
    class Noisy(nn.Module):
        """Wrong in 30 % of all draws at x, in 90 % where the first element is above 0.6."""

        def forward(self, x):
            wrong = torch.rand(len(x), dtype=x.dtype) < 0.3 + 0.6 * (x[:, 0] > 0.6)
            return torch.stack([1 - 2.0 * wrong, 0 * x[:, 0]], 1)

    x, y = torch.full((30, 3), 0.5, dtype=torch.float64), torch.zeros(30, dtype=torch.int64)
    single, vote = (
        HopSkipJump(L2(0.8), queries=40 * n, draws=n, first_trials=5)(Noisy(), x, y, seed=0) for n in (1, 25)
    )
    assert (single == x).flatten(1).all(1).sum() > 3  # lucky draws at x
    assert (vote == x).flatten(1).all(1).sum() <= 1
    assert (vote[:, 0] > 0.6).double().mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.7), ("linf", 0.15)])
def test_is_not_weaker_than_foolboxs(norm, eps, digits_ann, record_property):
    model, x, y = digits_ann
    x, y = x[:60], y[:60]
    asked = []
    hook = model.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rival = foolbox.attacks.HopSkipJumpAttack(steps=8, constraint=norm, initial_gradient_eval_steps=40)
        starts = torch.rand(x.shape, dtype=x.dtype)
        right = model(x).argmax(1) == y
        reached = (model(starts).argmax(1) != y) & right
        victim = foolbox.PyTorchModel(model, bounds=(0, 1))
        asked.clear()
        found = rival.run(victim, x[reached], y[reached], starting_points=starts[reached])
    hook.remove()
    queries = sum(asked) // int(reached.sum())
    threat = (L2 if norm == "l2" else Linf)(eps)
    theirs = float((threat.distance(x[reached], found) <= eps).double().mean())
    x_adv = HopSkipJump(threat, queries=queries, first_trials=40)(model, x[reached], y[reached], seed=0)
    ours = float((model(x_adv).argmax(1) != y[reached]).double().mean())
    record_property("broken: ours, foolbox, queries", [ours, theirs, queries])
    assert ours >= theirs - 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threat": L1(3)}, ValueError, "works in Linf and L2, got a threat in L1"),
        ({"queries": 0}, ValueError, "queries must be"),
        ({"first_trials": 0}, ValueError, "first_trials must be"),
        ({"gamma": 0.0}, ValueError, "gamma must be"),
        ({"draws": 0}, ValueError, "draws must be"),
        ({"early_stop": None}, TypeError, "early_stop must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        HopSkipJump(**({"threat": Linf(0.1)} | arguments))
