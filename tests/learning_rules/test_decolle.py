import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanMembrane, MeanOutput, Sequential
from snnrobust.learning_rules import DECOLLE
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 2, 1])


def make(encoder, readout, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [nn.Linear(16, 6), LIF(threshold=0.3), nn.Linear(6, 5), LIF(threshold=0.3), nn.Linear(5, 3)]
        model = SpikingClassifier(encoder, Sequential(nn.Flatten(), *parts), readout).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3.0
    return model.eval()


def gradients(rule, model):
    model.zero_grad()
    with rule.lend(model, X[:1]) as lent, draws(model, 5):
        loss, _ = lent.backward(X, Y, 1.0)
    return {n: p.grad.clone() for n, p in model.named_parameters()}, loss


@pytest.mark.parametrize("loss", ["smooth_l1", "cross_entropy"])
def test_no_gradient_passes_between_layers(loss):
    """What a layer learns does not depend on the weights above it, but on those below."""
    model, rule = make(Direct(6), MeanOutput()), DECOLLE(loss=loss)
    before, _ = gradients(rule, model)
    with torch.no_grad():
        model.network[3].weight *= -1
        model.network[5].weight *= 2
    after, _ = gradients(rule, model)
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert same == {n: n.startswith("network.1") for n in before}


def test_readouts_are_uniform_and_decided_by_seed_and_layer():
    features, rule = torch.empty(1, 4000), DECOLLE(amplitude=3.0, seed=4)
    G, g = rule._readout("network.1", features, 10)
    bound = 3.0 / math.sqrt(4000)
    assert (G.shape, g.shape) == ((10, 4000), (10,))
    assert G.abs().max() <= bound
    assert g.abs().max() <= bound
    assert len(g.unique()) == 10
    assert abs(G.std() - bound / math.sqrt(3)) < 0.01 * bound  # 40,000 values: the standard error is 0.2 %
    assert abs(G.mean()) < 0.02 * bound
    assert torch.equal(G, rule._readout("network.1", features, 10)[0])
    for other in (DECOLLE(amplitude=3.0, seed=5)._readout("network.1", features, 10), rule._readout("n", features, 10)):
        assert not torch.isclose(G, other[0]).any(1).all()


def test_the_loss_is_the_sum_of_all():
    """In each step, mean over time; here of one step, by autograd functions of the model's own spikes."""
    model, rule = make(Direct(1), MeanOutput()), DECOLLE(loss="cross_entropy")
    _, loss = gradients(rule, model)
    s, expected = X.flatten(1)[None], 0.0
    for name, layer, neuron in (("network.1", *model.network[1:3]), ("network.3", *model.network[3:5])):
        s = neuron(layer(s))
        expected += F.cross_entropy(F.linear(s[0], *rule._readout(name, s[0], 3)), Y)
    assert torch.allclose(loss, expected + F.cross_entropy(model.network[5](s[0]), Y))


@pytest.mark.parametrize("encoder", [Direct(5), Poisson(5)])
def test_its_input_gradient_is_that_of_the_first_layers_loss(encoder):
    model, rule = make(encoder, MeanOutput()), DECOLLE()
    with draws(model, 5):
        found = rule.input_gradient(model, X, Y)
    x = X.clone().requires_grad_()
    with draws(model, 5):
        frames = encoder(x).flatten(2)
    layer, neuron = model.network[1:3]
    state, loss = neuron.initial_state(torch.zeros(3, 6).double()), 0.0
    for frame in frames.unbind(0):
        s, state = neuron.step(layer(frame), type(state)(state.v.detach(), None))
        r = F.linear(s, *rule._readout("network.1", s, 3))
        loss = loss + F.smooth_l1_loss(r, F.one_hot(Y, 3).double()) * 3 / 5
    (expected,) = torch.autograd.grad(loss, x)
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-10, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_without_hidden_layers_it_trains_the_classifier():
    model = SpikingClassifier(Direct(3), Sequential(nn.Flatten(), nn.Linear(16, 3)), MeanMembrane(0.5)).double()
    found, _ = gradients(DECOLLE(), model)
    x = X.clone().requires_grad_()
    y = model.network[1](x.flatten(1))
    whole = sum(F.cross_entropy(c * y, Y) for c in (1.0, 1.5, 1.75)) / 3
    expected = torch.autograd.grad(whole, list(model.parameters()), retain_graph=True)
    assert all(torch.allclose(a, b) for a, b in zip(found.values(), expected, strict=True))
    o, parts = 0.0, 0.0
    for _ in range(3):
        o = 0.5 * (o.detach() if isinstance(o, torch.Tensor) else o) + y
        parts = parts + F.cross_entropy(o, Y)
    (of_x,) = torch.autograd.grad(parts, x)
    assert torch.allclose(DECOLLE().input_gradient(model, X, Y), of_x)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"loss": "mse"}, ValueError), ({"amplitude": 0.0}, ValueError), ({"amplitude": "1"}, TypeError)],
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        DECOLLE(**arguments)
