import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog
from torch import nn

from snnrobust.attacks import L0, L1, L2, Backprop, EvolutionStrategies, Linf, margin
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.hyperplane import Difference, Hyperplane, dual_norm, lengths, nearest, onto, order
from snnrobust.draws import Stream

PS = (1.0, 2.0, math.inf)


def smallest(x, w, f, p, low=0.0, high=1.0):
    """min |d|_p with f + w.d = 0 and x + d in the box; None where the box does not reach the plane. By linear programs, and in
    L2 by a root of the multiplier."""
    n = len(x)
    eye, one = np.eye(n), np.ones((n, 1))
    if p == math.inf:  # variables d, t with -t <= d <= t
        a = np.block([[eye, -one], [-eye, -one]])
        bounds = [*zip(low - x, high - x, strict=True), (0, None)]
        found = linprog([*np.zeros(n), 1], A_ub=a, b_ub=np.zeros(2 * n), A_eq=[[*w, 0]], b_eq=[-f], bounds=bounds)
    elif p == 1:  # d = up - down
        bounds = [*((0, high - v) for v in x), *((0, v - low) for v in x)]
        found = linprog(np.ones(2 * n), A_eq=[[*w, *(-w)]], b_eq=[-f], bounds=bounds)
    else:
        clip = lambda s: np.clip(s * -np.sign(f) * w, low - x, high - x)  # noqa: E731
        gap = lambda s: f + w @ clip(s)  # noqa: E731
        if gap(0) * gap(1e9) > 0:
            return None
        return np.linalg.norm(clip(brentq(gap, 0, 1e9, xtol=1e-15, rtol=1e-14)))
    return found.fun if found.success else None


@pytest.mark.parametrize("p", PS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 3.0]), st.integers(1, 6))
def test_the_way_onto_a_plane_is_the_shortest(p, seed, far, n):
    g = np.random.default_rng(seed)
    x, w = g.random(n), g.normal(size=n)
    x = np.where(g.random(n) < 0.3, x.round(), x)  # edges of the box
    w = np.where(g.random(n) < 0.2, 0.0, w.round(1))  # ties and zeros
    f = float(far * g.normal())
    plane = Hyperplane(torch.tensor(w)[None], torch.tensor([f], dtype=torch.float64))
    change = onto(torch.tensor(x)[None], plane, (0.0, 1.0), p)
    at = x + change[0].numpy()
    assert at.min() >= -1e-15
    assert at.max() <= 1 + 1e-15
    expected = smallest(x, w, f, p)
    if expected is None:  # the corner nearest to the plane
        corner = np.where(w == 0, x, np.where(np.sign(-f) * w > 0, 1.0, 0.0))
        assert np.allclose(at, corner, atol=1e-12)
        return
    assert abs(f + w @ change[0].numpy()) < 1e-9
    assert float(lengths(change, p)) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("p", "expected"), [(1.0, [0.1, 0.3, 0.0]), (2.0, [0.1, 0.2, 0.1]), (math.inf, [0.1, 0.15, 0.15])]
)
def test_an_element_that_the_box_stops(p, expected):
    """x_1 has room for 0.1 only; the others bring the rest of what is missing."""
    w = torch.tensor([[4.0, 2.0, 1.0]]).double() if p != math.inf else torch.tensor([[4.0, 2.0, 2.0]]).double()
    missing = (w[0] * torch.tensor(expected)).sum()
    change = onto(torch.tensor([[0.9, 0.5, 0.5]]).double(), Hyperplane(w, -missing[None]), (0.0, 1.0), p)
    assert change[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("p", PS)
def test_each_sample_has_a_plane_of_its_own(p):
    g = torch.Generator().manual_seed(0)
    x, w = torch.rand(5, 2, 3, generator=g), torch.randn(5, 2, 3, generator=g).double()
    f = torch.linspace(-2, 2, 5).double()
    whole = onto(x, Hyperplane(w, f), (0.0, 1.0), p)
    assert whole.shape == x.shape
    assert not whole[2].any()  # it lies on the plane
    for i in range(5):
        assert torch.equal(onto(x[i : i + 1], Hyperplane(w[i : i + 1], f[i : i + 1]), (0.0, 1.0), p)[0], whole[i])


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_the_scale_of_the_plane_does_not_matter(p, scale):
    g = torch.Generator().manual_seed(1)
    x, w = torch.rand(8, 4, generator=g).double(), torch.randn(8, 4, generator=g).double()
    f = -0.3 * torch.rand(8, generator=g).double()
    plain, scaled = (onto(x, Hyperplane(k * w, k * f), (0.0, 1.0), p) for k in (1.0, scale))
    assert (plain - scaled).abs().max() < 1e-9


@pytest.mark.parametrize("p", PS)
def test_no_gradient_moves_nothing(p):
    x = torch.rand(3, 4)
    assert not onto(x, Hyperplane(torch.zeros(3, 4).double(), torch.tensor([-1.0, 0, 1]).double()), (0.0, 1.0), p).any()


@pytest.mark.parametrize("p", PS)
def test_dual_norm(p):
    """Hölder: |w.d| <= |w|_q |d|_p, reached by the way onto a plane far from the box."""
    w, f = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).double(), torch.full((6,), -0.01).double()
    change = onto(torch.full((6, 5), 0.5), Hyperplane(w, f), (0.0, 1.0), p)
    assert torch.allclose(lengths(change, p), 0.01 / dual_norm(w, p), rtol=1e-12)


