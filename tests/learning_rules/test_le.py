from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust import data
from snnrobust.attacks import BluntGradientWarning
from snnrobust.draws import draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.learning_rules import BPTT, LE, RULES
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

SHAPE = (2, 6, 6)
NEURON = LIF(0.9, threshold=0.3)


def fresh(make, seed=0):
    with keyed(seed):
        return make()


MODELS = {
    "mlp": lambda: spiking((Dense(9), Dense(8)), SHAPE, 3, Direct(4), NEURON, "none"),
    "cnn": lambda: spiking((Conv(4), Pool(), Conv(5, stride=2), Dense(6)), SHAPE, 3, Poisson(5), NEURON, "BNTT"),
    "ordinary": lambda: ordinary((Conv(4), Pool(), Dense(6)), SHAPE, 3),
}


def batch(size=5):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(size, *SHAPE, generator=generator).double(), torch.arange(size) % 3


def gradients(rule, model, x, y, scale=1.0):
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent, draws(model, 9):
        loss, _ = lent.backward(x, y, scale)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, loss, {name: p.grad for name, p in lent.learnt.named_parameters()}


def by_hand(model, readouts, x, y):
    """Layer after layer, every step by itself; a new leaf where a synaptic layer begins, and the local loss where one ends."""
    spikes = hasattr(model, "encoder")
    found, losses = {}, []
    with draws(model.train(), 9):
        h = model.encoder(x) if spikes else x
        layers, prefix = (model.network, "network.") if spikes else (model, "")
        begins = [i for i, m in enumerate(layers) if isinstance(m, nn.Linear | nn.Conv2d)]
        for number, begin in enumerate(begins):
            last = number == len(begins) - 1
            stop = len(layers) if last else begins[number + 1]
            first = 0 if number == 0 else begin
            h = h.detach()
            for m in list(layers)[first:stop]:
                folded = spikes and isinstance(m, nn.Linear | nn.Conv2d | nn.AvgPool2d | nn.Flatten)
                h = torch.stack([m(h_t) for h_t in h]) if folded else m(h)
            if last:
                logits = model.readout(h) if spikes else h
            else:
                steps = h if spikes else h[None]
                logits = sum(h_t.flatten(1) @ readouts[number].T for h_t in steps) / len(steps)
            losses.append(F.cross_entropy(logits, y))
            own = {f"{prefix}{i}.{n}": p for i in range(begin, stop) for n, p in list(layers)[i].named_parameters()} | (
                {f"readout {number}": readouts[number]} if not last and readouts[number].requires_grad else {}
            )
            found |= dict(zip(own, torch.autograd.grad(losses[-1], list(own.values())), strict=True))
    return found, losses[-1].detach()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("readout", ["random", "learnt"])
def test_each_block_has_the_gradient_of_its_own_loss(kind, readout):
    model, (x, y), rule = fresh(MODELS[kind]).double(), batch(), LE(readout=readout, seed=3)
    weights = [m.weight for m in rule.readouts(model, x[:1]).values()]
    assert all(w.requires_grad == (readout == "learnt") for w in weights)
    state = deepcopy(model.state_dict())
    expected, its_loss = by_hand(model, weights, x, y)
    model.load_state_dict(state)  # running statistics
    found, loss, of_readouts = gradients(rule, model, x, y, 2.0)
    torch.testing.assert_close(loss, its_loss, rtol=1e-10, atol=0)
    found |= {f"readout {i}": g for i, g in enumerate(of_readouts.values())}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-6, name
        torch.testing.assert_close(found[name], 2 * gradient, rtol=1e-9, atol=1e-13)


def test_no_gradient_crosses_blocks():
    """What stands behind a block is of no account to its gradient, though it is to BPTT's."""
    model, (x, y) = fresh(MODELS["mlp"]).double(), batch()

    def first(rule, doubled):
        other = deepcopy(model)
        with torch.no_grad():
            other.network[3].weight.mul_(doubled)
        return gradients(rule, other, x, y)[0]["network.1.weight"]

    assert torch.equal(first(LE(), 1), first(LE(), 2))
    assert not torch.allclose(first(BPTT(), 1), first(BPTT(), 2))


def test_the_first_block_is_as_it_is_learnt_in_its_input_gradient():
    model, (x, y) = fresh(MODELS["mlp"]).double().eval(), batch()
    rule = LE(readout="learnt")
    readouts = fresh(lambda: rule.readouts(model, x[:1]))
    first, second = (m.weight.data for m in readouts.values())
    asked = rule.input_gradient(model, x, y, learnt=readouts.state_dict())
    second.mul_(2)
    assert torch.equal(asked, rule.input_gradient(model, x, y, learnt=readouts.state_dict()))
    first.zero_()
    with pytest.warns(BluntGradientWarning):
        assert rule.input_gradient(model, x, y, learnt=readouts.state_dict()).norm() == 0
    random = LE().input_gradient(model, x, y)
    assert torch.equal(random, asked)  # which begin alike


