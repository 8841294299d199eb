import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.attacks import Linf
from snnrobust.draws import Stream

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
EPS = st.sampled_from([0, 1e-9, "8/255", 2 / 255, 0.1, "1/3", 0.5, 1]) | st.floats(0, 1)
BOUNDS = st.sampled_from([(0.0, 1.0), (-0.7, 0.9), (0.1, 0.3), (-1.0, 1.0)])
UNIT = st.sampled_from([0.0, 1.0, 0.5, 1e-9, 1 - 2**-24]) | st.floats(0, 1)


def legal(v, x, threat):
    """The contract, in float64."""
    v, x = v.double(), x.double()
    return ((v - x).abs() <= threat.eps) & (v >= threat.bounds[0]) & (v <= threat.bounds[1])


def exactly_legal(v, x, threat):
    low, high = threat.bounds
    return abs(Fraction(v) - Fraction(x)) <= Fraction(threat.eps) and low <= v <= high


@st.composite
def cases(draw):
    """A threat, inputs of its box with the edges among them, and wishes anywhere."""
    low, high = draw(BOUNDS)
    dtype = draw(st.sampled_from(DTYPES))
    eps = draw(EPS)
    threat = Linf(eps if isinstance(eps, str) and high - low >= 1 else min(Linf(eps).eps, high - low), (low, high))
    x = torch.tensor([low, high, *draw(st.lists(UNIT, min_size=1, max_size=8))], dtype=torch.float64)
    x[2:] = low + (high - low) * x[2:]
    x = x.to(dtype)
    x = x[legal(x, x, threat)]  # an end of the box may have no representation inside it
    wish = draw(st.lists(st.floats(-3, 3), min_size=len(x), max_size=len(x)))
    return threat, x[None], torch.tensor([wish], dtype=dtype)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_projection_is_the_nearest_legal_input(case):
    threat, x, wish = case
    projected = threat.project(wish, x)
    assert projected.dtype == x.dtype
    assert legal(projected, x, threat).all()
    assert torch.equal(threat.project(projected, x), projected)
    inside = legal(wish, x, threat)
    moved = projected != wish
    if x.dtype == torch.float64:  # one rounding of the sum: legal wishes at the very edge may move by it
        assert (projected - wish)[inside].abs().le(2**-52).all()
        exact = wish.clamp(*threat.bounds).clamp(x - threat.eps, x + threat.eps)
        assert (projected - exact).abs().le(2**-52).all()
    else:  # the next value towards the wish is illegal
        further = torch.nextafter(projected, wish)
        for v in (wish, further):
            pairs = zip(v[moved].tolist(), x[moved].tolist(), strict=True)
            assert not any(exactly_legal(value, at, threat) for value, at in pairs)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 2**62))
def test_starts_and_corners_are_legal_and_corners_reach_the_edge(case, key):
    threat, x, _ = case
    stream = Stream(key, torch.zeros(1, dtype=torch.int64))
    for draw in (threat.random_start, threat.boundary):
        threat.validate(x, draw(x, stream))
    low, high = threat.box(x)
    corner = threat.boundary(x, stream)
    ulp = torch.finfo(x.dtype).eps
    assert (torch.minimum(corner - low, high - corner) <= ulp).all()


def test_random_starts_fill_the_ball_and_signs_are_fair():
    stream = Stream(3, torch.arange(100))
    x = torch.full((100, 1000), 0.5, dtype=torch.float64)
    shift = (Linf(0.1).random_start(x, stream) - x) / 0.1
    assert abs(shift.mean()) < 4 / math.sqrt(3e5)  # 4 standard deviations of the mean of U(-1, 1)
    assert shift.abs().max() > 0.999
    assert abs(shift.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / 1e5)
    signs = (Linf(0.1).boundary(x, stream) - x).sign()
    assert signs.abs().min() == 1
    assert abs(signs.mean()) < 4 / math.sqrt(1e5)


@pytest.mark.parametrize(
    ("eps", "value"), [("8/255", 8 / 255), (" 1 / 3 ", 1 / 3), ("0.25", 0.25), ("1e-3", 1e-3), (0, 0.0), (1, 1.0)]
)
def test_eps_may_be_a_number_or_a_fraction(eps, value):
    assert Linf(eps).eps == value
    assert Linf(0.5).at(eps) == Linf(value)


@pytest.mark.parametrize("eps", [-1e-9, "-1/255", 1.0001, 8, "300/255", math.nan, math.inf, "nan", "inf"])
def test_an_impossible_eps_is_named(eps):
    with pytest.raises(ValueError, match=r"^eps must be"):
        Linf(eps)


@pytest.mark.parametrize("eps", ["", "8/", "eight", "8/0", "8//255", "1e400", "0x1"])
def test_a_garbled_eps_is_named(eps):
    with pytest.raises(ValueError, match=r"^eps must be a number or a fraction"):
        Linf(eps)


@pytest.mark.parametrize("eps", [None, True, [0.1], torch.tensor(0.1)])
def test_an_eps_of_another_type_is_named(eps):
    with pytest.raises(TypeError, match=r"^eps must be"):
        Linf(eps)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0)])
def test_impossible_bounds_are_named(bounds):
    with pytest.raises(ValueError, match=r"^bounds must be"):
        Linf(0.1, bounds)


def test_validate_and_distance():
    threat = Linf(0.1)
    x = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    good = torch.tensor([[0.5, 0.5625], [0.0625, 1.0]])
    threat.validate(x, good)
    assert threat.distance(x, good).tolist() == [0.0625, 0.0625]
    too_far = torch.nextafter(x + 0.1, torch.ones(()))
    for bad, words in [
        (torch.where(x == 0.5, too_far, x), "within eps"),
        (x - 0.05, "must lie in"),
        (x * torch.nan, "NaN"),
        (good.double(), "torch.float32"),
        (good[:1], "shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            threat.validate(x, bad)
