"""Moments of device variation at a level of 1e-3 each (z and chi-square tests), shares of stuck cells by the binomial."""

import math

import pytest
import torch
from scipy import stats

from snnrobust.hardware.crossbar.devices import stick, vary

N = 200_000


@pytest.fixture(scope="module")
def z():
    return torch.randn(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("distribution", ["lognormal", "gaussian"])
@pytest.mark.parametrize("variation", [0.05, 0.3])
def test_mean_and_standard_deviation(z, distribution, variation):
    g = vary(torch.full((N,), 2e-5, dtype=torch.float64), variation, distribution, z).numpy() / 2e-5
    assert abs(g.mean() - 1) < stats.norm.isf(5e-4) * variation / math.sqrt(N) + 1e-4 * (distribution == "gaussian")
    # the standard error of a sample variance is sqrt((kurtosis - 1) / N) of it
    s2 = math.log1p(variation**2)
    w = math.exp(s2)
    kurtosis = 3.0 if distribution == "gaussian" else w**4 + 2 * w**3 + 3 * w**2 - 3
    assert abs(g.var() / variation**2 - 1) < stats.norm.isf(5e-4) * math.sqrt((kurtosis - 1) / N) + 2e-3


def test_the_distributions_are_what_they_are_called(z):
    g = torch.ones(N, dtype=torch.float64)
    assert stats.kstest(vary(g, 0.2, "gaussian", z), stats.norm(1, 0.2).cdf).pvalue > 1e-3
    s = math.sqrt(math.log1p(0.2**2))
    assert stats.kstest(vary(g, 0.2, "lognormal", z), stats.lognorm(s, scale=math.exp(-s * s / 2)).cdf).pvalue > 1e-3


def test_conductances_are_not_negative(z):
    assert vary(torch.ones(N, dtype=torch.float64), 2.0, "gaussian", z).min() == 0
    assert vary(torch.ones(N, dtype=torch.float64), 2.0, "lognormal", z).min() > 0


def test_no_variation_is_none(z):
    g = torch.rand(N, dtype=torch.float64)
    assert torch.equal(vary(g, 0.0, "lognormal", z), g)
    assert torch.equal(vary(g, 0.0, "gaussian", z), g)


def test_stuck_cells():
    g = torch.full((5,), 0.5)
    u = torch.tensor([0.0, 0.19, 0.2, 0.69, 0.71])
    assert stick(g, 0.2, 0.3, 0.1, 0.9, u).tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5, 0.1])
    assert torch.equal(stick(g, 0.0, 0.0, 0.1, 0.9, u), g)
    assert torch.equal(stick(g, 1.0, 0.0, 0.1, 0.9, u), torch.full((5,), 0.9))
    assert torch.equal(stick(g, 0.0, 1.0, 0.1, 0.9, u), torch.full((5,), 0.1))
