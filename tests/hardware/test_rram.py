from math import log, sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import BACKENDS, RRAM, deploy
from snnrobust.hardware.rram import WAN_2022, polynomial_sigma, retained, varied
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

DAY = 86_400.0


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def standard_normal(z):
    """Significance 1e-3 for each of mean (z), variance (chi-square) and shape (KS)."""
    z = z.double().flatten()
    assert abs(z.mean()) < stats.norm.isf(0.0005) / sqrt(len(z))
    low, high = stats.chi2.ppf([0.0005, 0.9995], len(z) - 1)
    assert low < float(z.var() * (len(z) - 1)) < high
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("time", "at_zero", "at_half", "at_one"),
    [(1.0, 0.348, 2.0229375, 1.103), (DAY, 0.701, 3.909, 2.651), (2 * DAY, 0.782, 3.929125, 2.677)],
)
def test_the_polynomials_by_hand(time, at_zero, at_half, at_one):
    """At r = 1 the sum of the coefficients; at 1/2 and 1 s, 0.348 + 8.015 - 10.96325 + 5.674125 - 1.0509375 = 2.0229375."""
    sigma = polynomial_sigma(f64(0.0, 20.0, 40.0), time, 40.0, WAN_2022)
    assert sigma.tolist() == pytest.approx([at_zero, at_half, at_one], abs=1e-3 if time > 1 else 1e-9)
    expected = [sum(c * r**i for i, c in enumerate({p[0]: p[1:] for p in WAN_2022}[time])) for r in (0, 0.5, 1)]
    assert sigma.tolist() == pytest.approx(expected, rel=1e-12)


def test_between_the_data_it_is_a_line_in_the_logarithm_of_time():
    target = f64(0.0, 20.0, 40.0)
    one, day = (polynomial_sigma(target, t, 40.0, WAN_2022) for t in (1.0, DAY))
    share = log(3600) / log(DAY)
    assert torch.allclose(polynomial_sigma(target, 3600.0, 40.0, WAN_2022), (1 - share) * one + share * day)
    near = polynomial_sigma(target, DAY * (1 - 1e-12), 40.0, WAN_2022)
    assert torch.allclose(near, day, rtol=1e-9)
    assert (polynomial_sigma(f64(10.0), 1.0, 40.0, [(1.0, -5.0)]) == 0).all()  # no negative deviation


def test_plain_variations():
    xi = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = f64(10.0).expand(20_000)
    standard_normal((varied(g, xi, 0.05, 40.0, "gaussian") - 10) / 2)
    standard_normal((varied(g, xi, 0.05, 40.0, "lognormal") / 10).log() / 0.05)
    assert (varied(g, xi, 2.0, 40.0, "gaussian") >= 0).all()
    assert varied(f64(0.0), f64(3.0), 0.5, 40.0, "lognormal") == 0


@pytest.mark.parametrize(("time", "left"), [(0.0, 10.0), (1.0, 10.0), (10.0, 9.0), (1e4, 6.0), (1e12, 0.0)])
def test_retention_by_hand(time, left):
    assert retained(f64(10.0), time, 0.1).item() == pytest.approx(left)


