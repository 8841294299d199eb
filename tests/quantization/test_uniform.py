import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.quantization import Uniform, uniform

WEIGHTS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(2, 8), DTYPES)
def test_is_the_nearest_level(values, bits, dtype):
    w = torch.tensor(values, dtype=dtype)
    q = uniform(w, bits)
    assert q.dtype == dtype
    levels = 2 ** (bits - 1) - 1
    exact = w.double()
    grid = torch.arange(-levels, levels + 1, dtype=torch.float64) * (exact.abs().max() / levels)
    distance = (exact[:, None] - grid).abs().amin(1)  # brute force
    one = 2 * torch.finfo(dtype).eps * exact.abs().max() + torch.finfo(dtype).tiny  # both grids are rounded
    assert ((q.double() - exact).abs() <= distance + one).all()
    assert ((q.double()[:, None] - grid).abs().amin(1) <= one).all()
    step = exact.abs().max() / levels
    assert ((q.double() - exact).abs() <= step / 2 + one).all()
    assert (q[w == 0] == 0).all()
    assert torch.equal(q == 0, exact.abs() <= step / 2) or (exact.abs() - step / 2).abs().min() <= one  # but for ties
    assert q.abs().max() == w.abs().max()
    assert torch.equal(uniform(-w, bits), -q)  # symmetric


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(2, 16), DTYPES)
def test_is_idempotent_to_the_bit(values, bits, dtype):
    q = uniform(torch.tensor(values, dtype=dtype), bits)
    assert torch.equal(uniform(q, bits), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_precision_of_the_weights_blurs_no_level(bits, dtype):
    w = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(uniform(w, bits), uniform(w.double(), bits).to(dtype))


@pytest.mark.parametrize("bits", range(2, 17))
def test_there_are_two_to_the_bits_minus_one_levels_and_zero_is_one(bits):
    q = uniform(torch.linspace(-1, 1, 200_001, dtype=torch.float64), bits)
    levels = q.unique()
    assert len(levels) == 2**bits - 1
    assert (levels == 0).sum() == 1
    assert (levels[1:] - levels[:-1]).std() < 1e-15


def test_ties_round_to_even():
    w = torch.tensor([3.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5])  # three bits: steps of one
    assert uniform(w, 3).tolist() == [3.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0]


def test_a_tensor_of_zeros_stays():
    assert uniform(torch.zeros(3, 2), 4).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("value", [1e-45, 3e-44, 1e-39, 3e38])
def test_the_smallest_and_the_largest_numbers_do_not_become_nan(value):
    q = uniform(torch.tensor([value, 0.0, -value]), 8)
    assert q.tolist() == [torch.tensor(value).item(), 0.0, -torch.tensor(value).item()]
    assert uniform(torch.tensor([5e-324, 0.0], dtype=torch.float64), 8).tolist() == [5e-324, 0.0]


def test_the_input_is_not_changed_and_any_shape_is_taken():
    w = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    before = w.clone()
    q = uniform(w, 2)
    assert q.shape == w.shape
    assert torch.equal(w, before)
    assert uniform(torch.tensor(0.7), 4) == torch.tensor(0.7)


@pytest.mark.parametrize("bits", [1, 0, -4, 17, 32])
@pytest.mark.parametrize("make", [lambda bits: uniform(torch.ones(2), bits), Uniform])
def test_bits_outside_the_range_are_named(make, bits):
    with pytest.raises(ValueError, match="bits must be"):
        make(bits)


@pytest.mark.parametrize("bits", [4.0, "4", True])
def test_bits_of_another_type_are_named(bits):
    with pytest.raises(TypeError, match="bits must be"):
        Uniform(bits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_an_error(bad):
    with pytest.raises(ValueError, match="w contains NaN or infinity"):
        uniform(torch.tensor([1.0, bad]), 4)


@pytest.mark.parametrize("w", [torch.tensor([]), torch.tensor([1, 2]), [1.0, 2.0]])
def test_weights_of_another_kind_are_an_error(w):
    with pytest.raises(TypeError, match="w must be a floating tensor"):
        uniform(w, 4)
