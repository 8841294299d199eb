"""Weights that vary from device to device: moments, shares, keys, gradient."""

from math import exp, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, WeightVariation, deploy
from snnrobust.hardware.variation import vary
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

LEVEL = 1e-3
"""Of every statistical test below, two-sided."""


def layer(outputs=100, inputs=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outputs, inputs, generator=generator, dtype=torch.float64))
    return made


def stored(backend, model=None, seed=0, name="0"):
    model = nn.Sequential(layer()) if model is None else model
    chip = deploy(model, backend, seed=seed)
    return dict(chip.named_buffers())[f"{name}.layer.array.weight"]


def xi_of(w, stored_w, backend):
    """The standard normal draws behind stored weights."""
    if backend.distribution == "lognormal":
        return (stored_w / w).log() / backend.sigma + backend.sigma / 2
    return (stored_w - w) / (backend.sigma * w.abs().max())


@pytest.mark.parametrize("distribution", ["lognormal", "gaussian"])
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_devices_draw_standard_normals(distribution, sigma):
    """20,000 devices: mean, variance and Kolmogorov-Smirnov at 1e-3 each."""
    backend, w = WeightVariation(sigma, distribution=distribution), layer().weight
    xi = xi_of(w, stored(backend), backend).flatten()
    assert abs(xi.mean()) < stats.norm.isf(LEVEL / 2) / sqrt(len(xi))
    assert abs(xi.var() - 1) < stats.norm.isf(LEVEL / 2) * sqrt(2 / len(xi))
    assert stats.kstest(xi.detach().numpy(), "norm").pvalue > LEVEL


def test_the_mean_is_kept_and_the_variance_is_the_formula():
    """w exp(sigma xi - sigma^2 / 2) over 4,000 chips of 25 equal weights: closed forms at 1e-3."""
    sigma, n = 0.5, 100_000
    w = torch.full((n,), 2.0, dtype=torch.float64)
    xi = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = vary(w, xi, sigma)
    variance = 4 * (exp(sigma**2) - 1)
    assert abs(found.mean() - 2.0) < stats.norm.isf(LEVEL / 2) * sqrt(variance / n)
    e = exp(sigma**2)
    fourth = variance**2 * (e**4 + 2 * e**3 + 3 * e**2 - 3)  # the lognormal's kurtosis times variance squared
    assert abs(found.var() - variance) < stats.norm.isf(LEVEL / 2) * sqrt((fourth - variance**2) / n)
    found = vary(w, xi, sigma, "gaussian")
    assert abs(found.mean() - 2.0) < stats.norm.isf(LEVEL / 2) * sigma * 2 / sqrt(n)
    assert abs(found.std() - sigma * 2) < stats.norm.isf(LEVEL / 2) * sigma * 2 / sqrt(2 * n)


@pytest.mark.parametrize("distribution", ["lognormal", "gaussian"])
@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_the_systematic_share_is_the_correlation_within_a_layer(distribution, rho):
    """Var of the layer's mean xi over 400 chips is rho + (1 - rho) / n; within a chip it is 1 - rho. Chi-square, 1e-3."""
    backend, model = WeightVariation(0.2, rho, distribution), nn.Sequential(layer(8, 16))
    w = model[0].weight.detach()
    xi = torch.stack([xi_of(w, stored(backend, model, seed), backend).flatten() for seed in range(400)])
    means = xi.mean(1)
    expected = rho + (1 - rho) / 128
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], 400)
    assert low < float((means**2).sum()) / expected < high
    within = ((xi - means[:, None]) ** 2).sum() / (1 - rho)
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], 400 * 127)
    assert low < float(within) < high
    one = xi[:, 0]  # the distribution of each weight does not know about rho
    assert stats.kstest(one.numpy(), "norm").pvalue > LEVEL


def test_all_systematic_is_one_gain_for_a_layer_or_for_each_column():
    w = layer().weight.detach()
    ratio = stored(WeightVariation(0.3, 1.0)) / w
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-12)
    ratio = stored(WeightVariation(0.3, 1.0, shared="column")) / w
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-12)
    xi = (ratio[:, 0].log() / 0.3 + 0.15).numpy()
    assert len(set(xi.round(12))) == 100
    assert stats.kstest(xi, "norm").pvalue > LEVEL


