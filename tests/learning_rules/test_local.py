"""FA and DFA against the published equations written out in loops, and what all three local rules promise."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.autograd import grad

from snnrobust import attacks, data
from snnrobust.attacks import PGD, Linf
from snnrobust.draws import draws, keyed
from snnrobust.encoders import Direct, Latency, Poisson
from snnrobust.learning_rules import DFA, FA, LE
from snnrobust.learning_rules.feedback import feedback_weights
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF


def attributes_of(model):
    """Names by module; ``draws`` leaves None behind in two."""
    return {name: {n for n, v in vars(m).items() if v is not None} for name, m in model.named_modules()}


RULES = {"FA": FA, "DFA": DFA, "LE": LE, "LE, learnt": lambda **given: LE(readout="learnt", **given)}
SHAPE, BETA, THETA, LEAK = (1, 3, 4), 0.8, 0.4, 0.95


def fresh(make, seed=0):
    with keyed(seed):
        return make()


def batch(size=6):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(size, *SHAPE, generator=generator).double(), torch.arange(size) % 3


def two_hidden(encoder, reset="soft"):
    neuron = LIF(BETA, threshold=THETA, reset=reset)
    return fresh(lambda: spiking((Dense(7), Dense(5)), SHAPE, 3, encoder, neuron, "none")).double()


def literal(rule, weights, biases, back, x, y, reset):
    """Lists over time, one sample batch; gradients of the mean loss by weights, biases and the input sequence.

    Args:
        back: Of FA, B of layers 0 (to the input), 1 and 2; of DFA, that of layer 0, and B_1 and B_2 of the hidden layers.
        x: Input sequence, T tensors ``[B, F]``.
    """
    T, h, s = len(x), {1: [], 2: []}, {0: x, 1: [], 2: []}
    v, membrane, total = {1: 0.0, 2: 0.0}, 0.0, 0.0
    for t in range(T):
        for layer in (1, 2):
            charged = BETA * v[layer] + s[layer - 1][t] @ weights[layer - 1].T + biases[layer - 1]
            spikes = (charged >= THETA).double()
            v[layer] = charged - THETA * spikes if reset == "soft" else charged * (1 - spikes)
            h[layer].append(charged)
            s[layer].append(spikes)
        membrane = LEAK * membrane + s[2][t] @ weights[2].T + biases[2]
        total = total + membrane
    error = (total / T).softmax(1)
    error[torch.arange(len(y)), y] -= 1
    error = error / len(y)
    e = [error * sum(LEAK ** (later - t) for later in range(t, T)) / T for t in range(T)]

    def slope(charged):
        return 1 / (1 + (math.pi * (charged - THETA)) ** 2)  # atan, alpha = 2

    delta = {3: e, 2: [None] * T, 1: [None] * T}
    for layer in (2, 1):
        carried = 0.0
        for t in reversed(range(T)):
            arrives = delta[layer + 1][t] @ back[layer] if rule == "FA" else e[t] @ back[layer]
            stays = 1.0 if reset == "soft" else 1 - s[layer][t]
            delta[layer][t] = arrives * slope(h[layer][t]) + carried * stays
            carried = BETA * delta[layer][t]
    by_weight = [sum(delta[i + 1][t].T @ s[i][t] for t in range(T)) for i in range(3)]
    by_bias = [sum(delta[i + 1][t].sum(0) for t in range(T)) for i in range(3)]
    return by_weight, by_bias, [delta[1][t] @ back[0] for t in range(T)]


def written_out(rule, model, x, y, reset, input_feedback="random"):
    """The gradients of :func:`literal` for ``model``, with the matrices of ``rule``, and that by the images."""
    layers = [model.network[i] for i in (1, 3, 5)]
    weights, biases = [m.weight.detach() for m in layers], [m.bias.detach() for m in layers]
    with draws(model, 9):
        sequence = [x_t.flatten(1) for x_t in model.encoder(x)]
    first = weights[0] if input_feedback == "transpose" else feedback_weights(rule.seed, "network.1", weights[0])
    if isinstance(rule, FA):
        found = rule.matrices(model)
        hidden = [found["network.3"], found["network.5"]]
    else:
        found = rule.matrices(model, x[:1])
        hidden = [found["network.1"], found["network.3"]]
    by_weight, by_bias, by_input = literal(rule.name, weights, biases, [first, *hidden], sequence, y, reset)
    return by_weight, by_bias, sum(by_input).view_as(x) * len(x)


@pytest.mark.parametrize("rule", [FA(seed=2), DFA(seed=2)], ids=["FA", "DFA"])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("encoder", [Direct(5), Poisson(6)], ids=["Direct", "Poisson"])
def test_two_hidden_layers_of_spikes_equal_the_equations(rule, reset, encoder):
    x, y = batch()
    model = two_hidden(encoder, reset)
    by_weight, by_bias, by_input = written_out(rule, model, x, y, reset)
    with rule.lend(model.train(), x[:1]) as lent, draws(model, 9):
        lent.backward(x, y, 1.0)
    for i, weight, bias in zip((1, 3, 5), by_weight, by_bias, strict=True):
        assert weight.norm() > 1e-4
        torch.testing.assert_close(model.network[i].weight.grad, weight, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(model.network[i].bias.grad, bias, rtol=1e-9, atol=1e-13)
    for how in ("random", "transpose"):  # Poisson passes the sum over time straight through, as it declares
        _, _, by_input = written_out(rule, model, x, y, reset, how)
        with draws(model.eval(), 9):
            found = rule.input_gradient(model, x, y, input_feedback=how)
        torch.testing.assert_close(found, by_input, rtol=1e-9, atol=1e-13)


def smooth():
    return fresh(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)
        )
    ).double()  # fmt: skip


def differences(function, x, step=1e-6):
    """Central differences of a sum over samples, by each element of x."""
    found = torch.zeros_like(x)
    for index in range(x.numel()):
        shift = torch.zeros_like(x).view(-1)
        shift[index] = step
        found.view(-1)[index] = (function(x + shift.view_as(x)) - function(x - shift.view_as(x))) / (2 * step)
    return found


@torch.no_grad()
def test_the_input_gradient_by_transpose_is_that_of_finite_differences():
    """Of the error that trains the first block: of DFA, a fixed direction of the block's end; of LE, the local loss."""
    model, (x, y) = smooth(), batch(3)
    block = model[:4]
    error = model(x).softmax(1) - nn.functional.one_hot(y, 3)
    matrix = DFA().matrices(model, x[:1])["0"].flatten(1)
    found = DFA().input_gradient(model, x, y, input_feedback="transpose")
    torch.testing.assert_close(
        found, differences(lambda z: (block(z) * (error @ matrix)).sum(), x), rtol=1e-6, atol=1e-9
    )

    readout = LE().readouts(model, x[:1])["0"].weight
    local = lambda z: nn.functional.cross_entropy(block(z) @ readout.T, y, reduction="sum")  # noqa: E731
    torch.testing.assert_close(LE().input_gradient(model, x, y), differences(local, x), rtol=1e-6, atol=1e-9)

    class Weight(FA):
        def matrices(self, model):
            return {"0": model[0].weight.detach(), "4": model[4].weight.detach(), "6": model[6].weight.detach()}

    whole = differences(lambda z: nn.functional.cross_entropy(model(z), y, reduction="sum"), x)
    for how in ("random", "transpose"):  # both are the transpose here
        torch.testing.assert_close(
            Weight().input_gradient(model, x, y, input_feedback=how), whole, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("kind", RULES)
def test_random_input_feedback_replaces_the_first_kernel_alone(kind):
    """The gradient by x is linear in the first layer's feedback: with it in place of the kernel, behind the same error."""
    model, (x, y), rule = smooth(), batch(3), RULES[kind]()
    learnt = rule.readouts(model, x[:1]).state_dict() if kind == "LE, learnt" else None
    current = model[0](x).detach().requires_grad_()  # the rule's error at the first layer's output:
    rest = nn.Sequential(nn.Identity(), *model[1:])
    with torch.enable_grad():
        if kind == "FA":
            back = FA().matrices(model)
            hidden = model[4](h := model[1:4](current))
            e = model(x).softmax(1) - nn.functional.one_hot(y, 3)
            slope = 1 - hidden.tanh() ** 2
            (error,) = grad(h, current, (e @ back["6"] * slope) @ back["4"])
        elif kind == "DFA":
            e = rest(current).softmax(1) - nn.functional.one_hot(y, 3)
            (error,) = grad(model[1:4](current), current, e @ DFA().matrices(model, x[:1])["0"].flatten(1))
        else:
            logits = rule.readouts(model, x[:1])["0"](model[1:4](current))
            (error,) = grad(nn.functional.cross_entropy(logits, y, reduction="sum"), current)
    other = deepcopy(model[0])
    other.weight.data.copy_(feedback_weights(0, "0", other.weight))
    for layer, how in ((other, "random"), (model[0], "transpose")):
        z = x.clone().requires_grad_()
        (expected,) = grad(layer(z), z, error)
        found = rule.input_gradient(model, x, y, input_feedback=how, learnt=learnt)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


CASES = {
    "ordinary": lambda: ordinary((Conv(3), Pool(), Dense(6)), (1, 8, 8), 10),
    "spiking": lambda: spiking((Conv(3), Pool(), Dense(6)), (1, 8, 8), 10, Poisson(4)),
}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("fails", [False, True])
def test_after_training_it_is_a_plain_model(kind, model, fails):
    x, y = data.take(data.load("digits", "train"), 100)
    model = fresh(CASES[model])
    twin, attributes = deepcopy(model), attributes_of(model)

    class Stop(Exception):  # noqa: N818
        pass

    if fails:
        calls, last = [], [m for m in model.modules() if isinstance(m, nn.Linear)][-1]

        def stop(*_):
            if last.training and (calls.append(0) or len(calls) > 1):
                raise Stop

        handle = last.register_forward_hook(stop)
        with pytest.raises(Stop):
            RULES[kind](batch_size=50).fit(model, (x, y), epochs=1, progress=False)
        handle.remove()
    else:
        RULES[kind](batch_size=50).fit(model, (x, y), epochs=1, progress=False)
    assert attributes_of(model) == attributes
    twin.load_state_dict(model.state_dict())
    sources = []
    for m in (model, twin):
        m.eval()
        z = x[:8].clone().requires_grad_()
        with draws(m, 3):
            sources.append(grad(nn.functional.cross_entropy(m(z), y[:8]), [z, *m.parameters()]))
    assert all(map(torch.equal, *sources))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("model", CASES)
def test_an_input_gradient_leaves_all_as_it_is_and_obeys_the_draws(kind, model):
    x, y = data.take(data.load("digits", "train"), 5)
    spikes, model, rule = model == "spiking", fresh(CASES[model]).eval(), RULES[kind]()
    learnt = rule.readouts(model, x[:1]).state_dict() if kind == "LE, learnt" else None
    before, attributes = deepcopy(model.state_dict()), attributes_of(model)
    kept, state = x.clone(), torch.get_rng_state()

    def ask(key, how, at=slice(None)):
        with torch.no_grad(), draws(model, key, torch.arange(5)[at]):
            return rule.input_gradient(model, x[at], y[at], input_feedback=how, learnt=learnt)

    one = ask(1, "random")
    assert one.shape == x.shape
    assert not one.requires_grad
    assert torch.equal(one, ask(1, "random"))
    assert torch.equal(one, ask(2, "random")) != spikes
    assert not torch.allclose(one, ask(1, "transpose"))
    for sample in range(5):  # each sample's own, whatever else is in the batch
        torch.testing.assert_close(ask(1, "random", slice(sample, sample + 1))[0], one[sample], rtol=1e-3, atol=1e-6)
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    assert attributes_of(model) == attributes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("kind", RULES)
def test_bad_input(kind):
    (x, y), rule = batch(), RULES[kind]()
    model, learnt = two_hidden(Direct(3)), None
    if kind == "LE, learnt":
        learnt = rule.readouts(model, x[:1]).state_dict()
        with pytest.raises(ValueError, match=r"pass learnt=history.learnt"):
            rule.input_gradient(model, x, y)
        with pytest.raises(ValueError, match="learnt does not hold the readouts of this model"):
            rule.input_gradient(model, x, y, learnt={"network/1.weight": torch.zeros(2, 2)})
    else:
        with pytest.raises(ValueError, match="learns nothing beside the model, but learnt has a: leave it out"):
            rule.input_gradient(model, x, y, input_feedback="random", learnt={"a": x})
    with pytest.raises(ValueError, match="input_feedback must be one of random, transpose; got 'transposed'"):
        rule.input_gradient(model, x, y, input_feedback="transposed", learnt=learnt)
    with pytest.raises(ValueError, match=r"must lie in 0..2, got 5..7"):
        rule.input_gradient(model, x, y + 5, input_feedback="random", learnt=learnt)
    if kind in ("FA", "DFA"):
        with pytest.raises(ValueError, match="input_feedback has to be chosen: give 'random' or 'transpose'"):
            rule.input_gradient(model, x, y)
    blind = spiking((Dense(7), Dense(5)), SHAPE, 3, Latency(3), norm="none").double()
    blind.encoder._encode = lambda x, start, steps: torch.ones(steps, *x.shape, dtype=x.dtype)
    with pytest.raises(ValueError, match="does not reach x through any differentiable path"):
        rule.input_gradient(blind, x, y, input_feedback="random", learnt=learnt)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("rule", [DFA(), LE()])
def test_a_first_layer_of_its_own_kind_has_no_random_feedback(rule):
    model, (x, y) = nn.Sequential(nn.Flatten(), Doubled(12, 4), nn.ReLU(), nn.Linear(4, 3)).double(), batch()
    assert rule.input_gradient(model, x, y, input_feedback="transpose").norm() > 0
    with pytest.raises(TypeError, match=r'1 \(Doubled\) is not a plain linear layer .* use input_feedback="transpose"'):
        rule.input_gradient(model, x, y, input_feedback="random")


@pytest.mark.parametrize("architecture", ["resnet20", "recurrent", "lstm"])
@pytest.mark.parametrize("rule", [DFA(), LE()])
def test_branches_and_recurrent_layers_are_refused_before_training(rule, architecture):
    make = ordinary if architecture == "lstm" else spiking
    encoder = [] if architecture == "lstm" else [Direct(2)]
    model = make(ARCHITECTURES[architecture], (1, 8, 8), 10, *encoder)
    x, y = data.take(data.load("digits", "train"), 20)
    with pytest.raises(TypeError, match=f"{rule.name} trains a chain"):
        rule.fit(model, (x, y), epochs=1, progress=False)


class Own:
    """A gradient source for attacks: the rule's own gradient."""

    def __init__(self, rule, how, learnt):
        self.rule, self.how, self.learnt = rule, how, learnt

    def __call__(self, model, x, y, loss, stream):
        with draws(model, stream.key, stream.sample_ids):
            gradient = self.rule.input_gradient(model, x, y, input_feedback=self.how, learnt=self.learnt)
            with torch.no_grad():
                return gradient, model(x)


@pytest.mark.parametrize("kind", RULES)
def test_what_the_rule_hides_the_true_gradient_finds(kind):
    """Robustness against the rule's own gradient by random weights is masking: the true one breaks the same network."""
    train, (x, y) = data.load("digits", "train"), data.take(data.load("digits", "test"), 300)
    model = fresh(lambda: spiking((Dense(64), Dense(64)), (1, 8, 8), 10, Direct(4)))
    rule = RULES[kind](lr=5e-3)
    learnt = rule.fit(model, train, epochs=6, progress=False).learnt

    def left(source):
        x_adv = PGD(Linf(0.15), steps=10, gradient=source)(model, x, y)
        with torch.no_grad():
            return float((model(x_adv).argmax(1) == y).double().mean())

    with torch.no_grad():
        clean = float((model(x).argmax(1) == y).double().mean())
    hidden, true = left(Own(rule, "random", learnt)), left(attacks.Backprop())
    assert clean > 0.93
    assert hidden > 0.75
    assert true < 0.35
