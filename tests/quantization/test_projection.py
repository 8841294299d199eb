"""Least-squares steps against enumeration of all codes, closed forms and stationarity."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.quantization.levels import LevelSet
from snnrobust.quantization.projection import least_squares_step, project

Set = LevelSet


BINARY, TERNARY = Set((-1.0, 1.0)), Set((-1.0, 0.0, 1.0))
THREE_BITS = Set(tuple(float(v) for v in range(-3, 4)))
UNSIGNED = Set((0.0, 1.0, 2.0, 3.0))
POWERS = Set((-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0))


def brute_force(w, levels):
    """Least error over all codes, each with its best step greater than zero."""
    best = float(w.square().sum())
    for codes in itertools.product(levels.levels, repeat=len(w)):
        q = torch.tensor(codes, dtype=w.dtype)
        if q.any() and float(w @ q) > 0:
            best = min(best, float((w - (w @ q) / (q @ q) * q).square().sum()))
    return best


def error(w, levels, axis=None):
    return float((w - project(w, levels, axis)[1]).square().sum())


numbers = st.floats(-4, 4, allow_subnormal=False)
small = st.lists(numbers, min_size=1, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


@pytest.mark.parametrize("levels", [BINARY, TERNARY])
@settings(deadline=None, max_examples=60)
@given(w=small)
def test_binary_and_ternary_are_the_minimum(levels, w):
    assert error(w, levels) == pytest.approx(brute_force(w, levels), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("levels", [THREE_BITS, UNSIGNED, POWERS])
@pytest.mark.parametrize("seed", range(4))
def test_alternating_is_near_the_minimum(levels, seed):
    w = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = brute_force(w, levels)
    assert best - 1e-12 <= error(w, levels) <= 1.1 * best + 0.01 * float(w.square().sum())


@pytest.mark.parametrize("levels", [BINARY, TERNARY, THREE_BITS, UNSIGNED, POWERS, Set((0.3, 1.0))])
@settings(deadline=None, max_examples=40)
@given(w=small)
def test_neither_equation_changes_what_is_found(levels, w):
    """The step is the best for its codes, and no step of a fine grid around it does better with those codes."""
    step, q = project(w, levels)
    codes = levels.nearest(w / step)
    assert float(step) > 0
    assert torch.allclose(q, step * codes)
    assert error(w, levels) <= float(w.square().sum()) + 1e-9  # not worse than zeros
    if float(w @ codes) > 1e-9:
        assert float(step) == pytest.approx(float((w @ codes) / (codes @ codes)), rel=1e-9)


def test_alternating_beats_the_largest_magnitude():
    w = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = w.abs().max() / 3
    assert error(w, THREE_BITS) < 0.5 * float((w - scale * THREE_BITS.nearest(w / scale)).square().sum())
    # the optimal step of 7 uniform levels for a normal density is about 0.651 (Max 1960, "Quantizing for minimum distortion")
    assert float(least_squares_step(w, THREE_BITS)) == pytest.approx(0.651, abs=0.05)


def test_ternary_by_hand():
    w = torch.tensor([4.0, -3.0, 0.5, 0.1])  # 16, 49 / 2 = 24.5, 7.5 ** 2 / 3 = 18.75, 7.6 ** 2 / 4
    step, q = project(w, TERNARY)
    assert float(step) == 3.5
    assert q.tolist() == [3.5, -3.5, 0.0, 0.0]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), axis=st.integers(-3, 2), power=st.integers(-6, 6))
def test_slices_scale_and_sign(seed, axis, power):
    w = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for levels in (BINARY, TERNARY, THREE_BITS, POWERS):
        step = least_squares_step(w, levels, axis)
        assert step.shape == tuple(n if i == axis % 3 else 1 for i, n in enumerate(w.shape))
        for i, part in enumerate(w.unbind(axis)):
            assert torch.allclose(step.flatten()[i], least_squares_step(part, levels))
        assert torch.allclose(least_squares_step(w * 2.0**power, levels, axis), step * 2.0**power)
        assert torch.allclose(least_squares_step(-w, levels, axis), step)


def test_projecting_twice_changes_nothing():
    w = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for levels in (BINARY, TERNARY, THREE_BITS, UNSIGNED, POWERS):
        q = project(w, levels)[1]
        assert torch.allclose(project(q, levels)[1], q)


def test_where_no_step_is_better_than_zeros():
    zeros = torch.zeros(2, 3)
    assert least_squares_step(zeros, TERNARY, 0).tolist() == [[1.0], [1.0]]
    assert not project(zeros, TERNARY)[1].any()
    tiny = torch.finfo(torch.float32).tiny
    assert float(least_squares_step(zeros, BINARY)) == pytest.approx(tiny, rel=1e-6)
    assert project(zeros, BINARY)[1].abs().max() <= tiny
    negative = torch.tensor([-1.0, -2.0])
    assert not project(negative, UNSIGNED)[1].any()
    assert project(negative, Set((1.0, 2.0)))[1].abs().max() <= 2 * tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_types_and_no_gradient(dtype):
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    for levels in (BINARY, TERNARY, THREE_BITS):
        step, q = project(w, levels, 0)
        assert step.dtype == q.dtype == dtype
        assert not step.requires_grad
        assert not q.requires_grad


@pytest.mark.parametrize(
    ("w", "axis", "message"),
    [
        ([1.0], None, "w must be a tensor, got list"),
        (torch.zeros(0), None, r"w must be a floating tensor that is not empty, got torch.float32 of shape \(0,\)"),
        (torch.ones(2, dtype=torch.int64), None, "w must be a floating tensor"),
        (torch.tensor([1.0, float("nan")]), None, "w contains NaN or infinity"),
        (torch.tensor([1.0, float("inf")]), 0, "w contains NaN or infinity"),
        (torch.ones(2, 2), 2, "axis must be one of the 2 of w, got 2: use None for one step"),
        (torch.ones(2, 2), 0.5, "axis must be an integer"),
    ],
)
def test_bad_input(w, axis, message):
    with pytest.raises((TypeError, ValueError), match=message):
        least_squares_step(w, TERNARY, axis)
