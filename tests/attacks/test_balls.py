"""What holds for the balls of every norm: budget and box to the bit, the nearest point, starts, noise, budgets per sample."""

import math
from itertools import combinations

import eagerpy
import foolbox
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from snnrobust.attacks import FGSM, L0, L1, L2, PGD, THREATS, Linf, RandomNoise, RandomSign
from snnrobust.attacks.attack import Attack
from snnrobust.draws import Stream

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(1,), (7,), (2, 3), (1, 3, 4), (3, 2, 2), (2, 3, 2, 2)]
BOUNDS = [(0.0, 1.0), (-0.7, 0.9), (0.1, 0.3), (-100.0, 0.3)]


def stream(n, key=3):
    return Stream(key, torch.arange(n))


def numpy_distance(kind, x, x_adv, unit="pixel"):
    """Written out once more."""
    a, b = x.double().numpy(), x_adv.double().numpy()
    change = np.abs(b - a)
    if kind is L0 and unit == "pixel" and a.ndim >= 4:
        return (change > 0).any(-3).reshape(len(a), -1).sum(1)
    change = change.reshape(len(a), -1)
    return {Linf: change.max(1), L2: np.sqrt((change**2).sum(1)), L1: change.sum(1), L0: (change > 0).sum(1)}[kind]


@st.composite
def cases(draw):
    """A threat with one budget or one a sample, inputs of its box with the edges among them, and wishes anywhere."""
    kind, dtype = draw(st.sampled_from([L2, L1, L0, Linf])), draw(st.sampled_from(DTYPES))
    shape, (low, high) = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(BOUNDS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = 3
    x = low + (high - low) * torch.rand(n, *shape, generator=g, dtype=torch.float64)
    edge = torch.rand(x.shape, generator=g)
    x = torch.where(edge < 0.15, low, torch.where(edge > 0.85, high, x)).to(dtype)
    x = torch.where(x.double() < low, torch.nextafter(x, torch.full_like(x, torch.inf)), x)
    x = torch.where(x.double() > high, torch.nextafter(x, torch.full_like(x, -torch.inf)), x)
    scale = draw(st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0]))
    wish = (x.double() + scale * (high - low) * torch.randn(x.shape, generator=g, dtype=torch.float64)).to(dtype)
    unit = {"unit": draw(st.sampled_from(["pixel", "element"]))} if kind is L0 else {}
    most = kind(0, (low, high), **unit).largest(x)
    share = st.sampled_from([0.0, 1e-9, 0.01, 0.1, 0.5, 1.0]) | st.floats(0, 1)
    eps = [draw(share) * most for _ in range(n if draw(st.booleans()) else 1)]
    eps = [float(int(e)) for e in eps] if kind is L0 else eps
    budget = eps[0] if len(eps) == 1 else torch.tensor(eps, dtype=torch.float64)
    return kind(budget, (low, high), **unit), x, wish, np.array(eps)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_projections_are_legal_to_the_bit_and_stay(case):
    threat, x, wish, eps = case
    projected = threat.project(wish, x)
    assert (projected.dtype, projected.shape) == (x.dtype, x.shape)
    threat.validate(x, projected)
    unit = {"unit": threat.unit} if isinstance(threat, L0) else {}
    assert (numpy_distance(type(threat), x, projected, **unit) <= eps).all()
    assert ((projected.double() >= threat.bounds[0]) & (projected.double() <= threat.bounds[1])).all()
    assert torch.equal(threat.project(projected, x), projected)
    assert torch.equal(threat.project(x, x), x)
    half = threat.project(torch.where(projected == x, x, (x + projected) / 2), x)  # well inside: nothing to do
    if isinstance(threat, L2 | L1):
        wanted = torch.where(projected == x, x, (x + projected) / 2)
        inside = torch.from_numpy(numpy_distance(type(threat), x, wanted) <= eps * (1 - 1e-9)) & (
            (wanted >= threat.bounds[0]) & (wanted <= threat.bounds[1])
        ).flatten(1).all(1)
        assert torch.equal(half[inside], wanted[inside])


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**62))
def test_starts_and_noise_are_legal(case, key):
    threat, x, _, _ = case
    near = 4 * torch.finfo(x.dtype).eps * max(map(abs, threat.bounds))
    for draw in (threat.random_start, threat.boundary):
        drawn = draw(x, stream(len(x), key))
        assert (drawn.dtype, drawn.shape) == (x.dtype, x.shape)
        threat.validate(x, drawn)
        assert torch.equal(draw(x, stream(len(x), key)), drawn)
        one = threat.select(torch.tensor([1]))
        alone = getattr(one, draw.__name__)(x[1:2], stream(3, key).select(torch.tensor([1])))
        assert (
            alone.double() - drawn[1:2].double()
        ).abs().max() <= near  # one rounding: logarithms of torch depend on the batch


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


