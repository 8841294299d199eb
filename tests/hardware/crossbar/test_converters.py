import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnrobust.hardware.crossbar.converters import convert

ONE = torch.tensor(1.0)


def test_the_levels_of_three_bits():
    x = torch.linspace(-2, 2, 4001)
    y = convert(x, 3, torch.tensor(1.5))
    assert y.unique().tolist() == pytest.approx([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], abs=0)
    assert (y.diff() >= 0).all()


@given(st.integers(2, 16), st.floats(1e-3, 1e3), st.lists(st.floats(-3e3, 3e3), min_size=2, max_size=8))
def test_against_a_loop_over_the_levels(bits, largest, values):
    x = torch.tensor(sorted(values), dtype=torch.float64)
    y = convert(x, bits, torch.tensor(largest, dtype=torch.float64))
    top = 2 ** (bits - 1) - 1
    levels = [largest * k / top for k in range(-top, top + 1)]
    for given_, got in zip(x.tolist(), y.tolist(), strict=True):
        nearest = min(abs(given_ - level) for level in levels)
        assert abs(got - given_) <= nearest + 1e-12 * largest
        assert min(abs(got - level) for level in levels) <= 1e-12 * largest
    assert (y.diff() >= 0).all()
    assert torch.equal(convert(-x, bits, torch.tensor(largest, dtype=torch.float64)), -y)


def test_the_end_of_the_range_is_a_level_to_the_bit():
    for largest in (0.1, 0.3, 1 / 3, 7.7e-5):
        t = torch.tensor([largest])
        assert torch.equal(convert(t, 5, t), t)
        assert torch.equal(convert(2 * t, 5, t), t)


def test_a_range_of_zero_and_one_for_each_sample():
    x = torch.tensor([[0.3, -0.6], [0.0, 0.0], [5.0, 1.0]])
    y = convert(x, 2, x.abs().amax(1, keepdim=True))
    assert torch.equal(y, torch.tensor([[0.0, -0.6], [0.0, 0.0], [5.0, 0.0]]))


def test_the_gradient_is_that_of_the_clip():
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 0.7, 1.0, 1.01], requires_grad=True)
    (gradient,) = torch.autograd.grad(convert(x, 4, ONE).sum(), x)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_nan_stays():
    assert convert(torch.tensor([float("nan")]), 4, ONE).isnan().all()
