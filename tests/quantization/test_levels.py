import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from snnrobust.quantization import LEVELS, Binary, Integer, LevelSet, PowerOfTwo, Ternary
from snnrobust.quantization.levels import with_bits

SETS = [
    Integer(2), Integer(4), Integer(8), Integer(1, signed=False), Integer(5, signed=False), Ternary(), Binary(), PowerOfTwo(2),
    PowerOfTwo(4), LevelSet([-1.0, -0.3, 0.0, 0.31, 2.0]), LevelSet((0.25, 1.0)),
]  # fmt: skip
EACH = pytest.mark.parametrize("levels", SETS, ids=repr)


def test_every_level_set_has_a_case():
    assert {type(s) for s in SETS} == set(LEVELS.values())


@EACH
def test_nearest_is_the_nearest_by_brute_force(levels):
    u = torch.linspace(-1.7, 1.7, 3001, dtype=torch.float64) * max(abs(levels.low), abs(levels.high))
    q, values = levels.nearest(u), levels.values()
    distances = (u[:, None] - values).abs()
    assert torch.equal((q[:, None] == values).sum(1), torch.ones(len(u), dtype=torch.int64))
    torch.testing.assert_close((u - q).abs(), distances.amin(1), rtol=0, atol=0)


@EACH
def test_values_are_ascending_and_their_own_nearest(levels):
    values = levels.values()
    assert values.dtype == torch.float64
    assert (values.diff() > 0).all()
    assert (values[0], values[-1]) == (levels.low, levels.high)
    assert torch.equal(levels.nearest(values), values)
    assert levels.bits == math.ceil(math.log2(len(values)))


@EACH
@given(u=arrays("float32", 20, elements=st.floats(-1e6, 1e6, width=32)))
def test_nearest_is_monotone_and_idempotent(levels, u):
    u = torch.from_numpy(u).sort().values
    q = levels.nearest(u)
    assert (q.diff() >= 0).all()
    assert torch.equal(levels.nearest(q), q)


@EACH
def test_nan_stays_and_infinity_saturates(levels):
    q = levels.nearest(torch.tensor([math.nan, math.inf, -math.inf]))
    assert q[0].isnan()
    assert q[1] == torch.tensor(levels.high)
    assert q[2] == torch.tensor(levels.low)


@EACH
def test_descriptions(levels):
    description = json.loads(json.dumps(levels.describe()))
    kind = LEVELS[description.pop("type")]
    assert kind(**description) == levels


def test_ties():
    assert Integer(4).nearest(torch.tensor([0.5, 1.5, -0.5, -1.5])).tolist() == [0, 2, 0, -2]
    assert Ternary().nearest(torch.tensor([0.5, -0.5])).tolist() == [0, 0]
    assert Binary().nearest(torch.tensor([0.0, -0.0])).tolist() == [1, 1]
    tied = LevelSet([-1.0, 0.0, 1.0, 2.0])
    assert tied.nearest(torch.tensor([-0.5, 0.5, 1.5])).tolist() == [0, 0, 1]


def test_powers_of_two():
    assert PowerOfTwo(3).values().tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Integer(0), ValueError, r"bits must be in 2\.\.16, got 0"),
        (lambda: Integer(1), ValueError, r"a sign and at least one more"),
        (lambda: Integer(0, signed=False), ValueError, r"bits must be in 1\.\.16, got 0"),
        (lambda: Integer(17), ValueError, r"bits must be in 2\.\.16, got 17"),
        (lambda: Integer(4.0), TypeError, "bits must be an integer"),
        (lambda: PowerOfTwo(9), ValueError, "2..8"),
        (lambda: LevelSet([1.0]), ValueError, "at least two"),
        (lambda: LevelSet([]), ValueError, "at least two"),
        (lambda: LevelSet([0.0, 1.0, 0.0]), ValueError, "0 is given twice: remove one"),
        (lambda: LevelSet([0.0, math.nan]), ValueError, r"levels\[1\]"),
        (lambda: LevelSet([-1.0, 0.0]), ValueError, "must hold one above 0, .* got -1 to 0: negate"),
        (lambda: LevelSet(3), TypeError, r"levels must be a list of numbers such as \[0, 0.5, 1\], got 3"),
        (lambda: LevelSet("12"), TypeError, "levels must be a list of numbers"),
        (lambda: LevelSet([0.0] * 2**17), ValueError, r"at most 2\^16, got 131072"),
        (lambda: PowerOfTwo(17), ValueError, r"2\.\.8 for powers of two, got 17"),
    ],
)  # fmt: skip
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_with_bits():
    assert with_bits(Integer(8), 3) == Integer(3)
    assert with_bits(Integer(8), 1) == Binary()
    assert with_bits(Integer(8, signed=False), 1) == Integer(1, signed=False)
    assert with_bits(Ternary(), 4) == Integer(4)
    assert with_bits(PowerOfTwo(4), 3) == PowerOfTwo(3)
    with pytest.raises(ValueError, match="quantizer of its own"):
        with_bits(LevelSet([0.0, 1.0]), 2)