def onto_l1(x, wish, eps):
    """The projection onto the L1 ball by sorting: Duchi et al. 2008, "Efficient projections onto the l1-ball"."""
    change = (wish - x).flatten(1).numpy()
    for row in change:
        if np.abs(row).sum() > eps:
            u = np.sort(np.abs(row))[::-1]
            excess = (np.cumsum(u) - eps) / np.arange(1, len(u) + 1)
            row[:] = np.sign(row) * np.maximum(np.abs(row) - excess[u > excess][-1], 0)
    return x + torch.from_numpy(change).view(x.shape)


def test_radii_and_directions_of_random_starts_are_those_of_uniform_draws():
    """In a ball of dimension d the radius is below r with probability (r / eps)^d."""
    n, d = 4000, 6
    x = torch.full((n, d), 0.5, dtype=torch.float64)
    for kind in (L2, L1):
        threat = kind(0.4)
        change = threat.random_start(x, stream(n)) - x
        level = ((threat.distance(x, x + change) / 0.4) ** d).sort().values
        assert (level - torch.linspace(0, 1, n)).abs().max() < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov at 1 %
        assert change.mean(0).abs().max() < 5 * change.std() / math.sqrt(n)
        moments = change.T @ change / n  # no direction is preferred
        assert (moments - torch.eye(d) * moments.diag().mean()).abs().max() < 0.1 * moments.diag().mean()
    level = (L1(0.4).random_start(x, stream(n)) - x)[:, 0].abs().div(0.4).sort().values
    assert ((1 - (1 - level) ** d) - torch.linspace(0, 1, n)).abs().max() < 1.63 / math.sqrt(
        n
    )  # an element of the L1 ball


def test_random_starts_in_l0_choose_pixels_evenly_and_colours_uniformly():
    x = torch.full((2000, 3, 2, 4), 0.5, dtype=torch.float64)
    start = L0(3).random_start(x, stream(2000))
    changed = (start != x).any(1)
    assert (changed.flatten(1).sum(1) == 3).all()
    assert (changed.double().mean(0) - 3 / 8).abs().max() < 5 * math.sqrt(15 / 64 / 2000)
    colours = start[(start != x)].sort().values
    assert (colours - torch.linspace(0, 1, len(colours))).abs().max() < 1.63 / math.sqrt(len(colours))


@pytest.mark.parametrize(("threat", "d"), [(L2(0.7), 49), (L1(2.5), 49), (L0(9), 49), (Linf(0.1), 49)])
def test_noise_spends_the_whole_budget(threat, d):
    g = torch.Generator().manual_seed(2)
    x = (1.4 * torch.rand(30, 1, 7, 7, generator=g, dtype=torch.float64) - 0.2).clamp(0, 1)  # a third at the edges
    x_adv = RandomNoise(threat)(torch.nn.Flatten(), x, torch.zeros(30, dtype=torch.int64), seed=0)
    assert (threat.distance(x, x_adv) - threat.eps).abs().max() < 1e-10 * threat.eps
    signs = (x_adv - x)[(x > 0.3) & (x < 0.7)].sign()
    if not isinstance(threat, L0):
        assert abs(signs.mean()) < 5 / math.sqrt(len(signs))
    assert (threat.at(threat.largest(x)).boundary(x, stream(30)) != x).flatten(1).any(1).all()


def test_noise_in_l0_is_salt_and_pepper():
    x = torch.rand(20, 2, 5, 5, generator=torch.Generator().manual_seed(0)).round(decimals=0)
    x[:, :, :2] = 0.5
    noise = L0(10).boundary(x, stream(20))
    changed = noise != x
    assert torch.equal(changed.any(1), changed.all(1))  # a pixel changes in all channels
    assert set(noise[changed].tolist()) == {0.0, 1.0}
    shares = (noise[:, :, :2][changed[:, :, :2]]).mean()
    assert 0.35 < shares < 0.65


