"""The recurrent layer: by hand, against snnTorch, its neuron and its errors."""

from __future__ import annotations

import re

import pytest
import snntorch
import torch
from snntorch.surrogate import atan
from torch import nn

from snnrobust.neurons import ALIF, IF, LIF, Recurrent
from snnrobust.neurons.surrogate import ATan, Triangle, override


def test_by_hand():
    """W = [[0, .5], [-1, 0]]. h: (1, 0), s=(1, 0) | (0, 1.5-1=.5) | (.25, .25+1=1.25), s=(0, 1), v=(.25, .25)
    | (.125+.375+.5=1, .125), s=(1, 0)."""
    layer = Recurrent(2, LIF(0.5))
    with torch.no_grad():
        layer.recurrent.weight.copy_(torch.tensor([[0.0, 0.5], [-1.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.5], [0.25, 1.0], [0.375, 0.0]])[:, None]
    assert layer(x)[:, 0].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]
    state, potentials = layer.initial_state(x[0]), []
    for x_t in x:
        s, state = layer.step(x_t, state)
        assert torch.equal(state.spikes, s)
        potentials.append(state.neuron.v[0].tolist())
    assert potentials == [[0, 0], [0, 0.5], [0.25, 0.25], [0, 0.125]]


def test_without_recurrent_weights_it_is_its_neuron():
    x = torch.rand(12, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = Recurrent(4, ALIF())
    nn.init.zeros_(layer.recurrent.weight)
    assert torch.equal(layer(x), ALIF()(x))


def test_its_neuron_is_a_copy_and_lif_by_default():
    neuron = LIF(0.5)
    layer = Recurrent(4, neuron)
    assert layer.neuron is not neuron
    neuron.decay = 0.9
    assert layer.neuron.decay == 0.5
    assert type(Recurrent(4).neuron) is LIF
    assert layer.recurrent.bias is None


def test_override_reaches_its_neuron():
    layer = Recurrent(3, IF())
    with override(layer, Triangle()):
        assert layer.neuron.surrogate == Triangle()
    assert layer.neuron.surrogate == ATan()


@pytest.mark.parametrize(
    ("decay", "delay", "detach_reset"),
    [(1.0, True, True), (0.9, False, False)],  # as for Leaky: see test_lif.py
)
def test_equals_snntorch_rleaky(decay, delay, detach_reset):
    torch.manual_seed(0)
    ours = Recurrent(6, LIF(decay, 1.0, "soft", ATan(2.0), detach_reset)).double()
    node = snntorch.RLeaky(beta=decay, linear_features=6, spike_grad=atan(2.0), reset_delay=delay).double()
    with torch.no_grad():
        node.beta.fill_(decay)
        node.recurrent.weight.copy_(ours.recurrent.weight)
        node.recurrent.bias.zero_()

    def theirs(x):
        s = h = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, h = node(x_t, s.double(), h)  # their spikes are always float32
            spikes.append(s)
        return torch.stack(spikes).double()

    generator = torch.Generator().manual_seed(1)
    x = torch.empty(20, 4, 6, dtype=torch.float64).uniform_(-0.2, 0.6, generator=generator)
    weights = torch.empty_like(x).uniform_(-1, 1, generator=generator)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, expected = ours(a), theirs(b)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)  # theirs passes through float32
    torch.testing.assert_close(ours.recurrent.weight.grad, node.recurrent.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Recurrent(0), ValueError, "features must be at least 1, got 0"),
        (lambda: Recurrent(2.0), TypeError, "features must be an integer, got 2.0"),
        (lambda: Recurrent(3, nn.ReLU()), TypeError, "neuron must be a spiking neuron such as LIF(), got ReLU()"),
        (lambda: Recurrent(3, LIF), TypeError, "neuron must be a spiking neuron such as LIF(), got <class"),
        (
            lambda: Recurrent(3)(torch.ones(4, 2, 5)),
            ValueError,
            "Recurrent expects 3 features in [B, F], got shape (2, 5)",
        ),
        (lambda: Recurrent(3)(torch.ones(4, 2, 3, 1)), ValueError, "Recurrent expects 3 features in [B, F], got shape"),
        (lambda: Recurrent(3)(torch.ones(4, 3)), ValueError, "x must be [T, B, ...]"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_a_stream_of_another_width_is_refused():
    layer = Recurrent(3)
    with pytest.raises(ValueError, match=r"Recurrent expects 3 features in \[B, F\], got shape \(2, 1\)"):
        layer.step(torch.ones(2, 1), layer.initial_state(torch.ones(2, 3)))
