"""``Sequential``: folding time into the batch changes nothing, and what cannot be folded is refused."""

from __future__ import annotations

import re

import pytest
import snntorch
import torch
from spikingjelly.activation_based import neuron as jelly
from torch import nn

from snnrobust import models
from snnrobust.layers import BNTT, Concat, MeanOutput, OrdinaryConcat, OrdinaryResidual, Residual, Sequential
from snnrobust.neurons import IF, LIF
from snnrobust.temporal import Temporal


def _seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def _input(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 0.5


NETWORKS = {
    "plain": (lambda: [nn.Linear(6, 4), nn.ReLU()], (5, 3, 6)),
    "neuron first": (lambda: [LIF(), nn.Linear(6, 4)], (5, 3, 6)),
    "convolutions": (
        lambda: [nn.Conv2d(2, 3, 3, padding=1), LIF(0.5), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4), IF()],
        (5, 3, 2, 4, 4),
    ),
    "nested": (
        lambda: [nn.Sequential(nn.Linear(6, 5), nn.Sequential(LIF(0.5), nn.Linear(5, 4)), IF()), nn.Tanh()],
        (5, 3, 6),
    ),
    "our own inside": (lambda: [nn.Linear(6, 5), Sequential(LIF(0.5), nn.Linear(5, 4)), nn.Tanh()], (5, 3, 6)),
    "plain branches": (
        lambda: [OrdinaryResidual(nn.Linear(6, 6)), OrdinaryConcat(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), LIF()],
        (5, 3, 6),
    ),
    "temporal branches": (
        lambda: [
            Residual(Sequential(nn.Linear(6, 5), LIF(0.5)), Sequential(nn.Linear(6, 5))),
            nn.Sequential(Concat(Sequential(LIF(0.7), nn.Linear(5, 2)))),
            nn.Tanh(),
        ],
        (5, 3, 6),
    ),
    "one step": (lambda: [nn.Linear(6, 4), LIF()], (1, 3, 6)),
    "one sample": (lambda: [nn.Linear(6, 4), LIF(), nn.Linear(4, 2)], (5, 1, 6)),
    "empty": (lambda: [], (5, 3, 6)),
}


def plain_run(modules, x):
    """Step by step: temporal modules see the sequence, the others one time step after the other."""
    for module in modules:
        if isinstance(module, nn.Sequential | Sequential):
            x = plain_run(list(module), x)
        elif isinstance(module, Temporal):
            x = module(x)
        else:
            x = torch.stack([module(x_t) for x_t in x])
    return x


@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_folding_equals_a_loop_over_steps(make, shape):
    network = _seeded(lambda: Sequential(*make()))
    x = _input(*shape).requires_grad_()
    y, expected = network(x), plain_run(list(network), x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = _input(*y.shape)
    parameters = [x, *network.parameters()]
    gradients = torch.autograd.grad((y * weights).sum(), parameters)
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * weights).sum(), parameters), rtol=1e-10, atol=1e-12
    )


