"""``Chunked``: less memory, and nothing else is different."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnrobust import SpikingClassifier, models
from snnrobust.draws import draws
from snnrobust.encoders import Poisson
from snnrobust.layers import BNTT, TDBN, TEBN, Chunked, Concat, MeanOutput, Residual, Sequential
from snnrobust.models import checkpoint, description
from snnrobust.neurons import ALIF, LIF, PLIF, CuBaLIF, Recurrent, surrogate

T, B = 10, 3
NETWORKS = {
    "plain": lambda: [nn.Linear(6, 5), LIF(0.8), nn.Linear(5, 4), LIF(0.8, refractory=2)],
    "bntt": lambda: [nn.Linear(6, 5), BNTT(5, T), LIF(0.8), nn.Linear(5, 4), BNTT(4, T)],
    "residual": lambda: [nn.Linear(6, 5), LIF(), Residual(Sequential(nn.Linear(5, 5), LIF(0.8))), LIF(0.5)],
    "concat": lambda: [Concat(Sequential(LIF(0.7), nn.Linear(6, 2))), nn.Linear(8, 3)],
    "parametric": lambda: [nn.Linear(6, 5), PLIF(0.8), nn.Linear(5, 4), ALIF(0.9), nn.Linear(4, 4), CuBaLIF(0.5, 0.9)],
    "recurrent": lambda: [nn.Linear(6, 5), Recurrent(5, LIF(0.8)), nn.Linear(5, 4)],
    "lstm": lambda: [nn.LSTM(6, 5, num_layers=2), nn.Linear(5, 4), LIF(0.8)],
    "nested": lambda: [Sequential(nn.Linear(6, 5), nn.Sequential(LIF(0.8))), Sequential(nn.Linear(5, 4), LIF(0.8))],
    "no memory": lambda: [nn.Linear(6, 4), nn.ReLU()],
}


def _network(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Sequential(*NETWORKS[name]()).double()


def _input():
    return (torch.rand(T, B, 6, generator=torch.Generator().manual_seed(1)).double() * 3).requires_grad_()


def _gradients(y, leaves):
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return torch.autograd.grad((y * weights).sum(), leaves)


@pytest.mark.parametrize("steps", [1, 3, 4, 9, T, T + 5, None])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_those_of_the_network(name, training, steps):
    network = _network(name).train(training)
    chunked = Chunked(copy.deepcopy(network), steps)
    x = _input()
    y, expected = chunked(x), network(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    found = _gradients(y, [x, *chunked.parameters()])
    torch.testing.assert_close(found, _gradients(expected, [x, *network.parameters()]), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(chunked.network.state_dict(), network.state_dict(), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(chunked.eval()(x), network.eval()(x), rtol=1e-10, atol=1e-12)


def test_two_forwards_before_a_backward():
    """As when clean and adversarial samples share a loss: running statistics are put back without harm to what was saved."""
    chunked, network = Chunked(_network("bntt"), 3), _network("bntt")
    x = _input()
    leaves = [[x, *module.parameters()] for module in (chunked, network)]
    losses = [module(x).square().sum() + module(x * 0.5).square().sum() for module in (chunked, network)]
    found = [torch.autograd.grad(loss, group) for loss, group in zip(losses, leaves, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(chunked.network.state_dict(), network.state_dict())


def test_float32_runs_fused_kernels_all_the_same():
    x = torch.rand(T, B, 2, 6, 6).requires_grad_()
    network = Sequential(
        nn.Conv2d(2, 4, 3), BNTT(4, T), LIF(0.8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4), LIF(0.9)
    )
    network.eval()
    chunked = Chunked(copy.deepcopy(network), 3)
    for given in (x, x[0].expand(T, *x.shape[1:])):
        y, expected = chunked(given), network(given)
        assert (y != expected).float().mean() < 0.02
        if torch.equal(y, expected):
            found = _gradients(y, [x, *chunked.parameters()])
            for a, b in zip(found, _gradients(expected, [x, *network.parameters()]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * (1 + float(b.abs().max())))


# --- draws -----------------------------------------------------------------------------------------------------


def test_draws_are_the_same_when_the_gradient_is_taken_later():
    """Dropout draws again in the backward pass: as it did, though the context has been left and the generator has moved."""
    network = Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 4)).double()
    chunked, x = Chunked(network, 3), _input()
    first = network[0]
    with draws(chunked, 5):
        y = chunked(x)
    torch.rand(7)
    (found,) = torch.autograd.grad(y.sum(), x)
    with draws(chunked, 5):
        again = chunked(x)
        (inside,) = torch.autograd.grad(again.sum(), x)
    assert torch.equal(y, again)
    assert torch.equal(found, inside)
    with draws(chunked, 6):
        assert not torch.equal(y, chunked(x))
    # it is the gradient of what was computed: the network is linear in x under given masks, but for its biases
    with torch.no_grad(), draws(chunked, 5):
        base = chunked(torch.zeros_like(x))
    torch.testing.assert_close((found * x).sum(), (y - base).sum())
    assert first.weight.grad is None


@pytest.mark.parametrize("keyed", [False, True])
def test_without_a_key_the_gradient_is_that_of_the_output(keyed):
    chunked = Chunked(Sequential(nn.Dropout(0.5), nn.Linear(6, 4, bias=False)).double(), 3)
    x = _input()
    before = torch.random.get_rng_state()
    if keyed:
        with draws(chunked, 1):
            y = chunked(x)
    else:
        y = chunked(x)
    after = torch.random.get_rng_state()
    assert torch.equal(before, after) or not keyed
    torch.rand(3)
    (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((found * x).sum(), y.sum())
    masks = (found == 0).flatten(1)
    assert len({tuple(mask.tolist()) for mask in masks}) > T // 2  # chunks do not share one


def test_in_a_classifier_with_a_random_encoder():
    """Logits and gradients under a key, a stream, and another surrogate for an attack."""
    network = Sequential(nn.Flatten(), nn.Linear(16, 8), BNTT(8, T), LIF(0.8), nn.Linear(8, 3))
    model = SpikingClassifier(Poisson(T), network, MeanOutput()).eval()
    chunked = SpikingClassifier(Poisson(T), Chunked(copy.deepcopy(network), 3), MeanOutput()).eval()
    x = torch.rand(B, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for m in (model, chunked):
        with draws(m, 7):
            logits = m(x)
            stream = list(m.stream(x))
        assert (stream[-1] - logits).abs().max() < 1e-5
        found.append((logits, torch.autograd.grad(logits.square().sum(), x)[0]))
    torch.testing.assert_close(*found)
    steep = surrogate.ATan(8.0)
    grads = []
    for m in (model, chunked):
        with surrogate.override(m, steep), draws(m, 7):
            logits = m(x)
        grads.append(torch.autograd.grad(logits.square().sum(), x)[0])  # the context has been left
    torch.testing.assert_close(*grads)
    assert not torch.allclose(grads[0], found[0][1])
    grads = []
    for m in (model, chunked):
        with surrogate.override(m, surrogate.SpikeTime()), draws(m, 7):
            logits = m(x)
        grads.append(torch.autograd.grad(logits.square().sum(), x)[0])
    torch.testing.assert_close(*grads)
    assert model.network[3].surrogate == chunked.network.network[3].surrogate == surrogate.ATan(2.0)


def test_modes_are_those_of_the_forward():
    chunked = Chunked(_network("bntt"), 3)
    x = _input()
    (expected,) = _gradients(chunked(x), [x])
    y = chunked(x)
    chunked.eval()
    torch.testing.assert_close(_gradients(y, [x])[0], expected)
    assert not any(m.training for m in chunked.modules())


# --- memory ----------------------------------------------------------------------------------------------------


def _saved(module, x):
    """Bytes kept for the backward pass once the forward pass is over."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(kept.values())


