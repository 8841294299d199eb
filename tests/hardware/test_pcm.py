from math import exp, inf, log, sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import BACKENDS, Chain, deploy, load, pcm, save
from snnrobust.hardware.pairs import to_pair
from snnrobust.hardware.pcm import (
    PCM,
    compensation_factor,
    drift_exponent,
    drifted,
    programming_noise,
    programming_sigma,
    read_sigma,
)
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

DAY = 86_400.0


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def xi(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard_normal(z):
    """Significance 1e-3 for each of mean (z), variance (chi-square) and shape (KS)."""
    z = z.double().flatten()
    assert abs(z.mean()) < stats.norm.isf(0.0005) / sqrt(len(z))
    low, high = stats.chi2.ppf([0.0005, 0.9995], len(z) - 1)
    assert low < float(z.var() * (len(z) - 1)) < high
    assert stats.kstest(z[:20_000].numpy(), "norm").pvalue > 1e-3


# --- the published formulas, computed by hand --------------------------------------------------------------------


@pytest.mark.parametrize(("g", "sigma"), [(0.0, 0.26348), (12.5, 0.952705), (25.0, 1.05538)])
def test_programming_sigma_by_hand(g, sigma):
    """0.26348 + 1.9650 / 2 - 1.1731 / 4 = 0.952705, and so on."""
    assert programming_sigma(f64(g)).item() == pytest.approx(sigma, rel=1e-12)
    assert programming_sigma(f64(2 * g), g_max=50.0).item() == pytest.approx(2 * sigma, rel=1e-12)


@pytest.mark.parametrize(
    ("g", "mean", "spread"),
    [(0.0, 0.1, 0.045), (25 * exp(-3), 0.0709, 0.0316), (25 * exp(-1.7), 0.05075, 0.01535), (25.0, 0.049, 0.008)],
)
def test_drift_exponents_by_hand(g, mean, spread):
    """At r = e^-3: 0.0155 * 3 + 0.0244 = 0.0709 and 0.0125 * 3 - 0.0059 = 0.0316; beyond that the bounds."""
    assert drift_exponent(f64(g), f64(0.0)).item() == pytest.approx(mean, rel=1e-12)
    assert drift_exponent(f64(g), f64(1.5)).item() == pytest.approx(mean + 1.5 * spread, rel=1e-12)
    assert drift_exponent(f64(g), f64(-9.0)).item() == pytest.approx(abs(mean - 9 * spread), rel=1e-12)


def test_read_sigma_by_hand():
    """At 1 s and r = 1: 25 * 0.0088 * sqrt(ln(1.00000025 / 5e-7)) = 0.22 * 3.80903 = 0.837987."""
    assert read_sigma(f64(25.0), f64(25.0), 1.0).item() == pytest.approx(0.22 * sqrt(log(1.00000025 / 5e-7)), rel=1e-12)
    assert read_sigma(f64(25.0), f64(25.0), 1.0).item() == pytest.approx(0.837987, rel=1e-5)
    few = 25 * 0.001  # 0.0088 * 0.001^-0.65 = 0.784 is above the bound of 0.2
    assert read_sigma(f64(3.0), f64(few), DAY).item() == pytest.approx(
        3 * 0.2 * sqrt(log((DAY + 250e-9) / 5e-7)), rel=1e-12
    )
    assert read_sigma(f64(3.0), f64(0.0), DAY).item() == pytest.approx(
        3 * 0.2 * sqrt(log((DAY + 250e-9) / 5e-7)), rel=1e-12
    )
    assert read_sigma(f64(25.0), f64(25.0), 0.0) == 0
    assert read_sigma(f64(25.0), f64(25.0), 250e-9) == 0


def test_drift_is_a_line_of_slope_minus_nu_in_logarithms():
    nu, times = f64(0.01, 0.05, 0.2), [0.0, 1.0, 60.0, DAY, 365 * DAY]
    g = torch.stack([drifted(f64(10.0), nu, t) for t in times])
    assert torch.allclose(g[0], f64(10.0, 10.0, 10.0))
    log_t = torch.tensor([(t + 20) / 20 for t in times], dtype=torch.float64).log()
    slopes = g.log().diff(dim=0) / log_t.diff()[:, None]
    assert torch.allclose(slopes, -nu.expand(4, 3), rtol=1e-10)
    assert drifted(f64(10.0), f64(0.05), DAY).item() == pytest.approx(10 * 4321**-0.05, rel=1e-12)


# --- moments -----------------------------------------------------------------------------------------------------


def test_moments_of_programming():
    target = f64(15.0).expand(20_000)
    standard_normal((programming_noise(target, xi(20_000)) - 15.0) / programming_sigma(f64(15.0)))
    small = programming_noise(f64(0.1).expand(20_000), xi(20_000))
    assert (small >= 0).all()
    clipped = stats.norm.cdf(-0.1 / programming_sigma(f64(0.1)).item())
    assert stats.binomtest(int((small == 0).sum()), 20_000, clipped).pvalue > 1e-3


def devices(chip):
    return chip[0].layer.array


def wide(n=20_000, value=0.5, dtype=torch.float64):
    """One layer whose weights are all ``value``, but for a first row of 1 that sets the scale."""
    layer = nn.Linear(n, 2, dtype=dtype)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = 1.0, value
    return nn.Sequential(layer)


def dense(inputs, outputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, outputs)).double()


