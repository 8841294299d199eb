"""The published numbers, and what holds of any number of bits."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnrobust.energy import CMOS45, PrecisionScalable

BITS = st.integers(1, 32)


def test_the_published_points():
    costs = CMOS45()
    assert costs.multiply(32, 32) + costs.add(32, 32) == pytest.approx(4.6)
    assert costs.add(32) == 0.9
    assert costs.add(8) == pytest.approx(0.1)
    assert costs.weight_access(32) == costs.value_access(32) == costs.membrane_access(32) == 5.0
    assert dataclasses.replace(costs, accumulator=8).add(8) == pytest.approx(0.03)
    assert costs.multiply(8, 8) == pytest.approx(0.2, rel=0.05)


def test_the_scalable_unit_by_hand():
    costs = PrecisionScalable()
    for k in (2, 8, 16, 32):
        assert costs.multiply(k, 1) + costs.add(k) == pytest.approx(3.1 * k / 32 + 0.1)
        assert costs.weight_access(k) == costs.value_access(k) == costs.membrane_access(k) == 2.5 * k


@given(BITS, BITS, st.sampled_from([CMOS45(), CMOS45(accumulator=4), PrecisionScalable()]))
def test_more_bits_never_cost_less(weight, value, costs):
    for w, v in ((weight + 1, value), (weight, value + 1)):
        if max(w, v) <= 32:
            assert costs.multiply(weight, value) <= costs.multiply(w, v)
            assert costs.add(weight, value) <= costs.add(w, v)
    for access in (costs.weight_access, costs.value_access, costs.membrane_access):
        assert weight == 32 or access(weight) < access(weight + 1)


@pytest.mark.parametrize("costs", [CMOS45, PrecisionScalable])
def test_bad_costs(costs):
    for field in dataclasses.fields(costs):
        with pytest.raises((ValueError, TypeError), match=field.name):
            costs(**{field.name: -1})
        with pytest.raises(TypeError, match=field.name):
            costs(**{field.name: "much"})


def test_bad_integers():
    with pytest.raises(ValueError, match="accumulator must be a number of bits from 1 to 32, got 33"):
        CMOS45(accumulator=33)
    with pytest.raises(ValueError, match=r"int8_add must be at most int_add, got 0\.2 and 0\.1"):
        CMOS45(int8_add=0.2)