def test_it_keeps_less():
    network = Sequential(nn.Linear(6, 200), LIF(0.8), nn.Linear(200, 200), LIF(0.8), nn.Linear(200, 200), LIF(0.8))
    x = torch.rand(100, 4, 6, requires_grad=True)
    whole, parts = _saved(network, x), _saved(Chunked(network), x)
    assert parts < whole / 3


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), TDBN(6), TEBN(6, T)])
def test_statistics_over_all_steps_are_refused_while_training(layer):
    chunked = Chunked(Sequential(layer, LIF()), 3)
    with pytest.raises(
        RuntimeError, match=rf"0 \({type(layer).__name__}\) normalises over all time steps while training"
    ):
        chunked(torch.rand(T, B, 6))
    x = torch.rand(T, B, 6)
    assert chunked(x[:3]).shape == (3, B, 6)  # a single chunk
    chunked.eval()
    torch.testing.assert_close(chunked(x), chunked.network(x))


def test_arguments():
    with pytest.raises(TypeError, match="network must be a temporal module such as Sequential, got Linear"):
        Chunked(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="network holds a readout"):
        Chunked(Sequential(nn.Linear(2, 2), MeanOutput()))
    for steps in (0, -1, 2.5, "3", True):
        with pytest.raises((TypeError, ValueError), match="steps must be"):
            Chunked(Sequential(LIF()), steps)
    assert repr(Chunked(LIF(), 3)).startswith("Chunked(\n  steps=3")
    with pytest.raises((TypeError, ValueError), match="x must be"):
        Chunked(LIF(), 3)(torch.rand(3))


def test_too_many_steps_for_a_layer():
    chunked = Chunked(Sequential(BNTT(6, 4), LIF()), 3)
    with pytest.raises(ValueError, match="BNTT was made for 4 time steps"):
        chunked(torch.rand(T, B, 6))


def test_a_second_derivative_is_refused():
    x = _input()
    (grad,) = torch.autograd.grad(Chunked(_network("plain"), 3)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


def test_a_hook_is_called_with_the_whole_sequence():
    network, shapes = _network("plain"), []
    network[1].register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    Chunked(network, 3)(_input()).sum().backward()
    assert shapes == [(T, B, 5)]


def test_a_chunk_inside_a_chunk():
    inner = _network("plain")
    x = _input()
    nested = Chunked(Sequential(Chunked(copy.deepcopy(inner), 2), nn.Linear(4, 2).double()), 4)
    y = nested(x)
    expected = nested.network[1](inner(x))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(_gradients(y, [x]), _gradients(expected, [x]))


@pytest.mark.parametrize("steps", [3, None])
def test_it_is_described_and_saved(steps, tmp_path):
    network = Sequential(nn.Linear(6, 8), BNTT(8, T), LIF(0.8), nn.Linear(8, 3))
    model = SpikingClassifier(Poisson(T), Chunked(network, steps), MeanOutput()).eval()
    checkpoint.save(model, tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors")
    assert isinstance(loaded.network, Chunked)
    assert loaded.network.steps == steps
    x = torch.rand(B, 6)
    logits = []
    for m in (model, loaded):
        with draws(m, 1), torch.no_grad():
            logits.append(m(x))
    assert torch.equal(*logits)
    built = description.build(description.describe(model.network))
    assert repr(built) == repr(model.network)
    copy.deepcopy(model)