def test_a_chip_has_the_moments_of_the_formulas():
    """Both devices of a pair are programmed: g+ around 12.5, g- around 0 and clipped there."""
    chip = deploy(wide(), PCM(0.0, read_noise=False, compensation="none"), seed=3)
    w = devices(chip).weight[1] * 25.0  # microsiemens
    s0, s = 0.26348, 0.952705
    mean = 12.5 - s0 / sqrt(2 * torch.pi)  # E max(s0 xi, 0)
    variance = s**2 + s0**2 * (0.5 - 1 / (2 * torch.pi))
    assert abs(w.mean() - mean) < stats.norm.isf(0.0005) * sqrt(variance / len(w))
    assert (
        abs(w.var() / variance - 1) < stats.norm.isf(0.0005) * sqrt(2 / len(w)) * 1.1
    )  # the clipped part is no normal


def test_drift_alone_of_a_chip():
    chip = deploy(wide(), PCM("1 day", "none", read_noise=False, programming_noise=False), seed=3)
    nu = -devices(chip).weight[0].log() / log(4321)  # the other device of each pair is at zero and stays there
    standard_normal((nu - 0.049) / 0.008)


def test_exponents_and_read_noise_go_by_the_target_not_by_what_was_programmed(monkeypatch):
    layer, seen = dense(6, 4), {}
    for name in ("drift_exponent", "read_sigma"):
        function = getattr(pcm, name)

        def watched(*given, name=name, function=function):
            seen[name] = given
            return function(*given)

        monkeypatch.setattr(pcm, name, watched)
    deploy(layer, PCM("1 day"), seed=3)
    target = to_pair(layer[0].weight, 25.0)
    assert torch.equal(seen["drift_exponent"][0], target)
    assert torch.equal(seen["read_sigma"][1], target)
    assert (seen["read_sigma"][0] < 25 * 4321**-0.03).all()  # what is read is what has drifted
    assert not torch.equal(seen["read_sigma"][0] == 0, target == 0)


def test_read_noise_of_a_chip():
    options = {"programming_noise": False, "drift": False, "compensation": "none"}
    chip = deploy(wide(), PCM("1 day", **options), seed=3)
    sigma = 0.0088 * 0.5**-0.65 * 12.5 * sqrt(log((DAY + 250e-9) / 5e-7)) / 25
    assert torch.allclose(devices(chip).variance[1], f64(sigma**2).expand(20_000))
    fixed = deploy(wide(), PCM("1 day", drawn="chip", **options), seed=3)
    standard_normal((devices(fixed).weight[1] - 0.5) / sigma)
    assert not devices(fixed).stochastic
    negative = devices(deploy(wide(value=-0.5), PCM("1 day", **options), seed=3)).variance
    assert torch.allclose(negative[1], f64(sigma**2).expand(20_000))


