"""Population coding: receptive fields, statistics, gradients."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy import stats

from snnrobust.draws import draws
from snnrobust.encoders import Population

SIGNIFICANCE = 1e-6  # the keys are fixed, so each test passes or fails for good


def _encode(encoder, x, key=0):
    with draws(encoder, key):
        return encoder(x)


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_receptive_fields(sigma):
    x = [0.0, 0.2, 0.5, 1.0]
    rates = Population(3, 5, sigma)._rates(torch.tensor([x], dtype=torch.float64))
    width = 0.25 / 1.5 if sigma is None else sigma
    expected = [math.exp(-((v - j / 4) ** 2) / (2 * width**2)) for v in x for j in range(5)]
    torch.testing.assert_close(rates, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_the_neurons_of_a_channel_lie_side_by_side(shape):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    encoder = Population(4, 6)
    rates, centres = encoder._rates(x), torch.linspace(0, 1, 6)
    assert rates.shape == (2, *encoder.output_shape(shape)) == (2, 18, *shape[1:])
    for c in range(3):
        for j in range(6):
            expected = torch.exp(-0.5 * ((x[:, c] - centres[j]) * 7.5) ** 2)
            torch.testing.assert_close(rates[:, 6 * c + j], expected)


def test_rate_and_variance_of_every_neuron():
    T, B = 300, 60
    x = torch.linspace(0, 1, 7, dtype=torch.float64)
    encoder = Population(T, 4)
    p = encoder._rates(x[None])[0]
    spikes = _encode(encoder, x.expand(B, -1), key=1)
    for rate, count in zip(p.tolist(), spikes.sum((0, 1)).tolist(), strict=True):
        assert stats.binomtest(int(count), T * B, rate).pvalue > SIGNIFICANCE / len(p)
    inner = (p > 0.01) & (p < 0.99)
    scaled = ((B - 1) * spikes.sum(0)[:, inner].var(0) / (T * p * (1 - p))[inner]).numpy()
    assert (stats.chi2.sf(scaled, B - 1) > SIGNIFICANCE / len(p)).all()
    assert (stats.chi2.cdf(scaled, B - 1) > SIGNIFICANCE / len(p)).all()


def test_neurons_of_one_value_draw_for_themselves():
    """Neighbours with the same rate, from a value half way between their centres, are uncorrelated."""
    spikes = _encode(Population(500, 2), torch.full((40, 30), 0.5), key=2).double()
    rate = math.exp(-0.5 * 0.75**2)
    product = (spikes[..., 0::2] - rate) * (spikes[..., 1::2] - rate)
    z = float(product.sum()) / (rate * (1 - rate) * product.numel() ** 0.5)
    assert 2 * stats.norm.sf(abs(z)) > SIGNIFICANCE


# --- gradients ------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_rates():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 4, dtype=torch.float64, generator=generator) * 0.8 + 0.1
    encoder = Population(5, 6)
    weight = torch.randn(5, 3, 12, 4, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    (found,) = torch.autograd.grad((encoder(x) * weight).sum(), x)
    with torch.no_grad():
        h = 1e-6
        slope = (encoder._rates(x + h) - encoder._rates(x - h)) / (2 * h)
    expected = (weight.sum(0) * slope).view(3, 2, 6, 4).sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"neurons": 1}, ValueError, "neurons must be at least 2, got 1"),
        ({"neurons": 2.0}, TypeError, "neurons must be an integer, got 2.0"),
        ({"sigma": 0.0}, ValueError, "sigma must be in (0, inf], got 0.0"),
        ({"sigma": "wide"}, TypeError, "sigma must be a number, got 'wide'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Population(4, **arguments)
