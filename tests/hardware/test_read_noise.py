from math import sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import Array, Backend, Chain, GaussianNoise, deploy
from snnrobust.hardware.read_noise import NoisyArray, plain
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

DRAWN = ["step", "inference"]


class Noisy(Backend):
    """Weights whose noise has the deviation ``share`` times their magnitude."""

    def __init__(self, drawn="step", share=0.3):
        super().__init__()
        self.drawn, self.share = drawn, share

    def program(self, array):
        return NoisyArray(array.weight, array.operation, (self.share * array.weight).square(), self.drawn)


def made(module, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module().double()


LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1, bias=False), (2, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 5, 5)),
    "reflected": (lambda: nn.Conv2d(1, 2, 3, padding=2, padding_mode="reflect"), (1, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, dilation=2), (1, 3, 3, 3)),
}


def drawn_products(layer, x, drawn, n, share=0.3):
    """The noise of ``n`` independent draws of one input, ``[n, T, *]``; ``x`` is ``[T, *]``."""
    backend = Noisy(drawn, share)
    array = backend.program(Array(layer.weight, deployed_operation(layer)))
    with torch.no_grad(), draws(array, 7):
        many = x[:, None].expand(-1, n, *x.shape[1:])
        return (array.product(many, layer.bias, 0) - array.operation(x, layer.weight, layer.bias)[:, None]).transpose(
            0, 1
        )


def deployed_operation(layer):
    return deploy(nn.Sequential(layer), Chain(), seed=0)[0].layer.array.operation


def exact_covariance(layer, x, share, drawn):
    """Of all outputs, by the Jacobian with respect to the weights: float64 ``[T * out, T * out]``."""
    x = x.reshape(len(x), *x.shape[1:])
    operation = deployed_operation(layer)
    jacobian = torch.autograd.functional.jacobian(lambda w: operation(x, w, None).flatten(), layer.weight.detach())
    jacobian = jacobian.flatten(1) * (share * layer.weight.detach().abs()).flatten()
    covariance = jacobian @ jacobian.T
    return covariance if drawn == "inference" else covariance.diag().diag()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("drawn", ["step", "inference"])
def test_the_noise_of_outputs_has_the_covariance_of_noisy_weights(name, drawn):
    """Whitened by the exact covariance it is standard normal, and uncorrelated: chi-square and KS at 1e-3."""
    make, shape = LAYERS[name]
    layer, n = made(make), 1500
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = drawn_products(layer, x, drawn, n).flatten(1)
    covariance = exact_covariance(layer, x, 0.3, drawn)
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > 1e-9 * values.max()
    assert (noise @ vectors[:, ~keep]).abs().max() < 1e-6 if (~keep).any() else True
    z = (noise @ vectors[:, keep]) / values[keep].sqrt()
    assert abs(z.mean()) < stats.norm.isf(0.0005) / sqrt(z.numel())
    low, high = stats.chi2.ppf([0.0005, 0.9995], z.numel())
    assert low < float((z**2).sum()) < high
    assert stats.kstest(z.flatten()[:20_000].numpy(), "norm").pvalue > 1e-3
    products = (z.T @ z / sqrt(n)).triu(1)  # off the diagonal about N(0, 1) each
    pairs = products[torch.ones_like(products).triu(1) > 0]
    assert pairs.abs().max() < stats.norm.isf(0.0005 / len(pairs))


def network(drawn, share=0.3):
    model = made(
        lambda: SpikingClassifier(
            Direct(6), Sequential(nn.Linear(20, 12), LIF(threshold=0.4), nn.Linear(12, 3)), MeanOutput()
        )
    )
    return model, deploy(model, Noisy(drawn, share), seed=0)


def inputs(n, seed=1):
    return torch.rand(n, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("drawn", DRAWN)
def test_noise_does_not_depend_on_the_batch_and_streams(drawn, monkeypatch):
    model, chip = network(drawn)
    x, ids = inputs(8), torch.arange(8) + 5
    with torch.no_grad():
        with draws(chip, 1, ids):
            whole = chip(x)
            *_, streamed = chip.stream(x)
        monkeypatch.setattr("snnrobust.hardware.read_noise.CHUNK", 500)  # two samples at a time
        parts = []
        for part, of in zip(x.split(3), ids.split(3), strict=True):
            with draws(chip, 1, of):
                parts.append(chip(part))
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-9)
    assert torch.allclose(streamed, whole, rtol=0, atol=1e-9)
    assert not torch.allclose(whole, model(x))
    assert is_stochastic(chip)


@pytest.mark.parametrize(("drawn", "steps_equal"), [("step", False), ("inference", True)])
def test_when_it_is_drawn_in_a_spiking_network(drawn, steps_equal):
    chip = deploy(
        made(lambda: SpikingClassifier(Direct(4), Sequential(nn.Linear(20, 9)), MeanOutput())), Noisy(drawn), seed=0
    )
    seen = []
    chip.network[0].register_forward_hook(lambda module, given, y: seen.append(y))
    with torch.no_grad():
        for key in (1, 1, 2):
            with draws(chip, key):
                chip(inputs(1).expand(2, -1))
    one, again, other = seen
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert all(torch.allclose(one[0], y, rtol=0, atol=1e-12) == steps_equal for y in one[1:])
    assert not torch.allclose(one[:, 0], one[:, 1])  # samples are independent


@pytest.mark.parametrize("drawn", DRAWN)
def test_the_input_gradient_is_exact_for_the_noise_drawn(drawn):
    model = made(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)))
    chip = deploy(model, Noisy(drawn, 0.8), seed=0)

    def logits(x):
        with draws(chip, 5):
            return chip(x)

    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logits, (x,))
    assert torch.equal(logits(x), logits(x.detach()))  # a value does not depend on gradients


def test_an_input_of_zeros_has_no_noise_and_a_finite_gradient():
    chip = deploy(nn.Sequential(made(lambda: nn.Linear(4, 3))), Noisy(), seed=0)
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = chip(x)
    y.sum().backward()
    assert torch.equal(y, chip[0].layer.bias.expand(2, 3))
    assert torch.allclose(x.grad, chip[0].layer.array.weight.sum(0).expand(2, 4))


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(drawn, dtype):
    chip = deploy(nn.Sequential(nn.Linear(4, 3)).to(dtype), Noisy(drawn), seed=0)
    assert chip(torch.rand(2, 4, dtype=dtype)).dtype == dtype


def test_no_variance_is_no_noise():
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.rand(2, 4)
    assert torch.equal(deploy(model, Noisy(share=0.0), seed=0)(x), model(x))


def test_a_second_array_is_refused():
    class Second(Backend):
        def program(self, array):
            return plain(array, self)

    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(
        TypeError,
        match="Second programs plain weights, and a backend before it in the Chain has made a NoisyArray of the layer",
    ):
        deploy(model, Chain(Noisy(), Second()), seed=0)
    deploy(model, Chain(GaussianNoise(additive=0.1), Second(), Noisy()), seed=0)
