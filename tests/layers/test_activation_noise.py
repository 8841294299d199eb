"""Noise in proportion to the spread of each sample, with keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.layers import ActivationNoise, MeanOutput, OrdinaryActivationNoise, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

T, B = 3, 5
X = torch.randn(T, B, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
IDS = torch.tensor([40, 7, 3, 12, 9])


def noisy(layer, x, key=1, ids=IDS):
    with draws(layer, key, ids):
        return layer(x)


def test_noise_is_normal_with_the_spread_of_each_sample():
    """z = (y - x) / (a std(x)) is standard normal: mean and mean square within five standard errors, n = 60,000."""
    x = torch.randn(2, 3, 10_000, generator=torch.Generator().manual_seed(1)).double()
    x = x * torch.tensor([0.1, 1.0, 30.0]).double()[:, None] + 5.0
    z = (noisy(ActivationNoise(0.3), x, ids=None) - x) / (0.3 * x.std(2, correction=0, keepdim=True))
    assert abs(z.mean(2)).max() < 5 / math.sqrt(10_000)
    assert abs(z.square().mean(2) - 1).max() < 5 * math.sqrt(2 / 10_000)
    assert abs((z[0] * z[1]).mean()) < 5 / math.sqrt(30_000)  # steps have draws of their own
    assert abs((z[:, 0] * z[:, 1]).mean()) < 5 / math.sqrt(20_000)


def test_the_equation():
    for layer, x in ((ActivationNoise(0.2), X), (OrdinaryActivationNoise(0.2), X[:1])):
        with draws(layer, 1, IDS):
            xi = getattr(layer, "_noise", layer).normal(x.shape)
            y = layer(x) if len(x) > 1 else layer(x[0])[None]
        sigma = torch.stack([torch.stack([sample.std(correction=0) for sample in step]) for step in x])
        assert torch.allclose(y, x + 0.2 * sigma[..., None, None, None] * xi)


@pytest.mark.parametrize("kind", [ActivationNoise, OrdinaryActivationNoise])
def test_a_sample_does_not_depend_on_its_batch(kind):
    layer, batch = kind(0.5), 0 if kind is OrdinaryActivationNoise else 1
    x = X[0] if batch == 0 else X
    y, order = noisy(layer, x), torch.tensor([3, 0])
    some = noisy(layer, x.index_select(batch, order), ids=IDS[order])
    assert torch.allclose(some, y.index_select(batch, order), rtol=1e-12)
    assert not torch.equal(noisy(layer, x, key=2), y)
    assert torch.equal(noisy(layer, x), y)


def test_streams_are_the_sequence():
    layer = ActivationNoise(0.5)
    whole = noisy(layer, X)
    with draws(layer, 1, IDS):
        state, steps = layer.initial_state(X[0]), []
        for x_t in X.unbind(0):
            y_t, state = layer.step(x_t, state)
            steps.append(y_t)
        first, state = layer.advance(X[:2], layer.initial_state(X[0]))
        last, state = layer.advance(X[2:], state)
        alike = layer.shown(X[0], T)
    assert torch.allclose(torch.stack(steps), whole, rtol=1e-12)
    assert torch.allclose(torch.cat((first, last)), whole, rtol=1e-12)
    assert state == T
    assert torch.equal(alike, noisy(layer, X[:1].expand(T, *X.shape[1:])))
    assert not torch.equal(alike[0], alike[1])


def test_in_a_network_images_that_are_alike_get_noise_of_their_own_at_each_step():
    model = SpikingClassifier(Direct(4), Sequential(nn.Flatten(), ActivationNoise(0.5), nn.Linear(32, 2)), MeanOutput())
    with draws(model, 3):
        logits = model.outputs(X[0].sigmoid().float())
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("kind", [ActivationNoise, OrdinaryActivationNoise])
def test_modes(kind):
    x = X[0] if kind is OrdinaryActivationNoise else X
    layer = kind(0.3, 0.0)
    assert is_stochastic(layer)
    assert not torch.equal(layer(x), x)
    layer.eval()
    assert not is_stochastic(layer)
    assert torch.equal(layer(x), x)
    quiet = kind(0.0, 0.3)
    assert torch.equal(quiet(x), x)
    assert not torch.equal(quiet.eval()(x), x)
    same = kind(0.3)
    y = noisy(same, x)
    assert torch.equal(noisy(same.eval(), x), y)
    twice = noisy(kind(0.6), x)
    assert torch.allclose(twice - x, 2 * (y - x))


def test_the_gradient_is_that_of_the_equation():
    layer = OrdinaryActivationNoise(0.4)

    def run(x):
        return noisy(layer, x)

    assert torch.autograd.gradcheck(run, X[0, :, :, :2, :2].clone().requires_grad_())


def test_a_constant_sample_has_no_noise_and_a_finite_gradient():
    x = torch.cat((torch.full((1, 2, 3), 2.0), torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(1))))
    x = x.requires_grad_()
    y = noisy(OrdinaryActivationNoise(1.0), x, ids=IDS[:2])
    assert torch.equal(y[0], x[0])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient[0], torch.ones(2, 3))
    assert gradient.isfinite().all()


def test_a_spiking_network_that_is_silent_still_learns():
    model = SpikingClassifier(
        Direct(2), Sequential(nn.Flatten(), nn.Linear(4, 3), LIF(), ActivationNoise(0.1), nn.Linear(3, 2)), MeanOutput()
    )
    with torch.no_grad():
        model.network[1].weight.zero_()
        model.network[1].bias.zero_()
    model(torch.zeros(2, 1, 2, 2)).sum().backward()
    assert model.network[1].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1,), r"amount must be in \[0, inf\], got -0.1"),
        ((0.1, float("nan")), "eval_amount must be in"),
        (("a",), "amount"),
    ],
)
def test_bad_arguments(arguments, message):
    for kind in (ActivationNoise, OrdinaryActivationNoise):
        with pytest.raises((TypeError, ValueError), match=message):
            kind(*arguments)


def test_what_has_no_spread_is_refused():
    with pytest.raises(ValueError, match="at least one dimension besides time and batch"):
        OrdinaryActivationNoise(0.1)(torch.rand(3))
    with pytest.raises(ValueError, match="at least one time step"):
        ActivationNoise(0.1)(torch.rand(0, 3, 2))
