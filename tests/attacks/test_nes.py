"""NES and SPSAAttack against PGD along the gradient that they estimate, and a count of their queries."""

import pytest
import torch
from torch import nn

from snnrobust.attacks import L2, NES, PGD, SPSA, EvolutionStrategies, Linf, SPSAAttack, cross_entropy, margin


class Line(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w, self.rows = w, 0

    def forward(self, x):
        self.rows += len(x)
        z = x.flatten(1) @ self.w - 5.0  # never reached
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("make", [NES, SPSAAttack])
@pytest.mark.parametrize(("queries", "samples", "steps"), [(100, 10, 9), (99, 10, 9), (98, 10, 8), (11, 10, 1)])
def test_queries_are_counted(make, queries, samples, steps):
    model, x = Line(torch.ones(4, dtype=torch.float64)), torch.full((3, 4), 0.5, dtype=torch.float64)
    make(Linf(0.1), queries=queries, samples=samples)(model, x, torch.zeros(3, dtype=torch.int64), seed=0)
    assert model.rows == 3 * steps * (samples + 1) + 2 * 3 * 2  # is_stochastic asks twice, here and in PGD


@pytest.mark.parametrize("make", [NES, SPSAAttack])
def test_optimum_of_a_linear_model(make):
    w = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    x, y = torch.full((3, 4), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    x_adv = make(Linf(0.1), queries=1500, samples=100, loss=margin)(Line(w), x, y, seed=0)
    assert torch.allclose(x_adv, x + 0.1 * w.sign())
    x_adv = make(L2(0.1), queries=1500, samples=100, loss=margin)(Line(w), x, y, seed=0)
    assert ((x_adv - x) @ w > 0.95 * 0.1 * w.norm()).all()


@pytest.mark.parametrize(
    ("attack", "same"),
    [
        (
            NES(Linf(0.1), queries=64, samples=20, sigma=0.05),
            PGD(Linf(0.1), steps=3, random_start=False, gradient=EvolutionStrategies(20, 0.05), loss=cross_entropy),
        ),
        (
            SPSAAttack(Linf(0.1), queries=64, samples=20, delta=0.05),
            PGD(Linf(0.1), steps=3, random_start=False, gradient=SPSA(20, 0.05), loss=margin),
        ),
    ],
    ids=["NES", "SPSAAttack"],
)
def test_is_pgd(attack, same, victims):
    model, x, y = victims("poisson")  # random: no early stop
    assert torch.equal(attack(model, x, y, seed=0), same(model, x, y, seed=0))


def test_stays_in_a_box_of_the_threat():
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x @ torch.ones(4, 2, dtype=x.dtype) * torch.tensor([1.0, -1.0], dtype=x.dtype)

    x = torch.tensor([[-1.0, 1.0, 0.0, 0.5]], dtype=torch.float64)
    for make in (NES, SPSAAttack):
        make(Linf(0.5, bounds=(-1.0, 1.0)), queries=60, samples=10)(Watched(), x, torch.tensor([0]), seed=0)
    assert all((query.abs() <= 1).all() for query in seen)
    assert any((query < -0.9).any() for query in seen)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": 50}, ValueError, "queries must be more than samples = 50"),
        ({"samples": 3}, ValueError, "must be even"),
        ({"early_stop": "no"}, TypeError, "early_stop must be True or False"),
        ({"step_size": -1.0}, ValueError, "step_size"),
        ({"loss": "margin"}, TypeError, "loss must be"),
    ],
)
@pytest.mark.parametrize("make", [NES, SPSAAttack])
def test_bad_arguments(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**({"threat": Linf(0.1), "queries": 500, "samples": 50} | arguments))


def test_bad_widths():
    with pytest.raises(ValueError, match="sigma must be above 0"):
        NES(Linf(0.1), sigma=0.0)
    with pytest.raises(ValueError, match="delta must be above 0"):
        SPSAAttack(Linf(0.1), delta="0/5")
