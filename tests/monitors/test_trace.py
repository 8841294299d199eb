"""A traced layer holds what went in and what came out."""

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.monitors import trace
from snnrobust.neurons import ALIF, LIF, LearnableThresholdLIF, Recurrent


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Sequential(
        nn.Linear(6, 5), LIF(0.9, 0.2), nn.Linear(5, 4), Recurrent(4, ALIF(threshold=0.3)), nn.Dropout(0.5), nn.Linear(4, 3),
        LearnableThresholdLIF(threshold=0.4),
    )  # fmt: skip
    return SpikingClassifier(Poisson(7), network, MeanOutput())


@pytest.fixture
def x():
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(1))


def test_the_parts_of_a_layer(model, x):
    with draws(model, 3):
        found = trace(model, x, "network.1")
        current = model.network[0](model.encoder(x)).detach()
    neuron = model.network[1]
    torch.testing.assert_close(found.current, current)
    assert torch.equal(found.spikes, neuron(found.current))
    assert torch.equal(found.membrane, neuron.membrane(found.current))
    assert (found.name, found.threshold) == ("network.1", 0.2)
    assert not found.spikes.requires_grad
    # LIF by hand: what was charged and not spent
    v, h = torch.zeros_like(current[0]), []
    for x_t, s_t in zip(found.current, found.spikes, strict=True):
        h.append(0.9 * v + x_t)
        v = h[-1] - 0.2 * s_t
    torch.testing.assert_close(found.membrane[-1], v)
    assert torch.equal(torch.stack(h) >= 0.2, found.spikes > 0)


def test_recurrent_neurons(model, x):
    with draws(model, 3):
        found = trace(model, x, "network.3")
    module = model.network[3]
    state = module.initial_state(found.current[0])
    for x_t, v in zip(found.current, found.membrane, strict=True):
        _, state = module.step(x_t, state)
        torch.testing.assert_close(module.neuron.potential(state.neuron), v)
    assert found.threshold == 0.3


def test_a_learnt_threshold_is_a_copy(model, x):
    found = trace(model, x, "network.6")
    assert float(found.threshold) == pytest.approx(0.4)
    with torch.no_grad():
        for p in model.network[6].parameters():
            p.add_(1.0)
    assert float(found.threshold) == pytest.approx(0.4)
    neuron = LIF(threshold=(0.2, 0.3))
    found = trace(neuron, torch.ones(3, 1, 2), "")
    neuron.threshold.add_(1.0)
    assert found.threshold.tolist() == pytest.approx([0.2, 0.3])


def test_the_model_is_as_it_was(model, x):
    model.train()
    model.network[4].eval()
    modes = [m.training for m in model.modules()]
    with draws(model, 3):
        one, two = trace(model, x, "network.6"), trace(model, x, "network.6")
    assert torch.equal(one.current, two.current)  # no dropout
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(TypeError):
        trace(model, None, "network.6")
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())


def test_what_cannot_be_traced_is_refused(model, x):
    for layer in ("network.9", "network.0", "network.3.neuron", ""):
        with pytest.raises(ValueError, match=r"layer must be one of network\.1, network\.3, network\.6"):
            trace(model, x, layer)
    with pytest.raises(ValueError, match="the model has no neurons of snnrobust to trace"):
        trace(nn.Linear(6, 5), x, "")
    neuron = LIF()
    with pytest.raises(ValueError, match="0 ran 2 times in one forward pass"):
        trace(Sequential(neuron, neuron), torch.ones(2, 3, 4), "0")
    with pytest.raises(TypeError, match="model must be"):
        trace("model", x, "0")
