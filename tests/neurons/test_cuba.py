"""The leaky integrator and the current-based neuron: by hand, gradcheck, snnTorch."""

from __future__ import annotations

import pytest
import snntorch
import torch
from snntorch.surrogate import atan

from snnrobust.neurons import LIF, CuBaLIF, leaky_integral
from snnrobust.neurons.surrogate import ATan


def _column(*values):
    return torch.tensor(values).view(-1, 1, 1)


def _input(*shape, seed=0, low=-0.5, high=1.2):
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


# --- the integrator -------------------------------------------------------------------------------------------


def test_integral_by_hand():
    assert leaky_integral(_column(1.0, 0.0, 2.0, -1.0), 0.5).flatten().tolist() == [1.0, 0.5, 2.25, 0.125]
    assert leaky_integral(_column(1.0, 2.0, 3.0), 1.0).flatten().tolist() == [1.0, 3.0, 6.0]
    assert leaky_integral(_column(1.0, 2.0, 3.0), 0.0).flatten().tolist() == [1.0, 2.0, 3.0]


def test_integral_is_a_sum_of_powers():
    x, decay = _input(12, 3, 4), torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    lag = torch.arange(12)[:, None] - torch.arange(12)
    kernel = torch.where(lag[..., None] >= 0, decay ** lag.clamp(min=0)[..., None].double(), 0.0)
    torch.testing.assert_close(leaky_integral(x, decay), torch.einsum("tkc,kbc->tbc", kernel, x))


@pytest.mark.parametrize("shape", [(5, 2), (4, 2, 3), (3, 2, 3, 2), (1, 1, 3), (3, 0, 3)])
def test_integral_gradcheck(shape):
    x = _input(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: leaky_integral(x, 0.7), x)
    one = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(leaky_integral, (x, one))
    if len(shape) > 2:
        each = torch.tensor([0.2, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(leaky_integral, (x, each))
        assert torch.autograd.gradcheck(lambda decay: leaky_integral(x.detach(), decay), each)


def test_integral_of_views():
    x = _input(5, 4, 3)
    expected = leaky_integral(x, 0.7)
    assert torch.equal(leaky_integral(x.permute(2, 1, 0).contiguous().permute(2, 1, 0), 0.7), expected)
    still = x[:1].expand(5, -1, -1)
    assert torch.equal(leaky_integral(still, 0.7), leaky_integral(still.contiguous(), 0.7))


@pytest.mark.parametrize("decay", [-0.1, 1.1, torch.tensor(1.1), torch.tensor([0.5, -0.5, 0.5])])
def test_integral_refuses_leaks_outside_of_0_to_1(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\]"):
        leaky_integral(torch.ones(2, 2, 3), decay)


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 3).long()])
def test_integral_refuses_what_is_no_sequence(x):
    with pytest.raises((ValueError, TypeError), match=r"^x must be "):
        leaky_integral(x, 0.5)


# --- the neuron -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "x", "spikes", "potentials"),
    [
        # i: 1 | .5 | .25 | .125+.625=.75 | .375; h: 1, v=0 | .5 | .25+.25=.5 | .25+.75=1, v=0 | .375
        ({}, [1, 0, 0, 0.625, 0], [1, 0, 0, 1, 0], [0, 0.5, 0.5, 0, 0.375]),
        # the current goes on through the refractory step; i: 1 | .5 | .25 | .125+.875=1; h: 1, v=0 | 0 | .25 | 1.125
        ({"refractory": 1}, [1, 0, 0, 0.875], [1, 0, 0, 1], [0, 0, 0.25, 0.125]),
        # i: 1.5 | .75 | .375; h: 1.5, v=0 | .75 | .375+.375
        ({"reset": "hard"}, [1.5, 0, 0], [1, 0, 0], [0, 0.75, 0.75]),
    ],
)
def test_neuron_by_hand(arguments, x, spikes, potentials):
    neuron = CuBaLIF(0.5, 0.5, **arguments)
    assert neuron(_column(*map(float, x))).flatten().tolist() == spikes
    assert neuron.membrane(_column(*map(float, x))).flatten().tolist() == potentials


def test_no_synapse_is_lif():
    x = _input(12, 3, 4)
    assert torch.equal(CuBaLIF(0.0, 0.9)(x), LIF(0.9)(x))
    assert not torch.equal(CuBaLIF(0.5, 0.9)(x), LIF(0.9)(x))


@pytest.mark.parametrize(
    ("decay", "delay", "detach_reset"),
    [
        # Their i is ours, and the input is felt at once in both. By default they reset a step later and detached:
        # h_t = beta h_{t-1} + i_t - threshold s_{t-1}, which is ours without leak.
        (1.0, True, True),
        # With reset_delay=False the reset is ours, and is differentiated.
        (0.9, False, False),
    ],
)
def test_equals_snntorch_synaptic(decay, delay, detach_reset):
    node = snntorch.Synaptic(alpha=0.6, beta=decay, spike_grad=atan(2.0), reset_delay=delay).double()

    def theirs(x):
        i = h = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, i, h = node(x_t, i, h)
            spikes.append(s)
        return torch.stack(spikes).double()  # they are always float32

    with torch.no_grad():
        node.alpha.fill_(0.6)  # float32 digits of the constructor's 0.6
        node.beta.fill_(decay)
    ours = CuBaLIF(0.6, decay, 1.0, "soft", ATan(2.0), detach_reset)
    x, weights = _input(20, 4, 10, low=-0.2, high=0.4), _input(20, 4, 10, seed=1, low=-1.0)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, expected = ours(a), theirs(b)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)  # theirs passes through float32
