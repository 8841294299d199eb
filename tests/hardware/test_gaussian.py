from math import log10, sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, GaussianNoise, deploy
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

DRAWN = ["step", "inference", "chip"]


def layer(seed=0, features=200):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, features)).double()


def inputs(n=50, seed=1):
    return torch.rand(n, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(backend, seed=0, key=0, n=50, features=200):
    """The exact product and the chip's, ``[n, features]``."""
    model, x = layer(features=features), inputs(n)
    chip = deploy(model, backend, seed=seed)
    with torch.no_grad(), draws(chip, key):
        return model(x), chip(x)


def standard_normal(z):
    """10,000 values and more; significance 0.001 for each of mean, deviation and shape."""
    z = z.flatten()
    assert abs(z.mean()) < stats.norm.isf(0.0005) / sqrt(len(z))
    assert abs(z.std() - 1) < stats.norm.isf(0.0005) / sqrt(2 * len(z))
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.001


@pytest.mark.parametrize("sigma", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("drawn", DRAWN)
def test_moments(drawn, sigma):
    sizes = {"n": 1, "features": 10_000} if drawn == "chip" else {}
    y, z = noisy(GaussianNoise(multiplicative=sigma, drawn=drawn), **sizes)
    standard_normal((z / y - 1) / sigma)
    y, z = noisy(GaussianNoise(additive=sigma, drawn=drawn), **sizes)
    standard_normal((z - y) / sigma)


def test_both_at_once_are_independent():
    """y (1 + a xi) + b xi' has variance (a y)^2 + b^2; were xi' = xi, it would be (a y + b)^2, larger for all y > 0."""
    y, z = noisy(GaussianNoise(multiplicative=0.3, additive=0.2), n=100)
    standard_normal(((z - y) / ((0.3 * y) ** 2 + 0.2**2).sqrt())[y > 0])


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_the_signal_to_noise_ratio_is_that_of_the_formula(sigma):
    y, z = noisy(GaussianNoise(multiplicative=sigma), n=200)
    ratio = 10 * log10(float((y**2).sum() / ((z - y) ** 2).sum()))
    weight = y**2 / (y**2).sum()  # sum of weight * xi^2 has variance 2 sum of weight^2
    tolerance = 10 / 2.302585 * stats.norm.isf(0.0005) * sqrt(2 * float((weight**2).sum()))
    assert abs(ratio + 20 * log10(sigma)) < tolerance
    assert tolerance < 0.2


def test_no_noise_is_no_change():
    y, z = noisy(GaussianNoise())
    assert torch.equal(y, z)
    assert not is_stochastic(deploy(layer(), GaussianNoise(), seed=0))


def spiking(noise, seed=0, T=5):
    """A layer that is fed the same at every step, so that what differs over time is the noise; and its outputs."""
    network = Sequential(layer(features=30)[0])
    return deploy(SpikingClassifier(Direct(T), network, MeanOutput()), noise, seed=seed)


def products(chip, key, sample_ids=None, x=None):
    """What the noisy layer gave, ``[T, B, 30]``."""
    seen = []
    hook = chip.network[0].register_forward_hook(lambda module, given, y: seen.append(y))
    with torch.no_grad(), draws(chip, key, sample_ids):
        chip(inputs(4) if x is None else x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
@pytest.mark.parametrize(
    ("drawn", "steps_equal", "forwards_equal"),
    [("step", False, False), ("inference", True, False), ("chip", True, True)],
)
def test_when_noise_is_drawn(kind, drawn, steps_equal, forwards_equal):
    chip = spiking(GaussianNoise(**{kind: 0.3}, drawn=drawn))
    one, again, other = products(chip, 1), products(chip, 1), products(chip, 2)
    assert torch.equal(one, again)
    assert all(torch.equal(one[0], y) == steps_equal for y in one[1:])
    assert torch.equal(one, other) == forwards_equal
    assert is_stochastic(chip) == (drawn != "chip")
    same_sample = inputs(1).expand(3, -1)
    noise = products(chip, 1, x=same_sample)
    assert torch.equal(noise[:, 0], noise[:, 1]) == (drawn == "chip")  # samples are independent, but on a fixed pattern


def test_without_a_key_each_forward_is_another_draw():
    chip, x = deploy(layer(), GaussianNoise(multiplicative=0.3), seed=0), inputs()
    assert not torch.equal(chip(x), chip(x))
    chip = deploy(layer(), GaussianNoise(multiplicative=0.3, drawn="chip"), seed=0)
    assert torch.equal(chip(x), chip(x))


def test_layers_of_one_chip_have_patterns_of_their_own():
    shared = layer(features=20)[0]
    chip = deploy(nn.Sequential(shared, nn.Identity(), shared), GaussianNoise(additive=0.5, drawn="chip"), seed=0)
    patterns = [chip[i](inputs(1)) - shared(inputs(1)) for i in (0, 2)]
    assert not torch.allclose(*patterns)


def test_two_noises_in_a_chain_are_two_noises():
    double = Chain(GaussianNoise(additive=0.3, drawn="chip"), GaussianNoise(additive=0.3, drawn="chip"))
    y, z = noisy(double, n=1, features=10_000)
    standard_normal((z - y) / (0.3 * sqrt(2)))  # a shared pattern would give 0.6


@pytest.mark.parametrize("drawn", DRAWN)
def test_noise_does_not_depend_on_the_batch(drawn):
    chip = spiking(GaussianNoise(multiplicative=0.3, additive=0.1, drawn=drawn))
    x, ids = inputs(8), torch.arange(8) + 5
    whole = products(chip, 1, ids, x)
    parts = [products(chip, 1, i, part) for part, i in zip(x.split(3), ids.split(3), strict=True)]
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    assert drawn == "chip" or not torch.allclose(products(chip, 1, ids + 1, x), whole)


@pytest.mark.parametrize("drawn", DRAWN)
def test_streaming_on_a_chip_is_the_forward_pass(drawn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Sequential(nn.Linear(20, 12), LIF(threshold=0.4), nn.Sequential(nn.Linear(12, 3)))
    backend = GaussianNoise(multiplicative=0.3, additive=0.1, drawn=drawn)
    chip = deploy(SpikingClassifier(Direct(6), network, MeanOutput()).double(), backend, seed=0)
    x = inputs(7)
    with torch.no_grad(), draws(chip, 3):
        logits = chip(x)
        *_, last = chip.stream(x)
    assert torch.allclose(last, logits, rtol=0, atol=1e-9)
    with torch.no_grad(), draws(chip, 4):
        assert torch.allclose(chip(x), logits) == (drawn == "chip")


@pytest.mark.parametrize("drawn", DRAWN)
def test_the_input_gradient_through_noise_is_exact(drawn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    chip = deploy(model, GaussianNoise(multiplicative=0.5, additive=0.2, drawn=drawn), seed=0)

    def logits(x):
        with draws(chip, 5):
            return chip(x)

    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logits, (x,))
    assert not torch.allclose(logits(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_product_is_kept(dtype):
    chip = deploy(layer().to(dtype), GaussianNoise(multiplicative=0.1, additive=0.1), seed=0)
    assert chip(inputs().to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"multiplicative": -0.1}, ValueError, "multiplicative"),
        ({"additive": float("nan")}, ValueError, "additive"),
        ({"additive": "0.1"}, TypeError, "additive"),
        ({"drawn": "stpe"}, ValueError, r"drawn must be one of .* \(did you mean 'step'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        GaussianNoise(**arguments)


def test_a_fixed_pattern_needs_a_chip():
    with pytest.raises(RuntimeError, match=r"hardware.deploy\(model"):
        GaussianNoise(additive=0.1, drawn="chip").read(torch.ones(1, 2, 3), 0)
