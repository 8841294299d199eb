import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnrobust.hardware.pairs import to_pair, weight_unit


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.floats(1.0, 100.0))
def test_the_pair_is_the_weight(values, g_max):
    weight = torch.tensor(values)
    pair, unit = to_pair(weight, g_max), weight_unit(weight, g_max)
    assert torch.allclose(unit * (pair[0] - pair[1]), weight.double(), rtol=1e-12, atol=1e-300)
    assert (pair >= 0).all()
    assert (pair <= g_max).all()
    assert (pair.amin(0) == 0).all()  # one of the two devices is not programmed
    if weight.abs().max() > 0:
        assert pair.max() == pytest.approx(g_max, rel=1e-12)


def test_a_layer_of_zeros_has_unprogrammed_devices():
    assert torch.equal(to_pair(torch.zeros(2, 3), 25.0), torch.zeros(2, 2, 3, dtype=torch.float64))
    assert weight_unit(torch.zeros(2, 3), 25.0) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(bad):
    with pytest.raises(ValueError, match="a weight is NaN or infinite, and no device can hold it: train again"):
        to_pair(torch.tensor([1.0, bad]), 25.0)
    with pytest.raises(ValueError, match="a layer without weights"):
        to_pair(torch.zeros(0), 25.0)