def test_the_uses_of_randomness_are_independent():
    """Correlations of programming noise, exponents and pattern over devices of one chip, and of the two devices of a pair."""
    kinds = [
        {"programming_noise": True, "drift": False, "read_noise": False},
        {"programming_noise": False, "drift": True, "read_noise": False},
        {"programming_noise": False, "drift": False, "read_noise": True},
    ]
    errors = [devices(deploy(wide(), PCM("1 day", "none", drawn="chip", **k), seed=3)).weight[1] for k in kinds]
    errors = torch.stack([(e - e.mean()) / e.std() for e in errors])
    correlation = (errors @ errors.T / errors.shape[1]).triu(1)
    assert correlation.abs().max() < stats.norm.isf(0.0005 / 3) / sqrt(20_000)


# --- compensation ------------------------------------------------------------------------------------------------


def test_compensation_factors_by_hand():
    before, after = f64(1.0, -2.0, 3.0, 2.0).view(2, 2), f64(1.0, -1.0, 1.5, 0.5).view(2, 2)
    assert compensation_factor(before, after).item() == 2.0  # 8 / 4
    assert compensation_factor(before, after, "column").flatten().tolist() == [1.5, 2.5]
    assert compensation_factor(before, after, "none").item() == 1.0
    assert compensation_factor(before, torch.zeros(2, 2, dtype=torch.float64)).item() == 1.0
    with pytest.raises(ValueError, match=r"compensation must be one of none, global, column"):
        compensation_factor(before, after, "row")


@pytest.mark.parametrize("compensation", ["global", "column"])
@pytest.mark.parametrize("time", ["1 h", "1 year"])
def test_compensation_restores_the_mean_magnitude(compensation, time):
    layer = dense(100, 50)
    options = {"read_noise": False, "programming_noise": False}
    chip = deploy(layer, PCM(time, compensation, **options), seed=1)
    none = deploy(layer, PCM(time, "none", **options), seed=1)
    axes = (0, 1) if compensation == "global" else 1
    magnitude = layer[0].weight.abs().sum(axes)
    assert torch.allclose(devices(chip).weight.abs().sum(axes), magnitude, rtol=1e-5)
    assert (devices(none).weight.abs().sum(axes) < 0.9 * magnitude).all()
    factor = devices(chip).weight / devices(none).weight  # one number a layer, or one a column
    assert torch.allclose(factor, factor.mean(axes, keepdim=True).expand_as(factor), rtol=1e-4)


def test_compensation_scales_the_read_noise_as_well():
    layer = dense(100, 50)
    chip, none = (deploy(layer, PCM("1 year", c), seed=1) for c in ("global", "none"))
    factor = devices(chip).weight.norm() / devices(none).weight.norm()
    assert factor > 1.2
    assert torch.allclose(devices(chip).variance, devices(none).variance * factor**2, rtol=1e-3)


def test_before_drift_there_is_nothing_to_compensate_and_nothing_to_read():
    layer = dense(20, 10)
    none, compensated = (deploy(layer, PCM(0.0, c), seed=1) for c in ("none", "column"))
    assert torch.equal(devices(none).weight, devices(compensated).weight)
    assert not torch.allclose(devices(none).weight, layer[0].weight)
    assert not is_stochastic(none)


def test_a_pattern_is_not_that_of_the_calibration_reads():
    """Else the mean magnitude would be restored to the last bit, noise and all."""
    layer = dense(20, 10)
    chip, start = (deploy(layer, PCM(t, drawn="chip"), seed=1) for t in ("1 day", 0.0))
    ratio = devices(chip).weight.abs().sum() / devices(start).weight.abs().sum()
    assert 1e-4 < abs(ratio - 1) < 0.1


def test_calibration_reads_are_noisy():
    layer = dense(5, 3)
    with_noise, without = (deploy(layer, PCM("1 day", read_noise=r), seed=1) for r in (True, False))
    ratio = devices(with_noise).weight / devices(without).weight
    assert torch.allclose(ratio, ratio.mean().expand(3, 5), rtol=1e-4)
    assert abs(ratio.mean() - 1) > 1e-6


