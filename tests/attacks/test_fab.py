import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from snnrobust.attacks import FAB, L0, L1, L2, Backprop, BluntGradientWarning, Linf
from snnrobust.attacks.hyperplane import Hyperplane, lengths, onto

KINDS = {"Linf": (Linf, math.inf), "L2": (L2, 2.0), "L1": (L1, 1.0)}


def linear(spread, classes=3, seed=0):
    """Samples within ``spread`` of 1/2: with 0.5 the box is often in the way."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(12, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 12, generator=g))
        model.bias.copy_(-model.weight.sum(1) / 2 + 0.3 * torch.randn(classes, generator=g))
    x = (0.5 + spread * (2 * torch.rand(40, 12, generator=g, dtype=torch.float64) - 1)).clamp(0, 1)
    return model, x, model(x).argmax(1)


def exact(model, x, y, p, targets=None):
    """The smallest distance to another class inside the box, by the projection that test_hyperplane.py checks."""
    rows, best = torch.arange(len(x)), torch.full((len(x),), torch.inf, dtype=torch.float64)
    with torch.no_grad():
        z = model(x)
        for step in range(1, z.shape[1]):
            j = (y + step) % z.shape[1] if targets is None else targets
            w, f = model.weight[j] - model.weight[y], z[rows, j] - z[rows, y]
            change = onto(x, Hyperplane(w, f), (0.0, 1.0), p)
            reaches = (f + (w * change).sum(1)).abs() < 1e-9
            best = torch.where(reaches, torch.minimum(best, lengths(change, p)), best)
    return best


@pytest.mark.parametrize("spread", [0.05, 0.5])
@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("each_class", [False, True])
def test_the_exact_distance_of_a_linear_model(norm, spread, each_class):
    kind, p = KINDS[norm]
    model, x, y = linear(spread)
    threat = kind(kind(0.0).largest(x))
    x_adv = FAB(threat, steps=20, each_class=each_class)(model, x, y, seed=0)
    assert (model(x_adv).argmax(1) != y).all()
    ratio = threat.distance(x, x_adv) / exact(model, x, y, p)
    assert ratio.min() > 1 - 1e-9
    assert ratio.median() < 1.005
    assert ratio.max() < 1.05


@pytest.mark.parametrize("norm", KINDS)
def test_the_exact_distance_to_a_target(norm):
    kind, p = KINDS[norm]
    model, x, y = linear(0.5, classes=2, seed=1)
    threat = kind(kind(0.0).largest(x))
    x_adv = FAB(threat, steps=20)(model, x, y, targets=1 - y, seed=0)
    ratio = threat.distance(x, x_adv) / exact(model, x, y, p, 1 - y)
    assert (model(x_adv).argmax(1) == 1 - y).all()
    assert ratio.min() > 1 - 1e-9
    assert ratio.max() < 1.05


def robust(model, x, y, x_adv, threat, budgets):
    with torch.no_grad():
        wrong = model(x_adv).argmax(1) != y
    distance = torch.where(wrong, threat.distance(x, x_adv), torch.inf)
    return torch.stack([(distance > eps).double().mean() for eps in budgets])


@pytest.mark.parametrize(("norm", "budgets"), [("Linf", (0.03, 0.05, 0.08, 0.1, 0.15)), ("L2", (0.2, 0.4, 0.6, 0.8))])
@pytest.mark.parametrize("multi", [False, True])
def test_no_weaker_than_torchattacks(norm, budgets, multi, digits_ann):
    """Its L1 raises an error. Each with 10 steps from x."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    x, y = x[:60], y[:60]
    threat = KINDS[norm][0](1.0 if norm == "Linf" else 8.0)
    mine = robust(model, x, y, FAB(threat, steps=10, each_class=multi)(model, x, y, seed=0), threat, budgets)
    try:
        model.float()
        reference = torchattacks.FAB(model, norm=norm, eps=threat.eps, steps=10, multi_targeted=multi)(x.float(), y)
        theirs = robust(model, x.float(), y, reference, threat, budgets)
    finally:
        model.double()
    assert (mine <= theirs + 0.01).all()
    assert theirs[-1] < 0.5  # it did something


