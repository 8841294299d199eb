import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.attacks import BluntGradientWarning
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Dropout, MeanMembrane, MeanOutput, Sequential
from snnrobust.learning_rules import BPTT, OTTT
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 2, 1])


def make(parts, encoder, readout, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpikingClassifier(encoder, Sequential(*parts()), readout).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3.0
    return model.train()


def gradients(rule, model):
    model.zero_grad()
    with rule.lend(model, X[:1]) as lent, draws(model, 5):
        loss, _ = lent.backward(X, Y, 1.0)
    return [p.grad.clone() for p in model.parameters()], loss


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-6
        assert (a - b).abs().max() < 1e-10 * b.abs().max()


def linear():
    return [nn.Flatten(), nn.Linear(16, 6), LIF(0.9, threshold=0.3), Dropout(0.2), nn.Linear(6, 3)]


def conv():
    return [nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), IF(0.4), nn.Flatten(), nn.Linear(2, 3)]


def deep():
    return [nn.Flatten(), nn.Linear(16, 6), LIF(threshold=0.3), nn.Linear(6, 6), LIF(threshold=0.3), nn.Linear(6, 3)]


@pytest.mark.parametrize("encoder", [Direct(6), Poisson(6)])
@pytest.mark.parametrize("parts", [linear, conv])
def test_with_one_spiking_layer_it_is_bptt(parts, encoder):
    """The reset is detached and the readout forgets, so nothing acts on a later step but what the trace remembers."""
    model = make(parts, encoder, MeanOutput())
    found, loss = gradients(OTTT(mse=0.0), model)
    expected, same = gradients(BPTT(loss="tet"), model)
    close(found, expected)
    assert torch.allclose(loss, same)


def test_with_two_it_is_not_but_points_the_same_way():
    model = make(deep, Direct(6), MeanOutput())
    (found, _), (expected, _) = gradients(OTTT(mse=0.0), model), gradients(BPTT(loss="tet"), model)
    close(found[4:], expected[4:])
    cosine = F.cosine_similarity(found[0].flatten(), expected[0].flatten(), 0)
    assert 0.5 < cosine < 1 - 1e-6


@pytest.mark.parametrize("mse", [0.0, 0.3])
def test_a_classifier_under_a_leaky_readout_is_exact(mse):
    """Autograd through the sum over all earlier outputs."""
    model = make(lambda: [nn.Flatten(), nn.Linear(16, 3)], Poisson(5), MeanMembrane(0.7))
    found, value = gradients(OTTT(mse=mse), model)
    with draws(model, 5):
        outputs = model.outputs(X)
    membrane, loss = torch.zeros(3, 3).double(), 0.0
    for y_t in outputs.unbind(0):
        membrane = 0.7 * membrane + y_t
        squared = ((membrane - F.one_hot(Y, 3)) ** 2).mean()
        loss = loss + ((1 - mse) * F.cross_entropy(membrane, Y) + mse * squared) / 5
    close(found, torch.autograd.grad(loss, list(model.parameters())))
    assert torch.allclose(loss, value)


def test_its_input_gradient_is_each_steps_own():
    """With one step it is the model's gradient; with more, that of steps which begin anew from the potentials as constants."""
    model = make(deep, Direct(1), MeanOutput()).eval()
    found = OTTT(mse=0.0).input_gradient(model, X, Y)
    close([found], [BPTT().input_gradient(model, X, Y)])

    model = make(deep, Direct(5), MeanOutput()).eval()
    x, total = X.clone().requires_grad_(), 0.0
    _, first, neuron, second, other, last = model.network
    states = [neuron.initial_state(torch.zeros(3, 6).double()) for _ in range(2)]
    for _ in range(5):
        states = [type(s)(s.v.detach(), None) for s in states]
        s, states[0] = neuron.step(first(x.flatten(1)), states[0])
        s, states[1] = other.step(second(s), states[1])
        total = total + F.cross_entropy(last(s), Y, reduction="sum") / 5
    close([OTTT(mse=0.0).input_gradient(model, X, Y)], torch.autograd.grad(total, x))


def test_its_input_gradient_leaves_the_model_and_torchs_generator_alone_under_a_key():
    model = make(deep, Poisson(4), MeanMembrane()).eval()
    x = X.clone()
    before = torch.get_rng_state()
    with draws(model, 2):
        a, b = OTTT().input_gradient(model, x, Y), OTTT().input_gradient(model, x, Y)
    assert torch.equal(a, b)
    assert a.shape == X.shape
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, X)
    assert not x.requires_grad
    blind = make(deep, Poisson(4, gradient="none"), MeanOutput()).eval()
    with pytest.warns(BluntGradientWarning, match="OTTT: the input gradient is exactly zero for all 3 samples"):
        assert OTTT().input_gradient(blind, X, Y).abs().max() == 0


@pytest.mark.parametrize(("mse", "error"), [(-0.1, ValueError), (1.1, ValueError), ("0", TypeError)])
def test_bad_arguments_are_named(mse, error):
    with pytest.raises(error, match="mse"):
        OTTT(mse=mse)
