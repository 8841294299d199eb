"""Poisson coding: its statistics, its declared gradients, its errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import ENCODERS, Direct, Encoder, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan

SIGNIFICANCE = 1e-6  # the keys are fixed, so each test passes or fails for good


def _encode(encoder, x, key=0, ids=None):
    with draws(encoder, key, ids):
        return encoder(x)


def test_rate_and_variance_of_every_pixel():
    """Over T * B draws a pixel's count is binomial; its variance over samples and steps is x (1 - x)."""
    T, B = 400, 50
    x = torch.linspace(0, 1, 41)
    spikes = _encode(Poisson(T), x.expand(B, -1), key=1).double()
    counts = spikes.sum((0, 1)).numpy().astype(int)
    for p, count in zip(x.double().tolist(), counts, strict=True):
        assert stats.binomtest(int(count), T * B, p).pvalue > SIGNIFICANCE / len(x)
    # Counts over time vary by T x (1 - x): independent steps, and samples that do not share draws.
    over_time = spikes.sum(0).numpy()
    inner = slice(1, -1)  # at 0 and 1 there is no variance
    scaled = (B - 1) * over_time.var(0, ddof=1)[inner] / (T * (x * (1 - x)).double().numpy()[inner])
    assert (stats.chi2.sf(scaled, B - 1) > SIGNIFICANCE / len(x)).all()
    assert (stats.chi2.cdf(scaled, B - 1) > SIGNIFICANCE / len(x)).all()


def test_spikes_are_bernoulli_of_the_uniform_draws():
    encoder, x = Poisson(6), torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0))
    with draws(encoder, 3):
        assert torch.equal(encoder(x), (encoder.uniform((6, 4, 2, 3)) < x).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_never_fires_and_one_always(dtype):
    x = torch.tensor([[0.0, 1.0]], dtype=dtype).expand(100, 2)
    spikes = _encode(Poisson(200), x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, x.expand(200, 100, 2))


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-24])
def test_zero_never_fires_and_one_always_at_the_rarest_draws(draw, monkeypatch):
    encoder = Poisson(2)
    monkeypatch.setattr(encoder, "uniform", lambda shape, *_: torch.full(shape, draw))
    assert encoder(torch.tensor([[0.0, 1.0]])).tolist() == [[[0.0, 1.0]]] * 2


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 6),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from([Poisson, Direct]),
    key=st.integers(0, 2**63 - 1),
)
def test_step_is_forward(T, shape, dtype, kind, key):
    encoder = kind(T)
    x = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(key))
    with draws(encoder, key):
        sequence = encoder(x)
        assert sequence.shape == (T, *shape)
        assert sequence.dtype == dtype
        for t in range(T):
            assert torch.equal(encoder.step(x, t), sequence[t])


def test_draws_follow_sample_and_key_not_the_batch():
    encoder, x = Poisson(8), torch.full((5, 30), 0.5)
    everyone = _encode(encoder, x)
    assert torch.equal(_encode(encoder, x[:2], ids=torch.tensor([4, 1])), everyone[:, [4, 1]])
    assert not torch.equal(_encode(encoder, x, key=1), everyone)
    assert len({tuple(row.tolist()) for row in everyone.flatten(0, 1)}) == 40  # each step and sample has its own


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "each_step"), [("straight_through", 1.0), ("none", 0.0)])
def test_declared_gradient(gradient, each_step):
    T, encoder = 7, Poisson(7, gradient=gradient)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (total,) = torch.autograd.grad(encoder(x).sum(), x)
    assert torch.equal(total, torch.full_like(x, T * each_step))
    weights = torch.arange(T * 12.0).view(T, 3, 4)
    (weighted,) = torch.autograd.grad((encoder(x) * weights).sum(), x)
    assert torch.equal(weighted, weights.sum(0) * each_step)