def gradients(x, seed=5):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def test_steps_are_the_steepest_of_their_length():
    """<g, v> <= ||g||_dual ||v||, with equality for the step; nothing random does better."""
    x = torch.full((8, 2, 3, 3), 0.5, dtype=torch.float64)
    g = gradients(x)
    flat = g.flatten(1)
    for threat, p, dual in ((Linf(0.1), torch.inf, 1), (L2(1), 2, 2), (L1(1, density=0), 1, torch.inf)):
        v = (threat.step(x, g, 0.3) - x).flatten(1)
        assert (torch.linalg.vector_norm(v, p, dim=1) - 0.3).abs().max() < 1e-12
        assert ((flat * v).sum(1) - 0.3 * torch.linalg.vector_norm(flat, dual, dim=1)).abs().max() < 1e-12
    v = (L0(4).step(x, g, 0.3) - x).flatten(1)
    assert (v.abs().sum(1) - 0.3).abs().max() < 1e-12
    assert torch.allclose(v / v.norm(dim=1, keepdim=True), flat / flat.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_an_l1_step_shares_its_length_among_the_largest_gradients(density):
    x = torch.full((6, 40), 0.5, dtype=torch.float64)
    g = gradients(x)
    k = math.ceil(density * 40)
    v = L1(1, density=density).step(x, g, 0.3) - x
    assert ((v * g).sum(1) - 0.3 / k * g.abs().topk(k).values.sum(1)).abs().max() < 1e-12
    assert (v != 0).sum(1).tolist() == [k] * 6


@pytest.mark.parametrize(("dtype", "bounds"), [(torch.float64, (0.0, 1.0)), (torch.float32, (0.1, 0.3))])
def test_an_l1_step_passes_over_what_the_box_stops(dtype, bounds):
    x = torch.tensor([[bounds[1], bounds[0], 0.2, 0.25]], dtype=dtype)
    ends = [torch.tensor(b, dtype=dtype) for b in bounds]
    top = ends[1] if float(ends[1]) <= bounds[1] else torch.nextafter(ends[1], torch.tensor(0.0, dtype=dtype))
    bottom = ends[0] if float(ends[0]) >= bounds[0] else torch.nextafter(ends[0], torch.tensor(1.0, dtype=dtype))
    x[0, 0], x[0, 1] = top, bottom
    for g, moved in (
        ([9.0, -8.0, 0.5, -1.0], 3),
        ([-9.0, -8.0, 0.5, -1.0], 0),
        ([9.0, 8.0, 0.5, -1.0], 1),
    ):
        v = L1(0.1, bounds, density=0).step(x, torch.tensor([g], dtype=dtype), 0.01) - x
        assert v[0].nonzero()[:, 0].tolist() == [moved]
    threat = L1(0.1, bounds)
    assert torch.equal(threat.project(threat.step(x, torch.tensor([[9.0, -8.0, 0.0, 0.0]], dtype=dtype), 0.01), x), x)


@pytest.mark.parametrize("kind", [L2, L1, L0, Linf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_along_odd_gradients(kind, dtype):
    x = torch.full((4, 6), 0.5, dtype=dtype)
    g = torch.zeros_like(x)
    g[1, 2], g[2, :3], g[3] = 1e-30, torch.inf, torch.tensor([1e-30, 0, 0, 0, 0, -1e-30])
    moved = kind(1).step(x, g, 0.25)
    assert torch.equal(moved[0], x[0])
    assert moved.isfinite().all()
    assert (moved[1:] != x[1:]).any(1).all()


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


def test_what_l0_counts():
    x = torch.zeros(1, 2, 3, 2, 2)  # [B, T, C, H, W]
    x_adv = x.clone()
    x_adv[0, 0, :, 0, 0] = 1
    x_adv[0, 1, 0, 0, 0] = 1
    assert L0(2).distance(x, x_adv).tolist() == [2]
    assert L0(4, unit="element").distance(x, x_adv).tolist() == [4]
    assert L0(0).largest(x) == 8
    assert L0(0, unit="element").largest(x) == 24
    assert L0(0).distance(x[:, 0, 0], x_adv[:, 0, 0]).tolist() == [1]  # [B, T, F]: no channels
    for unit, name in (("pixel", "L0 (pixels)"), ("element", "L0 (elements)")):
        assert L0(1, unit=unit).name == name
    with pytest.raises(ValueError, match=r"within eps=1 of x in L0 \(pixels\), but it reaches 2"):
        L0(1).validate(x, x_adv)


def linear_model(seed=0, d=20):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(d, 2).double()
    model.weight.data = torch.randn(2, d, generator=generator, dtype=torch.float64)
    x = torch.rand(50, d, generator=generator, dtype=torch.float64)
    return model, x, torch.arange(50) % 2


def test_attacks_reach_the_optimum_of_a_linear_model():
    """Two classes: the margin is w.x with w = w_other - w_true, so the worst case has a closed form in every norm."""
    model, x, y = linear_model()
    w = (model.weight[1 - y] - model.weight[y]).detach()
    room = torch.where(w > 0, 1 - x, x)
    gain = (w.abs() * room).sort(1, descending=True).values
    order = w.abs().argsort(1, descending=True)  # L1: fill up the elements of largest weight first
    r, v = room.gather(1, order), w.abs().gather(1, order)
    before = r.cumsum(1) - r
    best = {L0(3): gain[:, :3].sum(1), L1(1.3): (v * torch.minimum(r, (1.3 - before).clamp(min=0))).sum(1)}
    s = torch.zeros(50, 1, dtype=torch.float64)
    low, high = s, s + 100
    for _ in range(200):  # L2: x + clip(s w), by bisection on the length
        s = (low + high) / 2
        over = torch.minimum(s * w.abs(), room).square().sum(1, keepdim=True) > 0.8**2
        low, high = torch.where(over, low, s), torch.where(over, s, high)
    best[L2(0.8)] = (w.abs() * torch.minimum(s * w.abs(), room)).sum(1)
    for threat, optimum in best.items():
        size = {"step_size": 0.2} if isinstance(threat, L2) else {}
        for attack in (PGD(threat, steps=100, **size), PGD(threat, steps=100, random_start=False, **size)):
            x_adv = attack(model, x, y, seed=0)
            found = (w * (x_adv - x)).sum(1)
            assert (found <= optimum + 1e-9).all()
            share = found / optimum
            if isinstance(threat, L0):  # which pixels move is decided greedily
                assert share.mean() > 0.9
                continue
            assert (share > (0.98 if isinstance(threat, L1) else 0.999)).all(), threat
    fgsm = (w * (FGSM(L0(3))(model, x, y) - x)).sum(1)
    assert (fgsm - best[L0(3)]).abs().max() < 1e-9  # one step of L0 is exact here


@pytest.mark.parametrize(("eps", "steps", "share"), [(0.5, 10, 0.25), (1.0, 20, 0.1)])
def test_pgd_equals_foolbox_where_the_box_is_far(eps, steps, share, digits_ann):
    model, x, y = digits_ann
    wide = (-20.0, 20.0)
    victim = foolbox.PyTorchModel(model, bounds=wide)
    reference = foolbox.attacks.L2PGD(rel_stepsize=share, steps=steps, random_start=False).run(
        victim, x, y, epsilon=eps
    )
    ours = PGD(L2(eps, wide), steps=steps, step_size=share * eps, random_start=False)(model, x, y)
    assert (ours - reference).abs().max() < 1e-6

    class Sparse(foolbox.attacks.SparseL1DescentAttack):  # its steps, and a projection that keeps to the ball
        def project(self, x, x0, epsilon):
            return eagerpy.astensor(onto_l1(x0.raw, x.raw, epsilon))

    reference = Sparse(rel_stepsize=share, steps=steps).run(victim, x, y, epsilon=3 * eps)
    ours = PGD(L1(3 * eps, wide), steps=steps, step_size=share * 3 * eps, random_start=False)(model, x, y)
    assert (ours - reference).abs().max() < 1e-6


@pytest.mark.parametrize("eps", [0.5, 1.0])
def test_fgm_equals_foolbox_where_the_box_is_far(eps, digits_ann):
    model, x, y = digits_ann
    wide = (-20.0, 20.0)
    reference = foolbox.attacks.L2FastGradientAttack().run(foolbox.PyTorchModel(model, bounds=wide), x, y, epsilon=eps)
    assert (FGSM(L2(eps, wide))(model, x, y) - reference).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("threat", "rival"),
    [
        (L2(0.5), foolbox.attacks.L2PGD),
        (L2(1.0), foolbox.attacks.L2PGD),
        (L1(2.0), foolbox.attacks.L1PGD),
        (L1(4.0), foolbox.attacks.L1PGD),
        (L1(4.0), foolbox.attacks.SparseL1DescentAttack),
    ],
)
def test_pgd_is_not_weaker_than_foolboxs(threat, rival, digits_ann, record_property):
    model, x, y = digits_ann
    reference = rival(rel_stepsize=2.5 / 40, steps=40, random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=threat.eps
    )
    with torch.no_grad():
        theirs = (model(reference).argmax(1) == y).double().mean()
        ours = (model(PGD(threat, steps=40, random_start=False)(model, x, y)).argmax(1) == y).double().mean()
        noise = (model(RandomNoise(threat)(model, x, y, seed=0)).argmax(1) == y).double().mean()
    record_property("accuracies: ours, foolbox, noise", [float(v) for v in (ours, theirs, noise)])
    assert ours <= theirs + 0.01
    assert ours < noise - 0.1


def test_pgd_in_l0_is_stronger_than_its_first_step_and_than_noise(digits_ann):
    model, x, y = digits_ann
    threat = L0(4)
    with torch.no_grad():
        noise, fgsm, pgd = (
            (model(attack(model, x, y, seed=0)).argmax(1) == y).double().mean()
            for attack in (RandomNoise(threat), FGSM(threat), PGD(threat, steps=20, restarts=2))
        )
    assert pgd < fgsm - 0.02
    assert fgsm < noise - 0.2


# --- budgets per sample -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(THREATS.values()), ids=list(THREATS))
@pytest.mark.parametrize("attack", [FGSM, lambda t: PGD(t, steps=5, early_stop=True), RandomNoise])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_budget_for_each_sample_is_that_budget_for_each_sample(kind, attack, dtype, victims):
    model, x, y = victims("ann")
    model, x = model.to(dtype), x.to(dtype)
    eps = [0.0, 1.0, 3.0, 2.0, 0.0, 5.0] if kind is L0 else [0.0, 0.01, 0.3, 0.1, 1e-6, 0.5]
    together = attack(kind(torch.tensor(eps, dtype=torch.float64)))(model, x, y, seed=1)
    assert together.dtype == dtype
    assert torch.equal(together[0], x[0])
    ids = torch.arange(6)
    for i, e in enumerate(eps):
        alone = attack(kind(e))(model, x[i : i + 1], y[i : i + 1], seed=1, sample_ids=ids[i : i + 1])
        if dtype == torch.float64:
            assert (together[i] - alone[0]).abs().max() < 1e-9
        assert kind(e).distance(x[i : i + 1], together[i : i + 1]) <= e


@pytest.mark.parametrize("kind", list(THREATS.values()), ids=list(THREATS))
def test_budgets_are_selected_with_their_samples(kind):
    threat = kind(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert threat.select(torch.tensor([3, 0])) == kind((1.0, 0.0))
    assert threat.at(1) == kind(1)
    assert kind(1).select(torch.tensor([3, 0])) == kind(1)
    assert kind(1).at(torch.tensor([0, 1])) == kind((0.0, 1.0))
    assert len({threat, kind((0.0, 1.0, 0.0, 1.0)), kind(1)}) == 2  # they can be keys
    attack = PGD(threat, steps=1)
    assert attack.at(torch.tensor([1.0, 0.0])).threat == kind((1.0, 0.0))
    x = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"within eps=0 of x in .*, but it reaches"):
        threat.validate(x, torch.cat([x[:2], 1 - x[2:]]))


@pytest.mark.parametrize("call", [lambda t, x: t.project(x, x), lambda t, x: t.boundary(x, stream(3))])
@pytest.mark.parametrize("kind", list(THREATS.values()), ids=list(THREATS))
def test_budgets_for_another_number_of_samples_are_named(kind, call, victims):
    threat = kind(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="eps must be one number, or one for each of 3 samples, got 2"):
        call(threat, torch.rand(3, 4))
    with pytest.raises(ValueError, match="one for each of 6 samples, got 2"):
        PGD(threat)(*victims("ann"))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threat", "most"),
    [(L2(4.01), "4, the largest L2 "), (L1(17), "16, the largest L1 "), (L0(17), r"16, the largest L0 \(pixels\) ")],
)
def test_a_budget_above_the_box_is_named(threat, most, victims):
    model, x, y = victims("ann")
    with pytest.raises(ValueError, match=rf"eps must be at most {most}distance of two inputs of shape \[1, 4, 4\]"):
        PGD(threat)(model, x, y)
    whole = threat.at(threat.largest(x))
    whole.validate(x, whole.project((x < 0.5).double(), x))
    whole.validate(x.round() * 0, x.round() * 0 + (0 if isinstance(threat, L0) else 1))
    mixed = threat.at((1.0,) * 5 + (threat.eps,))
    with pytest.raises(ValueError, match=f"at most {most}"):
        FGSM(mixed)(model, x, y)


@pytest.mark.parametrize("kind", [L2, L1, L0])
@pytest.mark.parametrize("eps", [-1, "-1/255", math.nan, math.inf, "nan", "1/0", "many", (1.0, -1.0), ()])
def test_an_impossible_eps_is_named(kind, eps):
    with pytest.raises(ValueError, match=r"^eps must "):
        kind(eps)


@pytest.mark.parametrize("kind", [L2, L1, L0, Linf])
@pytest.mark.parametrize("eps", [None, True, [1.0], torch.tensor(1.0), torch.ones(2, 1), torch.tensor([True]), (None,)])
def test_an_eps_of_another_type_is_named(kind, eps):
    with pytest.raises(TypeError, match=r"^eps must be"):
        kind(eps)


@pytest.mark.parametrize("eps", ["8/255", 0.5, torch.tensor([1.0, 1.5])])
def test_l0_counts_whole_pixels(eps):
    with pytest.raises(ValueError, match="eps must be a whole number, of pixels"):
        L0(eps)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: L2(1, (1.0, 0.0)), ValueError, "bounds must be"),
        (lambda: L1(1, density=1.5), ValueError, "density must be in"),
        (lambda: L1(1, density=None), TypeError, "density must be a number"),
        (lambda: L0(1, unit="pixels"), ValueError, "unit must be one of pixel, element.*did you mean 'pixel'"),
        (lambda: RandomSign(L2(1)), ValueError, "RandomSign is noise for Linf, got a threat in L2: use RandomNoise"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_an_attack_made_is_validated(victims):
    class TooFar(Attack):
        threat = L2(0.1)

        def perturb(self, model, x, y, stream):
            return (x + 0.1).clamp(0, 1)

    with pytest.raises(ValueError, match=r"x_adv must stay within eps=0.1.* of x in L2"):
        TooFar()(*victims("ann"))
    from snnrobust.attacks import ATTACKS

    del ATTACKS["TooFar"]


def test_tiny_and_huge_numbers():
    for kind in (L2, L1):
        x = torch.full((2, 3), 0.5, dtype=torch.float64)
        for wish in (x + 1e-200, x + 1e200, -x * 1e308, x * torch.inf):
            for eps in (0.0, 1e-300, 1e-12, 0.5):
                projected = kind(eps).project(wish, x)
                kind(eps).validate(x, projected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(THREATS))
@pytest.mark.parametrize("kind", ["ann", "events"])
def test_attacks_of_every_norm_on_every_rank_and_precision(name, dtype, kind, victims):
    if (kind, dtype) == ("events", torch.bfloat16):
        pytest.skip("the spiking layers keep potentials of 32 bits")
    model, x, y = victims(kind)
    model, x = model.to(dtype), x.to(dtype)
    threat = THREATS[name](3 if name == "L0" else 0.5)
    for attack in (FGSM(threat), PGD(threat, steps=2), PGD(threat, steps=2, restarts=2), RandomNoise(threat)):
        x_adv = attack(model, x, y, seed=0)
        assert (numpy_distance(type(threat), x, x_adv) <= threat.eps).all()
        assert (x_adv != x).any()
        assert torch.equal(attack.at(0)(model, x, y, seed=0), x)
        if dtype == torch.float64:  # a sample does not depend on its batch
            parts = [
                attack(model, x[i : i + 1], y[i : i + 1], seed=0, sample_ids=torch.tensor([i])) for i in range(len(x))
            ]
            assert (torch.cat(parts) - x_adv).abs().max() < 1e-9


def test_an_l1_step_prefers_elements_with_room():
    """What is gained is the gradient times the way that the box leaves free."""
    x = torch.tensor([[0.95, 0.5, 0.5]], dtype=torch.float64)
    g = torch.tensor([[3.0, 1.0, 0.5]], dtype=torch.float64)
    for size, moved in ((0.1, 0), (0.3, 1)):
        v = L1(1, density=0).step(x, g, size) - x
        assert v[0].nonzero()[:, 0].tolist() == [moved]


def test_an_l1_step_does_not_depend_on_roundings_of_equal_gradients():
    x = torch.full((1, 50), 0.5, dtype=torch.float64)
    g = torch.ones_like(x)
    other = g * (1 + 1e-15 * gradients(x))
    assert torch.equal(L1(1, density=0.1).step(x, g, 0.3), L1(1, density=0.1).step(x, other, 0.3))