def test_layers_and_chips_are_independent_and_a_seed_is_a_chip():
    model = nn.Sequential(layer(40, 40), nn.ReLU(), layer(40, 40))
    backend = WeightVariation(0.3, 0.5)
    first, second = stored(backend, model), stored(backend, model, name="2")
    a, b = xi_of(model[0].weight, first, backend), xi_of(model[2].weight, second, backend)
    r = stats.pearsonr((a - a.mean()).detach().flatten(), (b - b.mean()).detach().flatten())
    assert r.pvalue > LEVEL
    assert torch.equal(first, stored(backend, model))
    assert not torch.equal(first, stored(backend, model, seed=1))
    with draws(model, 5):  # nor does a key around it matter
        assert torch.equal(first, stored(backend, model))


def test_nothing_is_drawn_after_the_chip_is_made():
    chip = deploy(nn.Sequential(layer()), WeightVariation(0.3), seed=0)
    x = torch.rand(3, 200, dtype=torch.float64)
    assert not is_stochastic(chip, x)
    assert torch.equal(chip(x), chip(x))


@settings(deadline=None, max_examples=30)
@given(
    st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.sampled_from(["lognormal", "gaussian"]),
    st.sampled_from(["layer", "column"]), st.sampled_from(["linear", "conv"]),
)  # fmt: skip
def test_any_layer_keeps_its_shape_dtype_and_in_the_lognormal_case_its_signs(sigma, rho, distribution, shared, kind):
    torch.manual_seed(0)
    made = nn.Linear(3, 4) if kind == "linear" else nn.Conv2d(2, 4, 3, groups=2)
    w = stored(WeightVariation(sigma, rho, distribution, shared), nn.Sequential(made))
    assert w.shape == made.weight.shape
    assert w.dtype == torch.float32
    assert w.isfinite().all()
    if distribution == "lognormal":
        assert torch.equal(w.sign(), made.weight.detach().sign())
    if sigma == 0:
        assert torch.equal(w, made.weight.detach())


def test_the_gradient_is_that_of_the_stored_weights():
    chip = deploy(nn.Sequential(layer(3, 5)), WeightVariation(0.4, 0.5), seed=2)
    x = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chip, x)
    chip(x).sum().backward()
    weight = dict(chip.named_buffers())["0.layer.array.weight"]
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x))


def test_on_a_spiking_network_and_in_a_chain():
    network = Sequential(nn.Linear(20, 30), LIF(), nn.Linear(30, 4))
    model = SpikingClassifier(Direct(3), network, MeanOutput())
    chip = deploy(model, Chain(WeightVariation(0.3), Uniform(bits=4)), seed=1)
    assert len(chip.network[0].array.weight.unique()) <= 15
    x = torch.rand(5, 20)
    assert torch.equal(chip(x), chip(x))
    assert not torch.equal(chip(x), model(x))


def test_errors_name_the_remedy():
    for arguments, message in (
        ({"sigma": -0.1}, "sigma"),
        ({"sigma": 0.1, "systematic": 1.5}, "systematic"),
        ({"sigma": 0.1, "distribution": "normal"}, "did you mean"),
        ({"sigma": 0.1, "shared": "rows"}, "shared"),
    ):
        with pytest.raises(ValueError, match=message):
            WeightVariation(**arguments)
    bad = layer(2, 2)
    with torch.no_grad():
        bad.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        deploy(nn.Sequential(bad), WeightVariation(0.1), seed=0)
    from snnrobust.hardware import Array, Operation  # what deploy refuses can come from another backend of the chain

    backend = WeightVariation(0.1)
    with pytest.raises(ValueError, match=r"leave the layer out with layers"):
        backend.program(Array(bad.weight, Operation("linear")))
    with pytest.raises(RuntimeError, match="on no chip yet"):
        backend.program(Array(layer(2, 2).weight, Operation("linear")))