def test_straight_through_is_the_gradient_of_the_expectation():
    """E[sum_t w_t s_t] is linear in x, so its finite difference is sum_t w_t; estimated on many common draws."""
    encoder, weights = Poisson(4), torch.tensor([1.0, -2.0, 3.0, 0.5]).view(4, 1, 1)
    low, high = torch.full((20_000, 1), 0.4), torch.full((20_000, 1), 0.6)
    change = ((_encode(encoder, high) - _encode(encoder, low)) * weights).sum(0).double().numpy() / 0.2
    x = low[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((encoder(x) * weights).sum(), x)
    assert stats.ttest_1samp(change.ravel(), gradient.item()).pvalue > SIGNIFICANCE
    assert change.std() / np.sqrt(len(change)) < 0.2  # so the test has something to say


def test_input_gradient_is_that_of_sharmin_et_al():
    """Sharmin et al. 2020: transpose the first convolution over the time-summed gradient at its output."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, dtype=torch.float64, generator=generator))
    neuron, readout = LIF(0.9, surrogate=ATan(2.0)), MeanOutput()
    tail = Sequential(neuron, nn.Flatten(), nn.Linear(64, 3).double())
    x = torch.rand(2, 2, 7, 7, dtype=torch.float64, generator=generator).requires_grad_()
    encoder, labels = Poisson(5), torch.tensor([0, 2])

    with draws(encoder, 4):
        loss = F.cross_entropy(readout(tail(Sequential(conv)(encoder(x)))), labels)
        (ours,) = torch.autograd.grad(loss, x)

        spikes = encoder(x.detach())
    currents = torch.stack([conv(s) for s in spikes]).detach().requires_grad_()
    (at_conv,) = torch.autograd.grad(F.cross_entropy(readout(tail(currents)), labels), currents)
    theirs = F.conv_transpose2d(at_conv.sum(0), conv.weight.detach(), stride=2, padding=1)
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor([[0.0, 1.01]]), ValueError, "x must lie in [0, 1], but lies in [0, 1.01]"),
        (torch.tensor([[-0.01, 1.0]]), ValueError, "x must lie in [0, 1], but lies in [-0.01, 1]"),
        (torch.tensor([[float("nan")]]), ValueError, "x contains NaN"),
        (torch.tensor([[float("inf")]]), ValueError, "x must lie in [0, 1], but lies in [inf, inf]"),
        (torch.zeros(2, 3, dtype=torch.uint8), TypeError, "x must be floating, got torch.uint8"),
        (torch.zeros(3), ValueError, "x must be a batch [B, ...] that is not empty, got shape (3,)"),
        (torch.zeros(0, 3), ValueError, "x must be a batch [B, ...] that is not empty, got shape (0, 3)"),
        ([[0.5]], TypeError, "x must be a tensor [B, ...], got list"),
    ],
)
@pytest.mark.parametrize("encoder", [Poisson(3), Direct(3)], ids=str)
def test_bad_input(encoder, x, error, message):
    for call in (lambda: encoder(x), lambda: encoder.step(x, 0)):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()


@pytest.mark.parametrize("kind", [Poisson, Direct])
@pytest.mark.parametrize(
    ("time_steps", "error", "message"),
    [
        (0, ValueError, "time_steps must be at least 1, got 0"),
        (-3, ValueError, "time_steps must be at least 1, got -3"),
        (4.0, TypeError, "time_steps must be an integer, got 4.0"),
    ],
)
def test_bad_time_steps(kind, time_steps, error, message):
    with pytest.raises(error, match=message):
        kind(time_steps)


def test_bad_gradient():
    with pytest.raises(ValueError, match="gradient must be one of straight_through, none; got 'straight-through'"):
        Poisson(3, gradient="straight-through")


def test_a_new_encoder_is_one_small_class():
    class Constant(Encoder):
        def encode(self, x, start, steps):
            return torch.stack([x * (t + 1) for t in range(start, start + steps)])

    try:
        assert Constant(3)(torch.ones(1, 2)).tolist() == [[[1, 1]], [[2, 2]], [[3, 3]]]
    finally:
        assert ENCODERS.pop("Constant") is Constant