def test_a_plane_seen_from_elsewhere():
    w, x, other = torch.randn(3, 4).double(), torch.rand(3, 4), torch.rand(3, 4)
    seen = Hyperplane(w, torch.ones(3).double()).seen_from(other, x)
    assert torch.allclose(seen.value, 1 + (w * (other.double() - x.double())).sum(1))
    assert seen.normal is w


def linear(classes=4):
    g = torch.Generator().manual_seed(3)
    model = nn.Linear(6, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 6, generator=g))
        model.bias.copy_(0.3 * torch.randn(classes, generator=g))
    x = torch.rand(9, 6, generator=g, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("p", PS)
def test_the_nearest_plane(p):
    model, x, y = linear()
    stream, goal = Stream(0, torch.arange(9)), Goal(y)
    with torch.no_grad():
        z = model(x)
    plane, logits = nearest(Backprop(), model, x, goal, goal.next_classes(z, 3), stream, p)
    assert torch.equal(logits, z)
    for i in range(9):
        others = [j for j in range(4) if j != y[i]]
        w = torch.stack([model.weight[j] - model.weight[y[i]] for j in others]).detach()
        f = torch.stack([z[i, j] - z[i, y[i]] for j in others])
        q = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
        best = int((f.abs() / torch.linalg.vector_norm(w, q, dim=1)).argmin())
        assert torch.allclose(plane.normal[i], w[best])
        assert torch.allclose(plane.value[i], f[best])


def test_the_plane_of_a_target():
    model, x, y = linear()
    targets = (y + 1) % 4
    plane, z = nearest(Backprop(), model, x, Goal(y, targets), y[:, None], Stream(0, torch.arange(9)), 2.0)
    assert torch.equal(plane.value, -margin(z, targets))
    assert torch.allclose(plane.normal, (model.weight[targets] - model.weight[z.argmax(1)]).detach())


class Counts(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.z = torch.tensor(logits).double()

    def forward(self, x):
        return self.z + (x - x.detach()).sum(1, keepdim=True) * torch.arange(3.0).double()


@pytest.mark.parametrize(
    ("logits", "value", "slope"),
    [
        ([2.0, 2, 1], -1.0, 2.0),  # class 1 ties: the gap to the next count, 1 / 1; class 2 is nearer, 1 / 2
        ([2.0, 2, 2], -1.0, 2.0),  # no gap at all
        ([2.0, 1.75, 2], -0.25, 2.0),
        ([2.0, 1.5, 0.0], -0.5, 1.0),  # no tie
    ],
)
def test_ties(logits, value, slope):
    x, stream = torch.zeros(1, 2).double(), Stream(0, torch.arange(1))
    plane, _ = nearest(Backprop(), Counts([logits]), x, Goal(torch.tensor([0])), torch.tensor([[1, 2]]), stream, 2.0)
    assert (plane.value.item(), plane.normal[0, 0].item()) == (value, slope)


def test_a_tie_that_reaches_the_goal_is_on_the_plane():
    model = Counts([[2.0, 2, 0]])
    goal = Goal(torch.tensor([1]))
    assert goal.reached(model(torch.zeros(1, 2).double())).all()
    plane, _ = nearest(
        Backprop(), model, torch.zeros(1, 2).double(), goal, torch.tensor([[0]]), Stream(0, torch.arange(1)), 2.0
    )
    assert plane.value.item() == 0


def test_a_source_of_copies_gets_the_right_pairs():
    """Evolution strategies ask for the whole batch many times over."""
    model, x, y = linear()
    goal = Goal(y)
    classes = goal.next_classes(model(x), 1)
    exact, _ = nearest(Backprop(), model, x, goal, classes, Stream(0, torch.arange(9)), 2.0)
    source = EvolutionStrategies(queries=4000, sigma=0.01, bounds=None)
    guess, _ = nearest(source, model, x, goal, classes, Stream(0, torch.arange(9)), 2.0)
    cosine = torch.cosine_similarity(exact.normal, guess.normal)
    assert cosine.min() > 0.98


def test_a_source_that_reorders_is_named():
    loss = Difference(torch.tensor([0, 1]), torch.tensor([1, 2]))
    z = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert loss(z, torch.tensor([1, 2])).tolist() == [1, 1]
    assert loss(z.repeat(2, 1), torch.tensor([1, 2, 1, 2])).tolist() == [1, 1, 1, 1]
    for labels in ([2, 1], [1, 1, 2, 2], [1]):
        with pytest.raises(ValueError, match="whole copies"):
            loss(torch.zeros(len(labels), 3), torch.tensor(labels))


def test_norms_that_are_not_supported_are_named():
    assert [order("FAB", kind(0), (Linf, L2, L1)) for kind in (Linf, L2, L1)] == [math.inf, 2, 1]
    with pytest.raises(ValueError, match=r"FAB is an attack for Linf and L2, got a threat in L0 \(pixels\)"):
        order("FAB", L0(1), (Linf, L2))
