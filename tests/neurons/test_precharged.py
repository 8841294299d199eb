"""Neurons that begin with a charge; what holds for every neuron is in test_neuron.py."""

import re

import pytest
import torch
from torch import nn

from snnrobust.layers import Sequential
from snnrobust.layers.fused import lif_constants
from snnrobust.neurons import IF, PrechargedIF


@pytest.mark.parametrize("threshold", [1.0, 0.5, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("initial", [0.0, 0.25, 0.5, 1.0])
def test_spikes_of_a_constant_input_are_rounded(initial, threshold):
    T, x = 8, torch.arange(-4, 33, dtype=torch.float64).repeat(3, 1).T / 16  # dyadic: every sum is exact
    theta = torch.tensor(threshold, dtype=torch.float64)
    counts = PrechargedIF(threshold, initial)(x.expand(T, *x.shape)).sum(0)
    assert torch.equal(counts, (x * T / theta + initial).floor().clamp(0, T))


def test_the_start_is_all_that_differs_from_if():
    x = torch.rand(9, 4, 3, dtype=torch.float64) - 0.2
    neuron = PrechargedIF(0.75, 0.25)
    first = torch.cat((x[:1] + 0.25 * 0.75, x[1:]))
    assert torch.equal(neuron(x), IF(0.75)(first))
    assert torch.equal(neuron.membrane(x), IF(0.75).membrane(first))
    assert torch.equal(PrechargedIF(0.75, 0.0)(x), IF(0.75)(x))
    assert not torch.equal(neuron(x), IF(0.75)(x))


def test_it_is_not_taken_for_a_neuron_that_starts_at_rest():
    """By what runs normalisation and neurons as one, or goes through constant inputs without storing them."""
    assert lif_constants(PrechargedIF()) is None
    torch.manual_seed(0)
    x = torch.rand(3, 4)
    network = Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), PrechargedIF(0.4, 0.75)).eval()
    current = network[1](network[0](x))
    state, expected = network[2].initial_state(current), []
    for _ in range(6):
        s, state = network[2].step(current, state)
        expected.append(s)
    expected = torch.stack(expected)
    assert expected.sum() > IF(0.4)(current.expand(6, *current.shape)).sum()
    with torch.no_grad():
        assert torch.equal(network(x.expand(6, *x.shape)), expected)
        assert torch.equal(network.shown(x, 6), expected)
        assert torch.equal(network.advance_shown(x, 6, {})[0], expected)
        assert torch.equal(network.advance(x.expand(6, *x.shape), {})[0], expected)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "half"])
def test_bad_initial(value):
    with pytest.raises((ValueError, TypeError), match="initial"):
        PrechargedIF(initial=value)


def test_repr():
    text = "PrechargedIF(threshold=2 values, initial=0.5, reset='soft', surrogate=ATan(alpha=2.0))"
    assert re.fullmatch(re.escape(text), repr(PrechargedIF([0.5, 1.0])))
