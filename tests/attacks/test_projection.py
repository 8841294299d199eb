"""Projections onto ball and box are the nearest points."""

from itertools import combinations

import eagerpy
import foolbox
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from snnrobust.attacks import L0, L1, L2
from snnrobust.draws import Stream


@pytest.mark.parametrize("kind", [L2, L1])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_the_projection_is_the_nearest_point_of_ball_and_box(kind, share):
    """Against a general solver of constrained problems."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(4, 5, generator=g, dtype=torch.float64)
    x[0, :2] = torch.tensor([0.0, 1.0])
    wish = x + torch.randn(x.shape, generator=g, dtype=torch.float64)
    threat = kind(share * kind(0).largest(x))
    projected = threat.project(wish, x)
    for at, wanted, found in zip(x.numpy(), wish.numpy(), projected.numpy(), strict=True):
        if kind is L2:
            constraint = {"type": "ineq", "fun": lambda z, at=at: threat.eps**2 - ((z - at) ** 2).sum()}
            problem = (lambda z, w=wanted: ((z - w) ** 2).sum(), at, [(0, 1)] * 5, constraint)
        else:  # z = x + p - n with p, n >= 0, so that the constraint is linear
            constraint = {"type": "ineq", "fun": lambda z: threat.eps - z.sum()}
            box = [*((0, 1 - v) for v in at), *((0, v) for v in at)]
            problem = (lambda z, at=at, w=wanted: ((at + z[:5] - z[5:] - w) ** 2).sum(), np.zeros(10), box, constraint)
        objective, start, box, constraint = problem
        best = minimize(
            objective,
            start,
            bounds=box,
            constraints=[constraint],
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )
        assert ((found - wanted) ** 2).sum() <= best.fun + 1e-6  # the solver may leave its constraint by a little
        solution = best.x if kind is L2 else at + best.x[:5] - best.x[5:]
        assert np.abs(found - solution).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([L2, L1]), st.floats(1e-3, 0.9))
def test_the_multiplier_is_that_of_the_optimality_conditions(seed, kind, share):
    """Free elements of an L2 projection are scaled alike, those of an L1 projection shortened alike; the budget is spent."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 40, generator=g, dtype=torch.float64)
    wish = x + torch.randn(x.shape, generator=g, dtype=torch.float64)
    threat = kind(share * kind(0).largest(x))
    found, wanted = threat.project(wish, x) - x, wish - x
    room = torch.where(wanted > 0, 1 - x, x)
    assert (found * wanted >= 0).all()
    for f, w, r in zip(found.abs(), wanted.abs(), room, strict=True):
        if float(torch.linalg.vector_norm(torch.minimum(w, r), 2 if kind is L2 else 1)) <= threat.eps:
            assert (f - torch.minimum(w, r)).abs().max() < 1e-12
            continue
        assert threat.distance(x[:1] * 0, f[None]) == pytest.approx(threat.eps, rel=1e-11)
        full, free = f > r - 1e-12, (f < r - 1e-12) & (f > 1e-12)
        if free.any():
            multiplier = f[free] / w[free] if kind is L2 else w[free] - f[free]
            assert multiplier.max() - multiplier.min() < 1e-10
            m = multiplier.mean()
            assert (full <= ((m * w if kind is L2 else w - m) >= r - 1e-9)).all()
            if kind is L1:
                assert (w[f <= 1e-12] <= m + 1e-9).all()


@pytest.mark.parametrize("eps", [0.3, 2.0, 7.5])
def test_with_room_on_all_sides_projections_are_those_of_the_ball(eps):
    """L2 against foolbox. Not L1: foolbox 3.3.4 takes one element too many into its threshold and leaves the ball."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 4, 4, generator=g, dtype=torch.float64)
    wish = x + torch.randn(x.shape, generator=g, dtype=torch.float64)
    wide = (-20.0, 20.0)
    reference = foolbox.attacks.L2PGD().project(eagerpy.astensor(wish), eagerpy.astensor(x), eps).raw
    assert (L2(eps, wide).project(wish, x) - reference).abs().max() < 1e-11
    assert (L1(eps, wide).project(wish, x) - onto_l1(x, wish, eps)).abs().max() < 1e-11


def test_l0_keeps_the_pixels_of_largest_gain():
    """All choices of pixels, tried one by one."""
    g = torch.Generator().manual_seed(4)
    x = torch.rand(6, 2, 2, 3, generator=g, dtype=torch.float64)
    wish = x + 1.5 * torch.randn(x.shape, generator=g, dtype=torch.float64)
    for k in range(7):
        projected = L0(k).project(wish, x)
        best = torch.full((6,), torch.inf, dtype=torch.float64)
        for chosen in combinations(range(6), k):
            mask = torch.zeros(6).index_fill(0, torch.tensor(chosen, dtype=torch.int64), 1).view(1, 1, 2, 3) > 0
            candidate = torch.where(mask, wish.clamp(0, 1), x)
            best = torch.minimum(best, (candidate - wish).square().flatten(1).sum(1))
        assert ((projected - wish).square().flatten(1).sum(1) - best).abs().max() < 1e-12
        assert L0(k).distance(x, projected).tolist() == [k] * 6


def test_tiny_and_huge_numbers():
    for kind in (L2, L1):
        x = torch.full((2, 3), 0.5, dtype=torch.float64)
        for wish in (x + 1e-200, x + 1e200, -x * 1e308, x * torch.inf):
            for eps in (0.0, 1e-311, 1e-300, 1e-200, 1e-12, 0.5):
                threat, stream = kind(eps), Stream(0, torch.arange(2))
                for made in (threat.project(wish, x), threat.random_start(x, stream), threat.boundary(x, stream)):
                    threat.validate(x, made)


def onto_l1(x, wish, eps):
    """The projection onto the L1 ball by sorting: Duchi et al. 2008, "Efficient projections onto the l1-ball"."""
    change = (wish - x).flatten(1).numpy()
    for row in change:
        if np.abs(row).sum() > eps:
            u = np.sort(np.abs(row))[::-1]
            excess = (np.cumsum(u) - eps) / np.arange(1, len(u) + 1)
            row[:] = np.sign(row) * np.maximum(np.abs(row) - excess[u > excess][-1], 0)
    return x + torch.from_numpy(change).view(x.shape)


def test_what_differs_from_x_as_the_end_of_the_box_does_is_still_outside():
    """Far from x the float64 difference cannot tell the end of the box from the number above it."""
    x = torch.full((1, 2), -100.0, dtype=torch.float64)
    beyond = torch.nextafter(torch.full_like(x, 0.3), torch.full_like(x, 1.0))
    for kind in (L2, L1, L0):
        threat = kind(0, (-100.0, 0.3))
        whole = threat.at(threat.largest(x))
        whole.validate(x, whole.project(beyond, x))
