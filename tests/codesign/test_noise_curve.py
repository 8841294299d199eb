"""Accuracy over noise: closed forms of linear classifiers, keyed draws, bad input."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.codesign import NoiseCurve, accuracy_over_noise
from snnrobust.draws import keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import GaussianNoise
from snnrobust.models import Dense, ordinary, spiking


def linear(classes=2, features=3):
    """W and inputs in float64; y is what W says."""
    with keyed(1):
        model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).double()
        x = torch.randn(400, features, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def test_two_classes_have_the_accuracy_of_the_closed_form():
    r"""E acc = mean Phi(margin / (sqrt 2 sigma)): the noise of two logits. Each point within 4 standard errors, over draws."""
    model, x, y = linear()
    z = model(x).detach().numpy()
    margin = np.abs(z[:, 0] - z[:, 1])
    curve = accuracy_over_noise(model, (x, y), [0.1, 0.3, 1.0, 3.0], chips=20)
    assert curve.sigmas == (0.0, 0.1, 0.3, 1.0, 3.0)
    assert curve.clean == 1.0
    for sigma, found in zip(curve.sigmas[1:], curve.accuracy[1:], strict=True):
        p = stats.norm.cdf(margin / (np.sqrt(2) * sigma))
        error = np.sqrt((p * (1 - p)).sum() / 20) / len(p)
        assert abs(found - p.mean()) < 4 * error, sigma


def test_the_noise_is_on_the_product_before_the_normalisation():
    """Behind y / s of a fixed normalisation the noise is sigma / s: weights and s grow together, the answer stays."""
    model, x, y = linear()
    margin = np.abs(np.subtract(*model(x).detach().numpy().T))
    found = []
    for scale in (1.0, 10.0):
        norm = nn.BatchNorm1d(2, eps=0.0).double().eval()
        norm.running_var.fill_(scale**2)
        layer = nn.Linear(3, 2).double()
        with torch.no_grad():
            layer.weight.copy_(model[1].weight * scale)
            layer.bias.copy_(model[1].bias * scale)
        behind = nn.Sequential(nn.Flatten(), layer, norm)
        assert torch.equal(behind(x).argmax(1), y)
        found.append(accuracy_over_noise(behind, (x, y), [1.0], chips=20).accuracy[1])
        p = stats.norm.cdf(margin * scale / np.sqrt(2))
        assert abs(found[-1] - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum() / 20) / len(p)
    assert found[1] > found[0] + 0.1


def test_of_a_spiking_network_the_noise_is_fresh_at_each_step():
    """The readout is the mean of v_t = 0.95 v_(t-1) + y_t over 16 steps: weights of the noise by hand."""
    with keyed(3):
        model = spiking((), (3,), 2, Direct(16), norm="none").double()
        x = torch.rand(400, 3, dtype=torch.float64)
    z = model(x).detach()
    margin = (z[:, 0] - z[:, 1]).abs().numpy()
    weights = np.array([sum(0.95**i for i in range(16 - s)) / 16 for s in range(16)])
    sigma = float(margin.mean()) / np.sqrt(2 * (weights**2).sum())
    curve = accuracy_over_noise(model, (x, z.argmax(1)), [sigma], chips=20)
    p = stats.norm.cdf(margin / (sigma * np.sqrt(2 * (weights**2).sum())))
    assert abs(curve.accuracy[1] - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum() / 20) / len(p)


def test_results_depend_on_seed_and_sample_only():
    with keyed(0):
        model = ordinary((Dense(8),), (1, 4, 4), 5)
        x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 5
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    whole = accuracy_over_noise(model, (x, y), [0.5, 2.0], chips=2, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    parts = accuracy_over_noise(model, (x, y), [2.0, 0.5], chips=2, seed=3, batch_size=7)
    assert np.array_equal(whole.right, parts.right)
    fewer = accuracy_over_noise(model, (x, y), [2.0], chips=1, seed=3, n=11)
    assert np.array_equal(fewer.right[1, 0], whole.right[2, 0, :11])
    assert not np.array_equal(whole.right, accuracy_over_noise(model, (x, y), [0.5, 2.0], chips=2, seed=4).right)
    assert not np.array_equal(whole.right[2, 0], whole.right[2, 1])
    assert whole.classes == 5


def test_another_noise_and_one_for_each_layer():
    with keyed(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        x = torch.rand(60, 1, 4, 4)
    y = model(x).argmax(1)

    def first_layer(sigma):
        return {"1": GaussianNoise(additive=1e3 * sigma), "3": GaussianNoise()}

    only = accuracy_over_noise(model, (x, y), [1.0], noise=first_layer)
    assert only.clean == 1.0
    assert only.accuracy[1] < 0.6
    weak = accuracy_over_noise(model, (x, y), [1.0], noise=lambda s: GaussianNoise(multiplicative=1e-9 * s))
    assert weak.accuracy[1] == 1.0


def test_intervals_are_over_samples():
    right = np.zeros((2, 4, 50), dtype=bool)
    right[0, :, :40] = True  # all four chips agree: Wilson for 40 of 50, not of 200
    right[1] = True
    curve = NoiseCurve((0.0, 1.0), right, 10)
    low, high = curve.intervals()[0]
    assert (low, high) == pytest.approx((0.6696, 0.8876), abs=1e-4)
    assert curve.accuracy.tolist() == [0.8, 1.0]
    assert curve.chance == 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"sigmas": [-1.0]}, ValueError, "sigmas must be"),
        ({"sigmas": [0.1, 0.1]}, ValueError, "ascending, each once"),
        ({"sigmas": []}, ValueError, "at least one strength"),
        ({"sigmas": [float("nan")]}, ValueError, "sigmas must be"),
        ({"chips": 0}, ValueError, "chips must be at least 1"),
        ({"noise": 0.1}, TypeError, "noise must be a function"),
        ({"noise": lambda sigma: sigma}, TypeError, "backend must be a hardware Backend"),
        ({"noise": lambda sigma: {"nowhere": GaussianNoise()}}, ValueError, "backends must be one of 1"),
        ({"n": 401}, ValueError, "only 400"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    model, x, y = linear()
    with pytest.raises(error, match=words):
        accuracy_over_noise(model, (x, y), **{"sigmas": [1.0], **arguments})


@pytest.mark.parametrize(
    ("sigmas", "right", "classes", "words"),
    [
        ((0.5, 1.0), np.ones((2, 1, 3), bool), 2, "begin with 0"),
        ((0.0, 1.0), np.ones((2, 3), bool), 2, "right must be bool"),
        ((0.0, 1.0), np.ones((3, 1, 3), bool), 2, "for 2 sigmas"),
        ((0.0, 1.0), np.ones((2, 1, 3)), 2, "float64"),
        ((0.0, 1.0), np.ones((2, 1, 0), bool), 2, "right must be"),
        ((0.0, 1.0), np.ones((2, 1, 3), bool), 1, "classes must be at least 2"),
    ],
)
def test_a_curve_that_is_none_is_refused(sigmas, right, classes, words):
    with pytest.raises(ValueError, match=words):
        NoiseCurve(sigmas, right, classes)
