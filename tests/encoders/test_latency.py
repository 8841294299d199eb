"""Latency coding: when each value spikes, and the gradient of a spike shared between two steps."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.encoders import Latency

MAPPINGS = ["linear", "logarithmic"]


def _time(x, T, mapping):
    if mapping == "linear":
        return (T - 1) * (1 - x)
    return (T - 1) - math.log((math.exp(T - 1) - 1) * x + 1)


def _shared(x, T, mapping):
    """The smooth forward: a spike at t_f is shared linearly between its neighbours."""
    return [max(0.0, 1.0 - abs(t - _time(x, T, mapping))) for t in range(T)]


@pytest.mark.parametrize("mapping", MAPPINGS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(T=st.integers(2, 40), x=st.floats(0, 1))
def test_one_spike_at_the_rounded_time(mapping, T, x):
    spikes = Latency(T, mapping)(torch.tensor([[x]], dtype=torch.float64)).flatten().tolist()
    assert sorted(spikes) == [0.0] * (T - 1) + [1.0]
    assert abs(spikes.index(1.0) - _time(x, T, mapping)) <= 0.5 + 1e-9


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("T", [2, 3, 8, 80])
def test_one_is_first_and_zero_is_last(mapping, dtype, T):
    if dtype == torch.float16 and T == 80:
        dtype = torch.bfloat16
    spikes = Latency(T, mapping)(torch.tensor([[1.0, 0.0]], dtype=dtype))
    assert spikes[:, 0].argmax(0).tolist() == [0, T - 1]
    assert spikes.sum() == 2


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_input_only(mapping, dtype):
    x = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(Latency(30, mapping)(x).float(), Latency(30, mapping)(x.float()))


def test_a_slope_that_float16_cannot_hold_is_refused():
    x = torch.zeros(1, 2, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(Latency(12, "logarithmic")(x)[0].sum(), x)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match=r"^x must not be float16 for the logarithm of 13 time steps"):
        Latency(13, "logarithmic")(x)
    Latency(13, "logarithmic")(x.bfloat16())
    Latency(13)(x)


def test_the_brighter_the_earlier():
    x = torch.cat([torch.logspace(-8, 0, 400, dtype=torch.float64), torch.linspace(0, 1, 100)]).sort()[0][None]
    for mapping in MAPPINGS:
        times = Latency(16, mapping)(x)[:, 0].argmax(0)
        assert (times.diff() <= 0).all()
        assert set(times.tolist()) == set(range(16))


def test_half_a_step_is_rounded_to_even():
    assert Latency(3)(torch.tensor([[0.75, 0.25]]))[:, 0].argmax(0).tolist() == [0, 2]  # times 0.5 and 1.5


# --- gradients ------------------------------------------------------------------------------------------------


def _gradient(x, weight, mapping):
    x = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    spikes = Latency(len(weight), mapping)(x)
    return torch.autograd.grad((spikes * torch.tensor(weight).double().view(-1, 1, 1)).sum(), x)[0].item()


@pytest.mark.parametrize("mapping", MAPPINGS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(x=st.floats(0.001, 0.999), weight=st.lists(st.floats(-3, 3), min_size=2, max_size=9))
def test_it_is_the_derivative_of_the_shared_spike(mapping, x, weight):
    T, h = len(weight), 1e-7
    for k in range(T):  # away from the kinks
        if abs(_time(x, T, mapping) - k) < 1e-4 * T:
            return
    ahead, behind = (sum(a * w for a, w in zip(_shared(x + d, T, mapping), weight, strict=True)) for d in (h, -h))
    slope = math.exp(T - 1) if mapping == "logarithmic" else T
    assert _gradient(x, weight, mapping) == pytest.approx((ahead - behind) / (2 * h), rel=1e-4, abs=1e-5 * slope)


@pytest.mark.parametrize("T", [2, 3, 5, 9])  # (T - 1)(1 - x) is exact
def test_at_whole_times_it_is_the_central_difference(T):
    g = [0.5, -1.0, 3.0, 0.25, 7.0, -2.0, 1.0, 1.5, -4.0][:T]
    for k in range(T):
        before, after = max(k - 1, 0), min(k + 1, T - 1)
        expected = -(T - 1) * (g[after] - g[before]) / (after - before)
        assert _gradient(1 - k / (T - 1), g, "linear") == expected
        if 0 < k < T - 1:  # the mean of both one-sided derivatives
            h = 1e-6
            sides = [(sum(a * w for a, w in zip(_shared(1 - k / (T - 1) + d, T, "linear"), g, strict=True))
                      - g[k]) / d for d in (h, -h)]  # fmt: skip
            assert expected == pytest.approx(sum(sides) / 2, rel=1e-6)


def test_the_logarithm_at_its_ends():
    """t_f' is -alpha at zero and -alpha / (alpha + 1) at one, and the difference one-sided."""
    g, alpha = [1.0, 4.0, -2.0, 0.5], math.exp(3) - 1
    assert _gradient(0.0, g, "logarithmic") == pytest.approx(-alpha * (g[3] - g[2]))
    assert _gradient(1.0, g, "logarithmic") == pytest.approx(-alpha / (alpha + 1) * (g[1] - g[0]))


def test_the_gradient_is_finite_up_to_the_longest_logarithm():
    x = torch.tensor([[0.0, 1e-30, 1e-3, 1.0]], requires_grad=True)
    encoder = Latency(80, "logarithmic")
    (gradient,) = torch.autograd.grad((encoder(x) * torch.arange(80.0).view(-1, 1, 1)).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient < 0).all()  # brighter is earlier


@pytest.mark.parametrize("error", [-1e-7, 0.0, 1e-7])
def test_the_gradient_at_one_whatever_the_rounding(error, monkeypatch):
    """(T - 1) - log1p(alpha) is zero up to a rounding of either sign; which, depends on the library."""
    log1p = torch.log1p
    monkeypatch.setattr(torch, "log1p", lambda v: log1p(v) * (1 + error))
    for T in range(2, 81):
        x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        spikes = Latency(T, "logarithmic")(x)
        assert spikes.argmax(0).item() == 0
        weight = torch.arange(T, dtype=torch.float64).view(-1, 1, 1)
        (gradient,) = torch.autograd.grad((spikes * weight).sum(), x)
        assert gradient.item() == pytest.approx(math.exp(1 - T) - 1, rel=1e-5)  # -alpha / (alpha + 1)


def test_it_can_be_differentiated_twice():
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    encoder, w = (
        Latency(6, "logarithmic"),
        torch.randn(6, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    (gradient,) = torch.autograd.grad((encoder(x) * w).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    alpha = math.exp(5) - 1
    torch.testing.assert_close(second, -alpha / (alpha * x + 1) * gradient)  # t_f'' / t_f'


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "time_steps must be at least 2, got 1: with one step every value spikes at the same time"),
        ((81, "logarithmic"), "time_steps must be at most 80 for the logarithm, got 81: use mapping='linear'"),
        ((8, "log"), "mapping must be one of linear, logarithmic; got 'log'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Latency(*arguments)