# --- on networks -------------------------------------------------------------------------------------------------


def ann(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()


def snn(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Sequential(nn.Conv2d(1, 4, 3, padding=1), LIF(threshold=0.2), nn.Flatten(), nn.Linear(64, 3))
        return SpikingClassifier(Direct(4), network, MeanOutput()).double()


def images(n=4):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("model", [ann, snn])
@pytest.mark.parametrize("drawn", ["step", "inference", "chip"])
def test_chips_and_draws(model, drawn):
    model, x, backend = model(), images(), PCM("1 month", drawn=drawn)
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
    assert not torch.allclose(logits, model(x))


def test_the_same_chip_at_another_time_has_the_same_devices():
    layer = wide(1000)
    early, late = (
        devices(deploy(layer, PCM(t, "none", read_noise=False), seed=1)).weight[0] for t in ("1 h", "1 year")
    )
    assert torch.corrcoef(torch.stack((early, late)))[0, 1] > 0.5
    assert (late < early).double().mean() > 0.99


def test_all_effects_off_is_the_model():
    model, x = ann(), images()
    chip = deploy(model, PCM("1 year", programming_noise=False, drift=False, read_noise=False), seed=0)
    assert torch.allclose(chip(x), model(x), rtol=0, atol=1e-12)
    assert not is_stochastic(chip)


def test_it_goes_after_a_quantizer():
    model, x = ann(), images()
    chip = deploy(model, Chain(Uniform(bits=3), PCM(programming_noise=False, drift=False, read_noise=False)), seed=0)
    assert torch.allclose(chip(x), deploy(model, Uniform(bits=3), seed=0)(x), rtol=0, atol=1e-12)


def test_a_layer_of_zeros_stays_one():
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    nn.init.zeros_(layer[0].weight)
    assert torch.equal(deploy(layer, PCM("1 day"), seed=0)(torch.ones(1, 3)), torch.zeros(1, 2))


def test_it_is_registered_and_rebuilt_from_its_arguments():
    backend = PCM("1 day", "column", False, 20.0, False, True, "inference")
    names = ("time", "compensation", "read_noise", "g_max", "programming_noise", "drift", "drawn")
    again = BACKENDS["PCM"](**{name: getattr(backend, name) for name in names})
    x = images()
    assert torch.equal(deploy(ann(), again, seed=0)(x), deploy(ann(), backend, seed=0)(x))
    assert "time='1 day'" in repr(backend)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"time": -1}, ValueError, "time must be in"),
        ({"time": "1 parsec"}, ValueError, "the unit of time"),
        ({"compensation": "globl"}, ValueError, r"compensation must be one of .*did you mean 'global'"),
        ({"read_noise": 1}, TypeError, "read_noise must be True or False"),
        ({"g_max": 0.0}, ValueError, "g_max must be .*microsiemens"),
        ({"g_max": inf}, ValueError, "g_max must be"),
        ({"programming_noise": "no"}, TypeError, "programming_noise"),
        ({"drift": None}, TypeError, "drift"),
        ({"drawn": "never"}, ValueError, "drawn must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        PCM(**arguments)


def test_weights_that_are_no_numbers_are_refused():
    model = ann()
    model[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        deploy(model, PCM(), seed=0)


@pytest.mark.parametrize("drawn", ["step", "chip"])
@pytest.mark.parametrize("kind", ["ANN", "SNN"])
def test_a_chip_is_saved_and_loaded_with_its_noise(tmp_path, drawn, kind):
    network = (Conv(3), Dense(4))
    model = ordinary(network, (1, 4, 4), 3) if kind == "ANN" else spiking(network, (1, 4, 4), 3, Direct(2))
    chip, x = deploy(model, PCM("1 day", drawn=drawn), seed=5), images().float()
    save(chip, tmp_path / "chip.safetensors")
    again = load(tmp_path / "chip.safetensors")
    with torch.no_grad(), draws(chip, 1), draws(again, 1):
        assert torch.equal(again(x), chip(x))
    assert is_stochastic(again) == (drawn == "step")
