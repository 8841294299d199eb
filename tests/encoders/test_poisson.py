"""Poisson coding: its statistics and its declared gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Poisson
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


def test_steps_samples_and_elements_are_independent():
    """Products of centred spikes of two steps, of two samples and of two neighbouring elements are normal around zero."""
    rate = 0.3
    s = _encode(Poisson(500), torch.full((40, 20), rate), key=2).double() - rate
    for a, b in ((s[1:], s[:-1]), (s[:, 1:], s[:, :-1]), (s[..., 1:], s[..., :-1])):
        z = float((a * b).sum()) / (rate * (1 - rate) * a.numel() ** 0.5)
        assert 2 * stats.norm.sf(abs(z)) > SIGNIFICANCE


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("step", "element", "draw"), [(75, 3118, 0.0), (288, 7670, 1 - 2.0**-24)])
def test_zero_never_fires_and_one_always_at_the_rarest_draws(step, element, draw, dtype):
    encoder, x = Poisson(500), torch.arange(2, dtype=dtype)[:, None].expand(2, 8000)
    words = torch.tensor([0x9ABCDEF0, 0x12345678]), torch.zeros(2, dtype=torch.int64)
    encoder._key, encoder._sample_ids = words  # both samples meet the same draws
    assert float(encoder.uniform((1, 2, 8000), step)[0, 0, element]) == draw
    assert torch.equal(encoder.encode(x, step, 1)[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_at_the_rate_is_silent(dtype):
    """u < x, so the 2^24 possible draws give the rate without bias."""
    encoder = Poisson(1)
    with draws(encoder, 5):
        draw = encoder.uniform((1, 3, 40))[0].to(dtype)
        assert not encoder(draw).any()
        assert encoder((draw + 2.0**-24).clamp(max=1.0)).all()


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


def test_bad_gradient():
    with pytest.raises(ValueError, match="gradient must be one of straight_through, none; got 'straight-through'"):
        Poisson(3, gradient="straight-through")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spikes_of_a_key_never_change(dtype):
    """A stored key stands for its spikes; this is what it stood for in the first version."""
    x = torch.linspace(0, 1, 30, dtype=dtype).expand(2, -1)
    bits = _encode(Poisson(4), x, key=11).flatten().long()
    assert int((bits * torch.arange(1, 241) ** 3).sum()) % (2**31 - 1) == 420786404
