import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson, Rows
from snnrobust.layers import Dropout, MeanMembrane, MeanOutput, Sequential
from snnrobust.learning_rules import BPTT, EProp
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import ALIF, IF, LIF, Recurrent
from snnrobust.neurons.surrogate import Triangle

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 2, 1])


def make(parts, encoder, readout, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpikingClassifier(encoder, Sequential(nn.Flatten(), *parts()), readout).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3.0
    return model.train()


def gradients(rule, model):
    model.zero_grad()
    with rule.lend(model, X[:1]) as lent, draws(model, 5):
        loss, logits = lent.backward(X, Y, 1.0)
    return {n: p.grad.clone() for n, p in model.named_parameters()}, loss, logits


def bptt(model):
    """Autograd of the mean cross-entropy of the readout's potential, recurrent spikes detached; the model's logits."""
    with draws(model, 5):
        x = model.encoder(X)
        states, o, loss, total, dropped = {}, torch.zeros(3, 3).double(), 0.0, 0.0, []
        for t, s in enumerate(x.unbind(0)):
            for n, part in enumerate(model.network):
                neuron = part.neuron if isinstance(part, Recurrent) else part
                if isinstance(neuron, LIF | ALIF):
                    state, before = states.get(n, (None, torch.zeros(len(s), 6).double()))
                    s = s + part.recurrent(before.detach()) if isinstance(part, Recurrent) else s
                    s, state = neuron.step(s, neuron.initial_state(s) if state is None else state)
                    states[n] = state, s
                    dropped.append(s)
                elif isinstance(part, Dropout):
                    s, _ = part.step(s, t)
                else:
                    s = part(s)
            o = model.readout.decay * o + s
            loss, total = loss + F.cross_entropy(o, Y) / len(x), total + o / len(x)
    rate = torch.stack([s for s in dropped if s.shape[1] == 6]).mean()
    assert 0.05 < rate < 0.95
    names = [n for n, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True)), loss, total


def close(found, expected, names=None):
    for name in names or expected:
        scale = expected[name].abs().max()
        assert scale > 1e-6, name
        assert (found[name] - expected[name]).abs().max() < 1e-9 * scale, name


ONE = {
    "LIF": lambda: [nn.Linear(16, 6), LIF(0.9, threshold=0.3), nn.Linear(6, 3)],
    "dropout": lambda: [nn.Linear(16, 6), IF(0.3), Dropout(0.3), nn.Identity(), nn.Linear(6, 3)],
    "dropout of a step": lambda: [nn.Linear(16, 6), IF(0.3), Dropout(0.3, drawn="step"), nn.Linear(6, 3)],
    "ALIF": lambda: [nn.Linear(16, 6, bias=False), ALIF(0.9, 0.3, 0.4, 0.8), nn.Linear(6, 3)],
    "ALIF by channel": lambda: [
        *(nn.Linear(16, 6), ALIF(0.9, 0.3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])),
        nn.Linear(6, 3),
    ],
    "recurrent": lambda: [nn.Linear(16, 6), Recurrent(6, LIF(0.9, threshold=0.3)), nn.Linear(6, 3)],
    "recurrent, a surrogate with zeros": lambda: [
        *(nn.Linear(16, 6), Recurrent(6, LIF(0.9, threshold=0.3, surrogate=Triangle(0.3, 0.5)))),
        *(Dropout(0.3), nn.Linear(6, 3)),
    ],
    "recurrent ALIF": lambda: [nn.Linear(16, 6), Recurrent(6, ALIF(0.9, 0.3, 0.4, 0.8)), nn.Linear(6, 3)],
}


@pytest.mark.parametrize("encoder", [Direct(7), Poisson(6)])
@pytest.mark.parametrize("readout", [MeanOutput(), MeanMembrane(0.8)])
@pytest.mark.parametrize("kind", ONE)
def test_with_symmetric_feedback_one_layer_learns_by_bptt_without_recurrent_spikes(kind, readout, encoder):
    model = make(ONE[kind], encoder, readout)
    found, loss, logits = gradients(EProp(feedback="symmetric"), model)
    expected, same, same_logits = bptt(model)
    close(found, expected)
    assert torch.allclose(loss, same)
    assert torch.allclose(logits, same_logits)
    random, _, _ = gradients(EProp(), model)
    close(random, expected, [n for n in expected if n.startswith(f"network.{len(model.network) - 1}.")])
    assert not torch.allclose(random["network.1.weight"], expected["network.1.weight"])


@pytest.mark.parametrize("kind", ["LIF", "ALIF", "dropout"])
def test_without_recurrence_that_is_the_library_s_own_bptt(kind):
    model = make(ONE[kind], Poisson(6), MeanOutput())
    found, _, _ = gradients(EProp(feedback="symmetric"), model)
    expected, _, _ = gradients(BPTT(loss="tet"), model)
    close(found, expected)