def wide(n=20_000, value=0.5):
    """One layer whose weights are all ``value``, but for a first row of 1 that sets the scale."""
    layer = nn.Linear(n, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = 1.0, value
    return nn.Sequential(layer)


@pytest.mark.parametrize("g_max", [40.0, 10.0])
@pytest.mark.parametrize(("time", "s0", "s"), [("1 s", 0.348, 2.0229375), ("1 day", 0.701, 3.908875)])
def test_moments_of_a_chip(time, s0, s, g_max):
    """Relative to g_max they are the same for any."""
    w = deploy(wide(), RRAM(time, g_max=g_max), seed=3)[0].layer.array.weight[1] * 40.0
    mean = 20 - s0 / sqrt(2 * torch.pi)  # the device at zero is clipped there
    variance = s**2 + s0**2 * (0.5 - 1 / (2 * torch.pi))
    assert abs(w.mean() - mean) < stats.norm.isf(0.0005) * sqrt(variance / len(w))
    assert abs(w.var() / variance - 1) < stats.norm.isf(0.0005) * sqrt(2 / len(w)) * 1.1


@pytest.mark.parametrize("variation", ["gaussian", "lognormal"])
def test_moments_of_plain_chips(variation):
    backend = RRAM("10 years", variation, spread=0.1, retention=0.02, read_noise=0.0)
    w = deploy(wide(), backend, seed=3)[0].layer.array.weight[1]
    w = w / (1 - 0.02 * log(10 * 365 * DAY) / log(10))
    if variation == "lognormal":
        standard_normal((w / 0.5).log() / 0.1)
    else:
        mean = 0.5 - 0.1 / sqrt(2 * torch.pi)
        variance = 0.01 * (1.5 - 1 / (2 * torch.pi))
        assert abs(w.mean() - mean) < stats.norm.isf(0.0005) * sqrt(variance / len(w))
        assert abs(w.var() / variance - 1) < stats.norm.isf(0.0005) * sqrt(2 / len(w)) * 1.1


def test_read_noise():
    backend = RRAM("1 s", "lognormal", spread=0.0, read_noise=0.03)
    chip, x = (
        deploy(wide(400), backend, seed=3),
        torch.rand(5000, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    with torch.no_grad(), draws(chip, 1):
        noise = chip(x) - nn.functional.linear(x, chip[0].layer.array.weight, chip[0].layer.bias)
    standard_normal(noise / (0.03 * x.norm(dim=1, keepdim=True)))
    backend = RRAM("1 s", "lognormal", spread=0.0, read_noise=0.03, drawn="chip")
    standard_normal((deploy(wide(), backend, seed=3)[0].layer.array.weight[1] - 0.5) / 0.03)


def test_coefficients_of_your_own():
    backend = RRAM("1 h", coefficients=[[10.0, 1.0], [1e6, 1.0]], read_noise=0.0, g_max=20.0)
    w = deploy(wide(value=-0.5), backend, seed=1)[0].layer.array.weight[1] * 20
    mean, variance = -10 + 1 / sqrt(2 * torch.pi), 1.5 - 1 / (2 * torch.pi)
    assert abs(w.mean() - mean) < stats.norm.isf(0.0005) * sqrt(variance / len(w))
    assert abs(w.var() / variance - 1) < stats.norm.isf(0.0005) * sqrt(2 / len(w)) * 1.1


def ann():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def snn():
    return SpikingClassifier(Direct(4), Sequential(nn.Linear(6, 5), LIF(threshold=0.1), nn.Linear(5, 3)), MeanOutput())


@pytest.mark.parametrize("make", [ann, snn])
@pytest.mark.parametrize("drawn", ["step", "inference", "chip"])
def test_chips_and_draws(make, drawn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = make(), torch.rand(4, 6)
    backend = RRAM(read_noise=0.05, drawn=drawn)
    one, again, other = (deploy(model, backend, seed=s) for s in (1, 1, 2))
    with torch.no_grad():
        with draws(one, 7):
            logits = one(x)
        with draws(again, 7):
            assert torch.equal(again(x), logits)
        with draws(other, 7):
            assert not torch.allclose(other(x), logits)
        with draws(one, 8):
            assert torch.equal(one(x), logits) == (drawn == "chip")
    assert is_stochastic(one) == (drawn != "chip")


def test_it_is_registered_and_rebuilt_from_its_arguments():
    names = ("time", "variation", "spread", "coefficients", "retention", "read_noise", "g_max", "drawn")
    backend = RRAM(5, "wan2022", 0.1, [[1.0, 2.0], [9.0, 3.0]], 0.01, 0.0, 30.0, "chip")
    again = BACKENDS["RRAM"](**{name: getattr(backend, name) for name in names})
    model, x = wide(30), torch.ones(1, 30, dtype=torch.float64)
    assert torch.equal(deploy(model, again, seed=0)(x), deploy(model, backend, seed=0)(x))
    assert "time=5" in repr(backend)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"time": "1 week"},
            ValueError,
            "time must be within the data, 1 s to 172800 s, got 604800 s: give coefficients",
        ),
        ({"time": 0.5}, ValueError, "time must be within the data"),
        ({"variation": "wan"}, ValueError, r"variation must be one of .*did you mean 'wan2022'"),
        ({"spread": -0.1}, ValueError, "spread"),
        ({"retention": 1.5}, ValueError, "retention"),
        ({"read_noise": -1.0}, ValueError, "read_noise"),
        ({"g_max": -40.0}, ValueError, "g_max must be .*microsiemens"),
        ({"drawn": "never"}, ValueError, "drawn must be one of"),
        ({"coefficients": []}, TypeError, r"coefficients must be \[\[seconds, c_0"),
        ({"coefficients": [[1.0]]}, TypeError, r"coefficients must be \[\[seconds, c_0"),
        ({"coefficients": [[1.0, "a"]]}, TypeError, "coefficients must be a number"),
        ({"coefficients": [[2.0, 1.0], [1.0, 1.0]]}, ValueError, r"got the seconds \[2.0, 1.0\]"),
        ({"coefficients": [[0.0, 1.0]]}, ValueError, "positive seconds"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        RRAM(**arguments)