def test_restarts_never_lose(digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    threat = L2(8.0)
    distances = [
        threat.distance(x, FAB(threat, steps=5, classes=4, restarts=n, final_steps=0)(model, x, y, seed=0))
        for n in (1, 2, 3)
    ]
    for fewer, more in pairwise(distances):
        assert (more <= fewer + 1e-12).all()
        assert (more < fewer - 1e-9).any()


def test_the_final_search_shortens(digits_ann):
    model, x, y = digits_ann
    x, y = x[:40], y[:40]
    rough, fine = (L2(8.0).distance(x, FAB(L2(8.0), steps=3, final_steps=n)(model, x, y, seed=0)) for n in (0, 8))
    assert (fine <= rough).all()
    assert fine.mean() < 0.999 * rough.mean()


def test_a_step_by_hand():
    """f = 0.5 - x_1 over x = (0.8, 0.5): delta = (-0.3, 0), eta = 1.05 leads to 0.485, beyond the boundary; back to 0.5165."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        model.bias.copy_(torch.tensor([-0.5, 0.5]))
    x, y = torch.tensor([[0.8, 0.5]], dtype=torch.float64), torch.tensor([0])
    seen = []

    class Spy(Backprop):
        def __call__(self, model, x, *rest):
            seen.append(x)
            return super().__call__(model, x, *rest)

    x_adv = FAB(L2(1.0), steps=2, final_steps=0, gradient=Spy())(model, x, y)
    assert seen[1][0].tolist() == pytest.approx([0.5165, 0.5])  # 0.8 + 0.9 (0.485 - 0.8)
    # delta = -0.0165, delta_0 = -0.3, alpha = 0.0165 / 0.3165
    alpha = 0.0165 / 0.3165
    second = (1 - alpha) * (0.5165 - 1.05 * 0.0165) + alpha * 0.485
    assert x_adv[0].tolist() == pytest.approx([max(second, 0.485), 0.5])


def test_alpha_max_zero_forgets_x(digits_ann):
    """Without the bias the iterates drift: no sample ends nearer on average."""
    model, x, y = digits_ann
    x, y = x[:60], y[:60]
    biased, free = (
        L2(8.0).distance(x, FAB(L2(8.0), steps=10, alpha_max=a, final_steps=0)(model, x, y)).mean() for a in (0.1, 0.0)
    )
    assert biased < free


@pytest.mark.parametrize("norm", KINDS)
def test_spiking(norm, digits_snn):
    """Counts tie and stand on plateaus; accuracy at a budget falls all the same."""
    model, x, y = digits_snn
    eps = {"Linf": 0.15, "L2": 0.8, "L1": 3.0}[norm]
    x_adv = FAB(KINDS[norm][0](eps), steps=10)(model, x, y, seed=0)
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == y).double().mean() < 0.45


@pytest.mark.parametrize("norm", KINDS)
def test_blunt(norm):
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.sum(1) + 1, 0 * x.sum(1)], 1)

    with pytest.warns(BluntGradientWarning):
        x_adv = FAB(KINDS[norm][0](0.1), steps=3)(Flat(), torch.full((2, 3), 0.5), torch.zeros(2, dtype=torch.int64))
    assert (x_adv == 0.5).all()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"alpha_max": 1.1}, "alpha_max"),
        ({"eta": 0.9}, "eta"),
        ({"beta": -0.1}, "beta"),
        ({"classes": 0}, "classes"),
        ({"final_steps": -1}, "final_steps"),
    ],
)
def test_bad_settings_are_named(settings, error):
    with pytest.raises(ValueError, match=error):
        FAB(L2(1.0), **settings)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="FAB is an attack for Linf and L2 and L1, got a threat in L0"):
        FAB(L0(1))