@pytest.mark.parametrize("adaptation", [0.0, 0.4])
def test_the_eligibility_of_a_synapse_is_that_of_bellec_et_al(adaptation):
    """Their equations for one recurrent network, neuron by neuron; theirs and our reset differ where it adapts, but for spikes
    that do not come: the threshold is far, the slope is not."""
    model = make(
        lambda: [
            nn.Linear(16, 4),
            Recurrent(4, ALIF(0.9, 50.0, adaptation, 0.8, surrogate=Triangle(0.3, 100.0))),
            nn.Linear(4, 3),
        ],
        Direct(5),
        MeanMembrane(0.7),
    )
    rule = EProp(seed=2)
    found, _, _ = gradients(rule, model)
    W, R, b = (p.detach() for p in (model.network[1].weight, model.network[2].recurrent.weight, model.network[1].bias))
    out, B = model.network[3], rule._feedback("network.1", 3, 4)
    grad = torch.zeros(4, 16).double()
    for n in range(3):
        x, v, y = X[n].flatten(), torch.zeros(4).double(), torch.zeros(3).double()
        e_v, e_a, filtered = (torch.zeros(4, 16).double() for _ in range(3))
        psi = torch.zeros(4).double()
        for _ in range(5):
            v = 0.9 * v + W @ x + b + R @ torch.zeros(4).double()
            y = 0.7 * y + out.bias.detach()
            error = torch.softmax(y, 0) - F.one_hot(Y[n], 3)
            for j in range(4):
                for i in range(16):
                    e_a[j, i] = psi[j] * e_v[j, i] + (0.8 - psi[j] * adaptation) * e_a[j, i]
                    e_v[j, i] = 0.9 * e_v[j, i] + x[i]
            psi = 0.3 * (1 - (v - 50.0).abs() / 100.0)
            e = psi[:, None] * (e_v - adaptation * e_a)
            filtered = 0.7 * filtered + e
            for j in range(4):
                grad[j] += (error @ B)[j] * filtered[j] / 15
    assert torch.allclose(found["network.1.weight"], grad, rtol=1e-9)


def test_feedback_is_normal_and_decided_by_seed_and_layer():
    B = EProp(seed=4)._feedback("network.1", 10, 4000)
    assert B.shape == (10, 4000)
    assert abs(B.std() * math.sqrt(4000) - 1) < 0.02  # 40,000 values: the standard error is 0.4 %
    assert torch.equal(B, EProp(seed=4)._feedback("network.1", 10, 4000))
    assert not torch.equal(B, EProp(seed=5)._feedback("network.1", 10, 4000))
    assert not torch.equal(B, EProp(seed=4)._feedback("network.3", 10, 4000))


def test_layers_further_down_have_random_feedback_of_their_own():
    deep = [nn.Linear(16, 6), LIF(threshold=0.3), nn.Linear(6, 6), LIF(threshold=0.3), nn.Linear(6, 3)]
    model = make(lambda: deep, Direct(5), MeanOutput())
    symmetric, _, _ = gradients(EProp(feedback="symmetric"), model)
    random, _, _ = gradients(EProp(), model)
    expected, _, _ = gradients(BPTT(loss="tet"), model)
    assert torch.equal(symmetric["network.1.weight"], random["network.1.weight"])
    close(symmetric, expected, ["network.3.weight", "network.3.bias", "network.5.weight"])
    assert not torch.allclose(random["network.3.weight"], expected["network.3.weight"])


def conv(*after, neuron=None):
    return lambda: [
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 2, 3),
        neuron or LIF(),
        *after,
        nn.Flatten(),
        nn.Linear(8, 3),
    ]


@pytest.mark.parametrize(
    ("parts", "readout", "words"),
    [
        (conv(), MeanMembrane(), r"a leaky readout \(decay 0.95\).*network.2 \(Conv2d\).*the readout MeanOutput\(\)"),
        (conv(neuron=ALIF()), MeanOutput(), r"the threshold of ALIF.*network.2 \(Conv2d\).*use LIF\(\)"),
        (
            lambda: [nn.Linear(16, 6), LIF(), nn.AvgPool1d(2), nn.Linear(3, 3)],
            MeanMembrane(),
            "AvgPool1d behind network.1",
        ),
        (
            lambda: [nn.Linear(16, 6), LIF(), nn.Linear(6, 3), LIF()],
            MeanOutput(),
            "end the network in nn.Linear, not LIF",
        ),
    ],
)
def test_what_needs_more_than_a_trace_for_each_synapse_is_refused(parts, readout, words):
    model = make(parts, Direct(3), readout)
    with pytest.raises(TypeError, match=words):
        EProp().fit(model, (X, Y), epochs=1, progress=False)


def test_linear_layers_over_places_are_refused_under_a_leaky_readout():
    parts = [nn.Unflatten(1, (4, 4)), nn.Linear(4, 2), LIF(), nn.Flatten(), nn.Linear(8, 3)]
    model = make(lambda: parts, Direct(3), MeanMembrane())
    with pytest.raises(ValueError, match=r"network.2: its input must be \[B, F\]"):
        EProp().fit(model, (X, Y), epochs=1, progress=False)


@pytest.mark.slow
def test_rows_of_digits_are_learnt_by_a_recurrent_layer():
    """Chance is 0.1. BPTT of the same loss, which asks for the class from the first row on, came to 0.76, random feedback to 0.67
    and symmetric to 0.75 (seed 0)."""
    from snnrobust import data
    from snnrobust.models import Recurrent as Layer
    from snnrobust.models import spiking

    train, test = data.load("digits", "train"), data.load("digits", "test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Layer(64),), (1, 8, 8), 10, Rows(8), LIF(), "none", MeanOutput())
    history = EProp().fit(model, train, test, epochs=10, progress=False)
    assert history.last["validation_accuracy"] > 0.6


def test_bad_feedback_is_named():
    with pytest.raises(ValueError, match="feedback must be one of random, symmetric"):
        EProp(feedback="transpose")
