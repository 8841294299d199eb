"""Allocations against values by hand and the properties that any such rule must have."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnrobust.codesign import density_bits, sensitivity_bits

SENSITIVITIES = st.dictionaries(st.text(max_size=3), st.floats(1e-6, 1e6), min_size=1, max_size=6)
RULES = {
    "direction": st.sampled_from(["more", "fewer"]),
    "shape": st.sampled_from(["linear", "sqrt", "log"]),
    "reference": st.sampled_from(["extreme", "mean"]),
}
ANS = {"a": 0.1, "b": 0.2, "c": 0.4}


@pytest.mark.parametrize(
    ("arguments", "bits"),
    [
        ({}, (4, 8, 16)),
        ({"direction": "fewer"}, (16, 8, 4)),
        ({"shape": "sqrt"}, (8, 11, 16)),
        ({"shape": "log"}, (5, 9, 16)),  # 16 log2(1.25) = 5.15, 16 log2(1.5) = 9.36
        ({"reference": "mean"}, (7, 14, 16)),  # the mean is 0.2333: 6.86, 13.7
        ({"reference": "mean", "direction": "fewer"}, (16, 16, 9)),  # 9.33
        ({"start": 8}, (2, 4, 8)),
        ({"start": 8, "least": 3}, (3, 4, 8)),
        ({"shape": lambda r: r * r}, (2, 4, 16)),
        ({"shape": lambda r: 0.0}, (2, 2, 2)),
        ({"shape": lambda r: math.inf}, (16, 16, 16)),
    ],
)
def test_by_hand(arguments, bits):
    assert tuple(sensitivity_bits(ANS, **arguments).values()) == bits


@given(SENSITIVITIES, st.integers(2, 16), st.integers(1, 2), st.fixed_dictionaries(RULES))
def test_within_bounds_and_monotone(ans, start, least, rule):
    bits = sensitivity_bits(ans, start=start, least=least, **rule)
    assert bits.keys() == ans.keys()
    assert all(isinstance(k, int) and least <= k <= start for k in bits.values())
    for one in ans:
        for other in ans:
            if ans[one] < ans[other]:
                less, more = (one, other) if rule["direction"] == "more" else (other, one)
                assert bits[less] <= bits[more]
    assert rule["reference"] == "mean" or max(bits.values()) == start


@given(SENSITIVITIES, st.sampled_from([0.25, 2.0, 1024.0]), st.fixed_dictionaries(RULES))
def test_the_unit_does_not_count(ans, unit, rule):
    assert sensitivity_bits({n: unit * v for n, v in ans.items()}, **rule) == sensitivity_bits(ans, **rule)


def test_a_layer_that_does_not_change():
    assert sensitivity_bits({"a": 0.0, "b": 0.2}) == {"a": 2, "b": 16}
    assert sensitivity_bits({"a": 0.0, "b": 0.2}, direction="fewer") == {"a": 16, "b": 2}
    assert sensitivity_bits({"a": 0.0, "b": 0.2}, direction="fewer", reference="mean") == {"a": 16, "b": 8}


@pytest.mark.parametrize(
    ("ans", "arguments", "error"),
    [
        ({}, {}, "ans must map names of layers"),
        ([0.1], {}, "ans must map names of layers"),
        ({"a": 0.0}, {}, "the attack changed nothing"),
        ({"a": -0.1}, {}, r"ans\['a'\]"),
        ({"a": math.nan}, {}, r"ans\['a'\]"),
        (ANS, {"start": 17}, "start must be at most 16"),
        (ANS, {"start": 1}, "least must be at most start = 1, got 2"),
        (ANS, {"least": 0}, "least must be at least 1"),
        (ANS, {"direction": "most"}, "direction must be one of more, fewer"),
        (ANS, {"shape": "cube"}, "shape must be one of linear"),
        (ANS, {"reference": "max"}, "reference must be one of extreme, mean"),
        (ANS, {"shape": lambda r: math.nan}, "shape is not a number at 0.25"),
    ],
)
def test_bad_input(ans, arguments, error):
    with pytest.raises(ValueError, match=error):
        sensitivity_bits(ans, **arguments)


def test_density_by_hand():
    density = {"a": 0.5, "b": 0.03, "c": 1.0, "d": 0.28}
    once = density_bits(density)
    assert once == {"a": 8, "b": 2, "c": 16, "d": 4}  # 16 * 0.28 = 4.48
    assert density_bits(density, once) == {"a": 4, "b": 2, "c": 16, "d": 2}
    assert density_bits({"a": 0.5}, {"a": 3, "z": 9}) == {"a": 2}  # 1.5, to even
    assert density_bits({"a": 0.0}, 1) == {"a": 1}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1), st.integers(1, 16), st.integers(1, 16))
def test_density_never_adds_bits(density, bits, least):
    found = density_bits(density, bits, least=least)
    assert all(min(least, bits) <= k <= bits for k in found.values())
    ordered = sorted(density, key=density.__getitem__)
    assert [found[name] for name in ordered] == sorted(found.values())


@pytest.mark.parametrize(
    ("density", "bits", "error"),
    [
        ({}, 16, "density must map"),
        ({"a": 1.2}, 16, r"density\['a'\]"),
        ({"a": 0.2}, {"b": 4}, "bits has no 'a'"),
        ({"a": 0.2}, 17, "at most 16"),
        ({"a": 0.2}, 0, "at least 1"),
    ],
)
def test_density_bad_input(density, bits, error):
    with pytest.raises(ValueError, match=error):
        density_bits(density, bits)
