"""What holds for the balls of every norm: budget and box to the bit, the nearest point, starts, noise, budgets per sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    x = torch.full((4, 3), 0.45)
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

        def perturb(self, model, x, goal, stream):
            return (x + 0.1).clamp(0, 1)

    with pytest.raises(ValueError, match=r"x_adv must stay within eps=0.1.* of x in L2"):
        TooFar()(*victims("ann"))
    from snnrobust.attacks import ATTACKS

    del ATTACKS["TooFar"]


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
