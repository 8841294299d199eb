import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.attacks import FAB, FGSM, PGD, Linf
from snnrobust.encoders import Poisson
from snnrobust.evaluation import accuracy_curve, evaluate
from snnrobust.models import Conv, spiking
from snnrobust.statistics import mean_interval


@pytest.fixture
def victim():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 9, generator=g))
        model[1].bias.copy_(0.2 * torch.randn(3, generator=g))
        x = torch.rand(40, 1, 3, 3, generator=g, dtype=torch.float64)
        y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3  # wrong from the start
    return model, x, y


def test_distances_and_accuracy_agree_with_evaluate(victim):
    model, x, y = victim
    budgets = [0.0, 0.02, 0.05, 0.1, 0.2]
    curve = accuracy_curve(model, (x, y), PGD(Linf(0.3), steps=20, random_start=False), seed=1)
    attacks = {"PGD": PGD(Linf(0.1), steps=20, random_start=False)}
    report = evaluate(model, (x, y), attacks, eps=budgets[1:], progress=False)
    frame = {row["eps"]: row["accuracy"] for row in report.rows if row["attack"] == "PGD"}
    for eps in budgets[1:]:
        assert curve.at(eps).accuracy <= frame[eps] + 1e-9
        assert curve.at(eps).accuracy >= frame[eps] - 0.05
    assert curve.at(0.0).accuracy == 0.9


def test_a_point_is_a_mean_with_its_interval(victim):
    model, x, y = victim
    curve = accuracy_curve(model, (x, y), FAB(Linf(1.0), steps=10))
    assert curve.distance[:4].tolist() == [0, 0, 0, 0]
    assert (curve.distance[4:] > 0).all()
    assert curve.norm == "Linf"
    right = (curve.distance > 0.1).double()
    point = curve.at(0.1)
    assert point.accuracy == right.mean()
    assert (point.low, point.high) == mean_interval(right.numpy())
    assert curve.at("1/10") == point
    assert curve.median == curve.distance.sort().values[19]


def test_the_curve_falls_and_has_all_its_steps(victim):
    model, x, y = victim
    points = accuracy_curve(model, (x, y), FAB(Linf(1.0), steps=10)).points()
    assert points[0].eps == 0
    assert all(a.accuracy > b.accuracy for a, b in pairwise(points))
    assert all(a.eps < b.eps for a, b in pairwise(points))
    assert points[-1].accuracy == 0
    assert len(points) == 37  # 0, where 4 are wrong, and 36 distances


def test_beyond_the_budget_it_says_nothing(victim):
    model, x, y = victim
    curve = accuracy_curve(model, (x, y), FGSM(Linf(0.02)))
    assert curve.distance.isinf().any()
    assert curve.at(0.02).accuracy > 0.5
    assert curve.median == math.inf
    with pytest.raises(ValueError, match=r"at most 0.02, the budget that the attack had"):
        curve.at(0.03)


def test_a_random_model_is_judged_on_fresh_draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Conv(4),), (1, 8, 8), 10, Poisson(4))
        model.train()(torch.rand(16, 1, 8, 8))
    curve = accuracy_curve(
        model, data.load("digits", "test"), PGD(Linf(0.5), steps=3), n=12, selection_draws=4, judge_draws=8
    )
    assert set((curve.clean * 8).tolist()) <= set(range(9))
    assert (curve.attacked <= curve.clean).double().mean() > 0.8
    assert torch.equal(curve.shares(0.5), torch.where(curve.distance <= 0.5, curve.attacked, curve.clean))


def test_the_batch_and_the_folder_change_nothing(victim, tmp_path):
    model, x, y = victim
    runs = [
        accuracy_curve(model, (x, y), PGD(Linf(0.3), steps=4), batch_size=size, folder=folder)
        for size, folder in ((40, None), (7, None), (40, tmp_path), (40, tmp_path))
    ]
    for run in runs[1:]:
        assert (run.distance - runs[0].distance).abs().nan_to_num(0).max() < 1e-9
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"seed": -1}, "seed"), ({"judge_draws": 0}, "judge_draws"), ({"batch_size": 0}, "batch_size"), ({"n": 0}, "n ")],
)
def test_bad_input_is_named(arguments, error, victim):
    model, x, y = victim
    with pytest.raises(ValueError, match=error):
        accuracy_curve(model, (x, y), FGSM(Linf(0.1)), **arguments)


def test_other_bad_input(victim):
    model, x, y = victim
    with pytest.raises(TypeError, match="attack must be an attack"):
        accuracy_curve(model, (x, y), Linf(0.1))
    with pytest.raises(ValueError, match="one eps for all samples"):
        accuracy_curve(model, (x, y), FGSM(Linf(torch.full((40,), 0.1))))
