"""Signed Poisson coding: its statistics, its declared gradients, its channels."""

from __future__ import annotations

import re

import pytest
import torch
from scipy import stats

from snnrobust.draws import draws
from snnrobust.encoders import Poisson, SignedPoisson

SIGNIFICANCE = 1e-6  # the keys are fixed, so each test passes or fails for good


def _encode(encoder, x, key=0):
    with draws(encoder, key):
        return encoder(x)


@pytest.mark.parametrize(("mean", "std", "scale"), [(0.5, 0.5, 1.0), (0.3, 0.25, 2.0)])
def test_rate_sign_and_variance(mean, std, scale):
    """The count of each value is binomial of min(|z| / scale, 1), its sign that of z; steps and samples are independent."""
    T, B = 400, 50
    x = torch.linspace(-0.2, 1.2, 41, dtype=torch.float64)
    z = (x - mean) / std
    p = (z.abs() / scale).clamp(max=1.0)
    spikes = _encode(SignedPoisson(T, mean, std, scale), x.expand(B, -1), key=1)
    assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(spikes * z.sign(), spikes.abs())
    for rate, count in zip(p.tolist(), spikes.abs().sum((0, 1)).tolist(), strict=True):
        assert stats.binomtest(int(count), T * B, rate).pvalue > SIGNIFICANCE / len(x)
    inner = (p > 0.01) & (p < 0.99)
    over_time = spikes.abs().sum(0)[:, inner]
    scaled = ((B - 1) * over_time.var(0) / (T * p * (1 - p))[inner]).numpy()
    assert (stats.chi2.sf(scaled, B - 1) > SIGNIFICANCE / len(x)).all()
    assert (stats.chi2.cdf(scaled, B - 1) > SIGNIFICANCE / len(x)).all()


def test_steps_and_elements_are_independent():
    """Products of centred spikes: of two steps, and of two neighbouring elements."""
    s = _encode(SignedPoisson(500), torch.full((40, 20), 0.8), key=2).double() - 0.6
    variance = 0.6 * 0.4
    for a, b in ((s[1:], s[:-1]), (s[..., 1:], s[..., :-1]), (s[:, 1:], s[:, :-1])):
        z = float((a * b).sum()) / (variance * a.numel() ** 0.5)
        assert 2 * stats.norm.sf(abs(z)) > SIGNIFICANCE


def test_inputs_in_the_unit_interval_with_no_mean_are_poisson():
    x = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_encode(SignedPoisson(9, 0.0, 1.0), x, 5), _encode(Poisson(9), x, 5))


def test_zero_never_fires_and_the_scale_always():
    x = torch.tensor([[0.5, 1.0, 0.0, 7.0]]).expand(50, 4)
    assert torch.equal(_encode(SignedPoisson(100), x), torch.tensor([0.0, 1.0, -1.0, 1.0]).expand(100, 50, 4))


def test_a_draw_at_the_rate_is_silent():
    """As for Poisson: u < rate, so the 2^24 possible draws give the rate without bias."""
    encoder = SignedPoisson(1, 0.0, 1.0)
    with draws(encoder, 5):
        u = encoder.uniform((1, 3, 40))[0]
        for sign in (1.0, -1.0):
            assert not encoder(sign * u).any()
            assert (encoder(sign * (u + 2.0**-24)) == sign).all()


def test_each_channel_has_its_own_mean_and_std():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 4, 5, generator=generator)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    encoder = SignedPoisson(6, mean, std, 1.5)
    with draws(encoder, 3):
        u = encoder.uniform((6, 2, 3, 4, 5))
        spikes = encoder(x)
    for c in range(3):
        z = (x[:, c] - mean[c]) / std[c]
        assert torch.equal(spikes[:, :, c], z.sign() * (u[:, :, c] < z.abs() / 1.5))


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "factor"), [("straight_through", 1.0), ("none", 0.0)])
def test_declared_gradient_everywhere(gradient, factor):
    x = torch.linspace(-4, 4, 18).view(3, 2, 3).requires_grad_()  # most of it saturated
    encoder = SignedPoisson(5, (0.1, 0.2), (0.25, 0.5), 2.0, gradient)
    weight = torch.arange(5.0 * 18).view(5, 3, 2, 3)
    (found,) = torch.autograd.grad((encoder(x) * weight).sum(), x)
    slope = factor / (2.0 * torch.tensor([0.25, 0.5]).view(2, 1))
    torch.testing.assert_close(found, weight.sum(0) * slope)


def test_it_is_the_gradient_of_the_expectation():
    """E[s] = z / scale below saturation; the finite difference of the mean of many draws, across zero too."""
    encoder, many = SignedPoisson(4, 0.4, 0.5, 2.0), 50_000
    for low, high in ((0.5, 0.7), (0.3, 0.6), (-0.1, 0.1)):
        a, b = (_encode(encoder, torch.full((many, 1), v)).sum(0).double().numpy() for v in (low, high))
        change = (b - a).ravel() / (high - low)
        x = torch.full((1, 1), low, requires_grad=True)
        (gradient,) = torch.autograd.grad(encoder(x).sum(), x)
        assert stats.ttest_1samp(change, gradient.item()).pvalue > SIGNIFICANCE
        assert change.std() / many**0.5 < 0.05 * gradient.item()  # so the test has something to say


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"std": 0}, ValueError, "std must be in (0, inf], got 0"),
        ({"std": (0.5, -1.0)}, ValueError, "std[1] must be in (0, inf], got -1.0"),
        ({"mean": float("nan")}, ValueError, "mean must be in [-inf, inf], got nan"),
        ({"mean": "0.5"}, TypeError, "mean must be a number, got '0.5'"),
        ({"mean": ()}, ValueError, "mean must be a number or one for each channel, got ()"),
        ({"mean": (0.5, None)}, TypeError, "mean[1] must be a number, got None"),
        ({"mean": (0.1, 0.2), "std": (1.0, 2.0, 3.0)}, ValueError, "mean and std must be for the same channels, got (0.1, 0.2)"),
        ({"scale": 0}, ValueError, "scale must be in (0, inf], got 0"),
        ({"gradient": "off"}, ValueError, "gradient must be one of straight_through, none; got 'off'"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        SignedPoisson(4, **arguments)


def test_other_channels_than_declared():
    encoder = SignedPoisson(4, mean=(0.1, 0.2, 0.3))
    with pytest.raises(
        ValueError, match=r"^mean has 3 channels, but a sample has the shape \(1, 8, 8\): give one value"
    ):
        encoder(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"^mean has 3 channels"):
        encoder.output_shape((1, 8, 8))