def test_a_network_of_one_layer_has_its_own_loss():
    model, (x, y) = fresh(lambda: spiking((), SHAPE, 3, Direct(2))).double().eval(), batch()
    torch.testing.assert_close(
        LE().input_gradient(model, x, y), BPTT().input_gradient(model, x, y), rtol=1e-9, atol=1e-13
    )
    true = gradients(BPTT(), model, x, y)[0]
    for name, gradient in gradients(LE(), model, x, y)[0].items():
        torch.testing.assert_close(gradient, true[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("readout", ["random", "learnt"])
@pytest.mark.parametrize(("architecture", "accuracy"), [("mlp", 0.93), ("conv-small", 0.85)])
def test_digits_are_learnt(architecture, accuracy, readout):
    train, test = data.load("digits", "train"), data.load("digits", "test")
    model = fresh(lambda: spiking(ARCHITECTURES[architecture], (1, 8, 8), 10, Direct(4)))
    history = LE(lr=5e-3, readout=readout).fit(model, train, test, epochs=4, progress=False)
    assert history.last["validation_accuracy"] > accuracy
    assert set(history.last["rates"]) == {n for n, m in model.named_modules() if isinstance(m, LIF)}


@pytest.mark.parametrize("readout", ["random", "learnt"])
def test_what_is_learnt_beside_the_model_is_handed_over(readout):
    train = data.take(data.load("digits", "train"), 200)
    model = fresh(lambda: ordinary((Dense(8), Dense(8)), (1, 8, 8), 10))
    rule = LE(readout=readout, seed=5)
    start = rule.readouts(model, train[0][:1]).state_dict()
    learnt = rule.fit(model, train, epochs=1, progress=False).learnt
    assert list(learnt) == (list(start) if readout == "learnt" else [])
    assert list(start) == ["1.weight", "4.weight"]
    assert not any(torch.equal(learnt[name], start[name]) for name in learnt)
    assert all(
        torch.equal(value, rule.readouts(model, train[0][:1]).state_dict()[name]) for name, value in start.items()
    )
    assert not torch.equal(start["1.weight"], start["4.weight"])
    assert not torch.equal(start["1.weight"], LE(seed=6).readouts(model, train[0][:1]).state_dict()["1.weight"])


def test_trains_in_16_bits_and_in_parts():
    train = data.take(data.load("digits", "train"), 256)
    model = fresh(lambda: spiking((Conv(4), Dense(16)), (1, 8, 8), 10, Direct(3)))
    history = LE(lr=1e-2, readout="learnt", precision="bfloat16", accumulate=2).fit(
        model, train, epochs=4, progress=False
    )
    assert history.last["loss"] < 0.8 * history.records[0]["loss"]


def test_frozen_blocks_are_left_out():
    model, (x, y) = fresh(MODELS["mlp"]).double(), batch()
    whole = gradients(LE(), model, x, y)[0]
    model.network[1].requires_grad_(False).zero_grad()
    rest = gradients(LE(), model, x, y)[0]
    assert set(rest) == set(whole) - {"network.1.weight", "network.1.bias"}
    assert all(torch.equal(gradient, whole[name]) for name, gradient in rest.items())


def test_memory_is_that_of_one_block():
    """What the backward pass needs of a block is freed before the next begins."""
    live, peak = set(), []

    def pack(tensor):
        token = object()
        live.add(id(token))
        peak.append(len(live))
        return Token(token, tensor, live)

    class Token:
        def __init__(self, token, tensor, live):
            self.token, self.tensor, self.live = token, tensor, live

        def __del__(self):
            self.live.discard(id(self.token))

    x, y = batch()

    def most(rule, depth):
        model = fresh(lambda: spiking((Dense(9),) * depth, SHAPE, 3, Direct(3), NEURON, "none")).double().train()
        peak.clear()
        with rule.lend(model, x[:1]) as lent, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.tensor):
            lent.backward(x, y, 1.0)
        return max(peak)

    assert most(LE(), 6) == most(LE(), 3)
    assert most(BPTT(), 6) > most(BPTT(), 3)


def test_bad_settings():
    with pytest.raises(ValueError, match="readout must be one of random, learnt"):
        LE(readout="learned")
    assert RULES["LE"] is LE
