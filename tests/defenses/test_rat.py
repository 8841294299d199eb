from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust import attacks
from snnrobust.defenses import RAT, retract
from snnrobust.draws import Stream
from snnrobust.learning_rules import BPTT
from snnrobust.models import ordinary
from snnrobust.models.architecture import Dense


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.5), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_it_is_the_published_formula(rows, columns, beta, seed):
    w = matrix(rows, columns, seed)
    a = w.numpy()
    assert np.allclose(retract(w, beta).numpy(), (1 + beta) * a - beta * a @ a.T @ a, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_singular_values_move_towards_one_and_directions_stay(rows, columns, beta):
    w = matrix(rows, columns)
    w = w / torch.linalg.matrix_norm(w, 2) * 1.5  # the largest is 1.5
    before, after = torch.linalg.svdvals(w), torch.linalg.svdvals(retract(w, beta))
    assert torch.allclose(after.sort().values, (before + beta * before * (1 - before**2)).sort().values, atol=1e-12)
    assert ((before + beta * before * (1 - before**2) - 1).abs() < (before - 1).abs()).all()
    for _ in range(2000):
        w = retract(w, beta)
    assert torch.allclose(torch.linalg.svdvals(w), torch.ones(min(rows, columns), dtype=torch.float64), atol=1e-6)


def test_groups_have_rows_of_their_own():
    w = matrix(6, 4).view(6, 1, 2, 2)
    alone = torch.cat([retract(part, 0.1) for part in w.split(2)])
    assert torch.allclose(retract(w, 0.1, groups=3), alone, rtol=0, atol=1e-12)
    assert not torch.allclose(retract(w, 0.1), alone)


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=True), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20),
        nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip


def after(rule, model, key=5):
    """The retraction as the loop calls it after the step ``key``."""
    with rule.lend(model, torch.rand(1, 1, 8, 8)) as lent:
        lent.before(Stream(key, torch.arange(3)), torch.arange(3))
        assert lent.after is not None
        lent.after()


@pytest.mark.parametrize(("rows", "drawn"), [(0.3, {5: 6, 7: 3}), (1.0, {5: 20, 7: 10}), (0.01, {5: 1, 7: 1})])
def test_rows_are_drawn_of_linear_layers_and_of_convolutions_all_are_taken(rows, drawn):
    model, rule = net(), RAT(beta=0.2, rows=rows)
    before = deepcopy(model)
    after(rule, model)
    for index, layer in before.named_children():
        if isinstance(layer, nn.Conv2d):
            assert torch.allclose(model[int(index)].weight, retract(layer.weight, 0.2, layer.groups), atol=1e-6)
        elif isinstance(layer, nn.Linear):
            new, old = model[int(index)].weight.detach(), layer.weight.detach()
            moved = (new != old).any(1).nonzero()[:, 0]
            assert len(moved) == drawn[int(index)]
            assert torch.allclose(new[moved], retract(old[moved], 0.2), atol=1e-6)
        if hasattr(layer, "bias") and layer.bias is not None:
            assert torch.equal(layer.bias, model[int(index)].bias)


def test_each_step_and_layer_draws_other_rows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Linear(40, 40))

    def moved(key):
        victim = deepcopy(model)
        after(RAT(beta=0.5), victim, key)
        return [tuple((victim[i].weight != model[i].weight).any(1).tolist()) for i in (1, 2)]

    assert moved(1) == moved(1)
    assert moved(1) != moved(2)
    assert moved(1)[0] != moved(1)[1]


def test_frozen_layers_are_left_alone():
    model = net()
    model[0].weight.requires_grad_(False)
    before = deepcopy(model[0].weight)
    after(RAT(beta=0.5), model)
    assert torch.equal(model[0].weight, before)


def test_without_retraction_nothing_is_called_after_a_step(make, digits):
    with RAT(beta=0.0).lend(make("mlp"), digits[0][:1]) as lent:
        assert lent.after is None


def test_the_inner_attack_is_fgsm_or_pgd_with_equal_steps():
    assert RAT().attack == attacks.FGSM(attacks.Linf("2/255"))
    assert RAT(steps=2).attack == attacks.PGD(attacks.Linf("2/255"), steps=2, step_size=1 / 255)
    assert RAT(eot=4).attack.gradient == attacks.EOT(4)


@pytest.mark.parametrize("kind", ["ann", "poisson", "direct"])
def test_training_with_it_brings_singular_values_nearer_to_one(kind, make, digits):
    """Against the same training without the retraction; of every weight matrix with at least 4 rows."""

    def distance(beta):
        model = make(kind)
        RAT(eps=0.05, beta=beta, rows=1.0, batch_size=20).fit(model, digits, epochs=6, progress=False)
        values = [
            torch.linalg.svdvals(m.weight.detach().flatten(1))
            for m in model.modules()
            if isinstance(m, nn.Linear | nn.Conv2d)
        ]
        return sum(float((v - 1).abs().mean()) for v in values)

    assert distance(0.05) < 0.7 * distance(0.0)


def test_it_learns_with_defaults(digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ordinary((Dense(32),), (1, 8, 8), 10)
    history = RAT(lr=1e-2, batch_size=20).fit(model, digits, epochs=10, progress=False)
    assert history.last["accuracy"] > 0.95
    assert RAT().name in {"RAT"} - {BPTT.name}


@pytest.mark.parametrize("bad", [{"beta": -0.1}, {"beta": 2.0}, {"rows": 0.0}, {"rows": 1.5}, {"steps": 0}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RAT(**bad)