def test_a_plain_module_is_called_once():
    shapes = []
    layer = nn.Linear(6, 4)
    layer.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    Sequential(layer, LIF())(torch.ones(5, 3, 6))
    assert shapes == [(15, 6)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_see_the_sequence(kind):
    network = _seeded(lambda: Sequential(nn.Linear(6, 5), kind(5, 4, num_layers=2), nn.Linear(4, 2)))
    x = _input(7, 3, 6)
    first, recurrent, last = network
    expected = last(recurrent(torch.stack([first(x_t) for x_t in x]))[0])
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
    one_sample = torch.cat([network(x[:, b : b + 1]) for b in range(3)], 1)  # samples do not mix
    torch.testing.assert_close(network(x), one_sample, rtol=1e-12, atol=1e-12)


def test_container():
    linear, neuron = nn.Linear(2, 2), LIF()
    network = Sequential(linear, neuron)
    assert len(network) == 2
    assert list(network) == [linear, neuron]
    assert network[0] is linear
    assert network[-1] is neuron
    assert set(network.state_dict()) == {"0.weight", "0.bias"}


class Hides(nn.Module):
    """A plain module around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = nn.ModuleList([nn.Identity(), inner])

    def forward(self, x):
        return self.inner[1](x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hides(LIF()), "Hides is a plain module that holds the temporal LIF"),
        (lambda: Hides(BNTT(2, 3)), "Hides is a plain module that holds the temporal BNTT"),
        (lambda: Hides(Sequential(nn.Linear(2, 2))), "Hides is a plain module that holds the temporal Sequential"),
        (
            lambda: Hides(Residual(Sequential(nn.Linear(2, 2)))),
            "Hides is a plain module that holds the temporal Residual",
        ),
        (lambda: OrdinaryResidual(LIF()), "OrdinaryResidual is a plain module that holds the temporal LIF"),
        (
            lambda: OrdinaryResidual(nn.Sequential(nn.Linear(2, 2), LIF())),
            "OrdinaryResidual is a plain module that holds the temporal LIF",
        ),
        (
            lambda: OrdinaryResidual(nn.Identity(), LIF()),
            "OrdinaryResidual is a plain module that holds the temporal LIF",
        ),
        (lambda: OrdinaryConcat(nn.LSTM(2, 2)), "OrdinaryConcat is a plain module that holds the temporal LSTM"),
        (lambda: Hides(nn.LSTM(2, 2)), "Hides is a plain module that holds the temporal LSTM"),
        (lambda: nn.GRUCell(2, 2), "GRUCell is a plain module that holds the temporal GRUCell"),
        (lambda: jelly.IFNode(), "IFNode keeps its state between calls"),
        (lambda: jelly.LIFNode(step_mode="m"), "LIFNode keeps its state between calls"),
        (lambda: Hides(jelly.LIFNode()), "LIFNode keeps its state between calls"),
        (lambda: snntorch.Leaky(0.9), "Leaky keeps its state between calls"),
        (lambda: snntorch.Leaky(0.9, init_hidden=True), "Leaky keeps its state between calls"),
        (lambda: nn.LSTM(2, 2, batch_first=True), "LSTM in a Sequential must have batch_first=False"),
        (
            lambda: nn.GRU(2, 2, bidirectional=True),
            "GRU in a Sequential must have batch_first=False, bidirectional=False",
        ),
    ],
)
@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential], ids=["directly", "in nn.Sequential"])
def test_what_cannot_be_folded_is_refused(make, message, wrap):
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        Sequential(nn.Linear(2, 2), wrap(make()))


def test_a_module_put_in_later_is_refused_at_the_next_forward():
    network = Sequential(nn.Linear(2, 2))
    network.add_module("later", Hides(LIF()))
    with pytest.raises(TypeError, match="Hides is a plain module that holds the temporal LIF"):
        network(torch.ones(3, 2, 2))
    with pytest.raises(TypeError, match="Hides is a plain module that holds the temporal LIF"):
        network.step(torch.ones(2, 2), network.initial_state(torch.ones(2, 2)))


def test_bad_input():
    for x, error in [
        (torch.ones(3), ValueError),
        (torch.ones(0, 2, 2), ValueError),
        (torch.ones(2, 2).int(), TypeError),
    ]:
        with pytest.raises(error, match="x must be"):
            Sequential(nn.Linear(2, 2))(x)
    with pytest.raises(TypeError):
        Sequential(torch.relu)


def test_a_readout_may_not_be_followed():
    """It ends the sequence: a neuron after it would take the samples of ``[B, K]`` for time."""
    with pytest.raises(TypeError, match="MeanOutput ends the sequence, so nothing can follow it"):
        Sequential(nn.Linear(2, 2), nn.Sequential(MeanOutput()), LIF())
    assert Sequential(nn.Linear(2, 2), MeanOutput())(torch.ones(4, 3, 2)).shape == (3, 2)


def test_a_module_that_stands_twice_runs_twice():
    linear, relu, neuron = nn.Linear(4, 4), nn.ReLU(), LIF(0.5)
    x = torch.randn(3, 2, 4)
    network = Sequential(linear, relu, linear, relu, neuron, linear, neuron)
    assert len(list(network)) == len(network) == 7
    expected = neuron(linear(neuron(relu(linear(relu(linear(x)))))))
    assert torch.equal(network(x), expected)
    state, steps = {}, []
    for x_t in x.unbind(0):
        y_t, state = network.step(x_t, state)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps), expected)
    nested = Sequential(nn.Sequential(linear, relu, relu), relu)
    assert len(list(nested._parts())) == 4


def test_what_is_no_module_is_named():
    with pytest.raises(
        TypeError, match=r"Sequential holds modules .*got Residual.*: models\.Residual only describes a layer"
    ):
        Sequential(nn.Linear(2, 2), models.Residual((models.Dense(2),)))
    with pytest.raises(TypeError, match=r"Sequential holds modules .*got 3"):
        Sequential(3)
