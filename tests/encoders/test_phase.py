"""Phase coding: bits of a value, and the regression that its gradient declares."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from snnrobust.encoders import Phase


def test_pixels_of_eight_bits_become_their_bits():
    n = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        bits = Phase(8, weighted=False)((n.to(dtype) / 255)[None])[:, 0]
        assert [int("".join(str(int(b)) for b in column), 2) for column in bits.T] == n.tolist()


@pytest.mark.parametrize("bits", [1, 3, 8, 24])
def test_the_weighted_spikes_of_a_period_add_up_to_the_value(bits):
    x = torch.rand(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = Phase(bits, bits)(x).sum(0)
    assert (total <= x).all()
    assert (x - total < 2.0**-bits).all()
    for value, found in zip(x.flatten().tolist(), total.flatten().tolist(), strict=True):
        assert found == float(Fraction(int(Fraction(value) * 2**bits), 2**bits))


def test_the_ends():
    assert Phase(4, 4, weighted=False)(torch.tensor([[0.0, 0.5, 0.9375, 1.0]]))[:, 0].T.tolist() == [
        [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_input_only(dtype):
    x = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(Phase(20, 20, False)(x).float(), Phase(20, 20, False)(x.float()))


def test_it_repeats_with_its_period():
    x = torch.rand(2, 7, generator=torch.Generator().manual_seed(0))
    once, thrice = Phase(3, 3)(x), Phase(8, 3)(x)
    assert torch.equal(thrice, torch.cat([once, once, once])[:8])


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_slope_of_the_regression_over_all_values(bits, weighted):
    values = torch.arange(2**bits, dtype=torch.float64) / 2**bits
    x = values[None].clone().requires_grad_()
    spikes = Phase(bits, bits, weighted)(x)
    for k in range(bits):
        (slope,) = torch.autograd.grad(spikes[k].sum(), x, retain_graph=True)
        fitted = np.polyfit(values.numpy(), spikes[k, 0].detach().numpy(), 1)[0]
        np.testing.assert_allclose(slope.numpy(), fitted, rtol=1e-9)


def test_over_a_period_the_weighted_slopes_add_up_to_one():
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Phase(12, 6)(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 2.0))  # two periods


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 0}, ValueError, "bits must be at least 1, got 0"),
        ({"bits": 25}, ValueError, "bits must be at most 24, got 25: float32 has no more"),
        ({"bits": 8.0}, TypeError, "bits must be an integer, got 8.0"),
        ({"weighted": 1}, TypeError, "weighted must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Phase(8, **arguments)
