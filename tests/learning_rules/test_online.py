"""The online rules against their published equations, written out link by link."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import BNTT, Dropout, LastOutput, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.learning_rules import BPTT, DECOLLE, OTTT, EProp
from snnrobust.learning_rules.online import Synapse
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, Recurrent
from snnrobust.neurons.surrogate import ATan

RULES = {"OTTT": OTTT, "DECOLLE": DECOLLE, "EProp": EProp}
NETWORKS = {
    "linear 2": lambda: [nn.Flatten(), nn.Linear(16, 6), LIF(0.9, threshold=0.3), nn.Linear(6, 3)],
    "linear 3": lambda: [
        *(nn.Flatten(), nn.Linear(16, 6, bias=False), LIF(0.8, threshold=0.7), nn.Linear(6, 5), IF(0.6)),
        nn.Linear(5, 3),
    ],
    "conv 2": lambda: [
        nn.Conv2d(1, 2, 3, padding=1),
        LIF(0.7, threshold=0.4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    ],
    "conv 3": lambda: [
        *(nn.Conv2d(1, 2, 3, padding=1, bias=False), LIF(torch.full((2,), 0.5), threshold=[0.5, 0.4])),
        *(nn.Conv2d(2, 3, 2, stride=2), LIF(0.9, threshold=0.4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)),
    ],
}
X = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 2])


def make(network, encoder, readout, seed=1, scale=3.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpikingClassifier(encoder, Sequential(*network()), readout).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= scale  # so that the neurons fire
    return model.train()


def gradients(rule, model, x=X, y=Y, scale=1.0, key=5):
    model.zero_grad()
    with rule.lend(model, x[:1]) as lent, draws(model, key):
        loss, logits = lent.backward(x, y, scale)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, loss, logits


# --- the literal reference ------------------------------------------------------------------------------------------


def links(layer, shape):
    """Each connection ``(post, pre, weight, bias)`` by flat numbers, and the shape of the output."""
    if isinstance(layer, nn.Linear):
        return [(j, i, j * layer.in_features + i, j) for j in range(layer.out_features) for i in range(shape[0])], (
            layer.out_features,
        )
    (C, H, W), k, stride, pad = shape, layer.kernel_size[0], layer.stride[0], layer.padding[0]
    rows, columns = ((n + 2 * pad - k) // stride + 1 for n in (H, W))
    found = []
    for o in range(layer.out_channels):
        for r in range(rows):
            for c in range(columns):
                for ch in range(C):
                    for a in range(k):
                        for b in range(k):
                            at = r * stride + a - pad, c * stride + b - pad
                            if 0 <= at[0] < H and 0 <= at[1] < W:
                                post, pre = (o * rows + r) * columns + c, (ch * H + at[0]) * W + at[1]
                                found.append((post, pre, ((o * C + ch) * k + a) * k + b, o))
    return found, (layer.out_channels, rows, columns)


class Literal:
    """One synaptic layer, its neurons and the average pooling behind them."""

    def __init__(self, layer, shape, neuron, pool):
        self.links, out = links(layer, shape)
        self.weight = layer.weight.detach().numpy().ravel()
        self.bias = None if layer.bias is None else layer.bias.detach().numpy()
        self.size, self.channel = math.prod(out), {post: b for post, _, _, b in self.links}
        self.neuron = neuron
        if neuron is not None:
            self.decay = float(torch.as_tensor(neuron.decay, dtype=torch.float64).flatten()[0])
            theta = torch.as_tensor(neuron.threshold, dtype=torch.float64).flatten()
            self.theta = [float(theta[self.channel[j] if len(theta) > 1 else 0]) for j in range(self.size)]
        self.pool, self.out = [(j, j, 1.0) for j in range(self.size)], out
        if pool:
            C, H, W = out
            self.out = C, H // 2, W // 2
            self.pool = [
                (((c * H // 2) + r // 2) * (W // 2) + d // 2, (c * H + r) * W + d, 0.25)
                for c in range(C)
                for r in range(H)
                for d in range(W)
            ]

    def rest(self, decay):
        """The state before the first step; ``decay`` where there are no neurons."""
        self.decay = decay if self.neuron is None else self.decay
        self.trace, self.ones, self.v = np.zeros(10**3), 0.0, np.zeros(self.size)

    def step(self, s):
        for i in range(len(s)):
            self.trace[i] = self.decay * self.trace[i] + s[i]
        self.ones = self.decay * self.ones + 1
        y = np.zeros(self.size)
        for post, pre, w, _ in self.links:
            y[post] += self.weight[w] * s[pre]
        for j in range(self.size):
            y[j] += 0 if self.bias is None else self.bias[self.channel[j]]
        self.h = self.decay * self.v + y
        if self.neuron is None:
            self.v = self.h
            return self.h
        fired = np.array([float(self.h[j] >= self.theta[j]) for j in range(self.size)])
        self.v = self.h - self.theta * fired
        self.slope = np.array([1 / (1 + (math.pi * (self.h[j] - self.theta[j])) ** 2) for j in range(self.size)])
        passed = np.zeros(math.prod(self.out))
        for q, j, share in self.pool:
            passed[q] += share * fired[j]
        return passed

    def through(self, of_passed):
        """From the gradient of what is passed on to that of the potential."""
        found = np.zeros(self.size)
        for q, j, share in self.pool:
            found[j] += share * of_passed[q] * self.slope[j]
        return found

    def back(self, of_h, count):
        found = np.zeros(count)
        for post, pre, w, _ in self.links:
            found[pre] += self.weight[w] * of_h[post]
        return found

    def learn(self, of_h, grads):
        for post, pre, w, _ in self.links:
            grads[0][w] += of_h[post] * self.trace[pre]
        for j in range(self.size):
            grads[1][self.channel[j]] += of_h[j] * self.ones


def literal(model, x, y, key, credit):
    """Gradients in the order of the layers; ``credit(layers, inputs, output, t, b)`` gives what reaches each potential."""
    parts, layers, shape = list(model.network), [], tuple(x.shape[1:])
    for at, part in enumerate(parts):
        if isinstance(part, nn.Flatten):
            shape = (math.prod(shape),)
        if isinstance(part, nn.Linear | nn.Conv2d):
            neuron = parts[at + 1] if at + 1 < len(parts) else None
            pool = at + 2 < len(parts) and isinstance(parts[at + 2], nn.AvgPool2d)
            layers.append(Literal(part, shape, neuron, pool))
            shape = layers[-1].out
    grads = [(np.zeros(len(layer.weight)), np.zeros(layer.size)) for layer in layers]
    with draws(model, key), torch.no_grad():
        frames = model.encoder(x).flatten(2).numpy()
    rates = np.zeros(len(layers))
    for b in range(len(x)):
        for layer in layers:
            layer.rest(model.readout.decay)
        memory = {}
        for t in range(len(frames)):
            s, inputs = frames[t, b], []
            for n, layer in enumerate(layers):
                inputs.append(s)
                s = layer.step(s)
                rates[n] += s.mean() / (len(x) * len(frames))
            credit(layers, inputs, s, int(y[b]), grads, memory)
    assert all(0.02 < rate < 0.98 for rate in rates[:-1]), rates  # else the test says little
    named = {}
    for name, of in model.named_parameters():
        n = [m for m in model.network if isinstance(m, nn.Linear | nn.Conv2d)].index(
            model.get_submodule(name.rsplit(".", 1)[0])
        )
        flat = grads[n][0] if name.endswith("weight") else grads[n][1][: of.numel()]
        named[name] = torch.tensor(flat).view_as(of)
    return named


def softmax(o):
    e = np.exp(o - o.max())
    return e / e.sum()


def one_hot(y, K):
    return np.array([float(k == y) for k in range(K)])


def of_ottt(mse, T, B):
    def credit(layers, inputs, o, y, grads, memory):
        K = len(o)
        g = ((1 - mse) * (softmax(o) - one_hot(y, K)) + mse * 2 / K * (o - one_hot(y, K))) / (T * B)
        for n in reversed(range(len(layers))):
            layers[n].learn(g, grads[n])
            if n:
                g = layers[n - 1].through(layers[n].back(g, len(inputs[n])))

    return credit


def of_decolle(readouts, loss, T, B):
    def credit(layers, inputs, o, y, grads, memory):
        K = len(o)
        layers[-1].learn((softmax(o) - one_hot(y, K)) / (T * B), grads[-1])
        for n, (G, g) in enumerate(readouts):
            r = G @ inputs[n + 1] + g
            if loss == "cross_entropy":
                of_r = softmax(r) - one_hot(y, K)
            else:  # d is d/dr of d^2 / 2 where |d| < 1, else of |d|; mean over classes
                d = r - one_hot(y, K)
                of_r = np.array([v if abs(v) < 1 else math.copysign(1, v) for v in d]) / K
            layers[n].learn(layers[n].through(G.T @ of_r) / (T * B), grads[n])

    return credit


def of_eprop(feedback, kappa, T, B):
    """``feedback[n]``: [K, F] of each hidden layer."""

    def credit(layers, inputs, o, y, grads, memory):
        error = (softmax(o) - one_hot(y, len(o))) / (T * B)
        layers[-1].learn(error, grads[-1])
        for n, B_n in enumerate(feedback):
            layer, passed = layers[n], error @ B_n
            signal = np.zeros(layer.size)
            for q, j, share in layer.pool:
                signal[j] += share * passed[q]
            weights, biases = memory.setdefault(n, (np.zeros(len(layer.links)), np.zeros(layer.size)))
            for c, (post, pre, w, _) in enumerate(layer.links):
                weights[c] = kappa * weights[c] + layer.slope[post] * layer.trace[pre]
                grads[n][0][w] += signal[post] * weights[c]
            for j in range(layer.size):
                biases[j] = kappa * biases[j] + layer.slope[j] * layer.ones
                grads[n][1][layer.channel[j]] += signal[j] * biases[j]

    return credit


def close(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name in found:
        scale = expected[name].abs().max()
        assert scale > 1e-6, name
        assert (found[name] - expected[name]).abs().max() < tolerance * scale, name


def hidden(model):
    """Of each hidden layer: its name, and how many values it passes on."""
    names = [f"network.{n}" for n, m in model.network.named_children() if isinstance(m, nn.Linear | nn.Conv2d)]
    sizes, s = [], X
    for part in model.network:
        if isinstance(part, nn.Linear | nn.Conv2d):
            sizes.append(s[0].numel())
        s = s if isinstance(part, LIF) else part(s)
    return list(zip(names, sizes[1:], strict=False))


CASES = [
    (name, encoder, T, readout)
    for name in NETWORKS
    for encoder, T in ((Direct, 5), (Poisson, 4), (Direct, 1))
    for readout in (MeanOutput(), MeanMembrane(0.8))
    if not (T == 1 and (isinstance(readout, MeanOutput) or "3" in name))
]


@pytest.mark.parametrize(("name", "encoder", "T", "readout"), CASES)
def test_ottt_is_its_equations(name, encoder, T, readout):
    model = make(NETWORKS[name], encoder(T), readout)
    for mse in (0.05, 0.0):
        found, _, _ = gradients(OTTT(mse=mse), model)
        close(found, literal(model, X, Y, 5, of_ottt(mse, T, len(X))))


@pytest.mark.parametrize(("name", "encoder", "T", "readout"), CASES)
def test_decolle_is_its_equations(name, encoder, T, readout):
    model = make(NETWORKS[name], encoder(T), readout)
    for loss in ("smooth_l1", "cross_entropy"):
        rule = DECOLLE(loss=loss, amplitude=4.0, seed=1)
        readouts = [rule._readout(n, torch.empty(1, size).double(), 3) for n, size in hidden(model)]
        readouts = [(G.numpy(), g.numpy()) for G, g in readouts]
        found, _, _ = gradients(rule, model)
        close(found, literal(model, X, Y, 5, of_decolle(readouts, loss, T, len(X))))


@pytest.mark.parametrize("feedback", ["random", "symmetric"])
@pytest.mark.parametrize(("name", "encoder", "T", "readout"), CASES)
def test_eprop_is_its_equations(name, encoder, T, readout, feedback):
    if "conv" in name and readout.decay > 0:
        return  # refused, see test_eprop
    model = make(NETWORKS[name], encoder(T), readout)
    rule = EProp(seed=1, feedback=feedback)
    matrices = [rule._feedback(n, 3, size).numpy() for n, size in hidden(model)]
    if feedback == "symmetric":
        matrices[-1] = model.network[-1].weight.detach().numpy()
    found, _, _ = gradients(rule, model)
    close(found, literal(model, X, Y, 5, of_eprop(matrices, readout.decay, T, len(X))))


# --- the weights' gradient ------------------------------------------------------------------------------------------


SYNAPSES = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear over places": (nn.Linear(6, 4), (3, 6)),
    "1d": (nn.Conv1d(2, 4, 3, padding=1), (2, 7)),
    "grouped, dilated": (nn.Conv2d(4, 6, 3, stride=2, dilation=2, groups=2, padding=(1, 2)), (4, 8, 7)),
    "same": (nn.Conv2d(2, 3, 4, padding="same"), (2, 6, 5)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid", bias=False), (2, 6, 5)),
    "circular": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 6, 5)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 4, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", SYNAPSES)
def test_the_gradient_is_that_of_the_trace_and_the_value_that_of_the_layer(kind):
    """autograd's gradient of the layer applied to the trace; the bias sees a trace of ones."""
    layer, shape = SYNAPSES[kind][0].double(), SYNAPSES[kind][1]
    generator = torch.Generator().manual_seed(0)
    sequence = torch.rand(3, 2, *shape, dtype=torch.float64, generator=generator)
    synapse = Synapse(layer, 0.6)
    for s in sequence[:-1]:
        synapse(s)
    last = sequence[-1].clone().requires_grad_()
    y = synapse(last)
    assert torch.equal(y, layer(last))
    out = torch.rand(y.shape, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad(y, [last, *layer.parameters()], out)
    trace = 0.36 * sequence[0] + 0.6 * sequence[1] + sequence[2]
    (of_s,) = torch.autograd.grad(layer(last), last, out)
    expected = [of_s, *torch.autograd.grad(layer(trace), list(layer.parameters()), out)]
    if layer.bias is not None:
        expected[2] = expected[2] * (0.36 + 0.6 + 1)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


# --- what all three share -------------------------------------------------------------------------------------------


def dropped():
    return [
        *(nn.Dropout2d(0.0), nn.Conv2d(1, 2, 3, padding=1), LIF(), Dropout(0.3), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(8, 6), IF(), Dropout(0.3, drawn="step"), nn.Linear(6, 3)),
    ]


@pytest.mark.parametrize("rule", RULES)
def test_the_logits_are_those_of_the_model_under_the_same_draws(rule):
    model = make(dropped, Poisson(6), MeanOutput())
    _, _, logits = gradients(RULES[rule](), model)
    with draws(model, 5), torch.no_grad():
        expected = model(X)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
    _, _, others = gradients(RULES[rule](), model, key=6)
    assert not torch.allclose(others, expected)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_scaled_and_added_and_those_of_parts_sum_to_the_whole(rule):
    model = make(NETWORKS["conv 3"], Direct(4), MeanOutput())
    whole, loss, _ = gradients(RULES[rule](), model)
    model.zero_grad()
    losses = []
    with RULES[rule]().lend(model, X[:1]) as lent:
        for i in range(2):
            losses.append(lent.backward(X[i : i + 1], Y[i : i + 1], 0.5)[0])
    close({n: p.grad for n, p in model.named_parameters()}, whole, 1e-12)
    assert torch.allclose(sum(losses) / 2, loss)


@pytest.mark.parametrize("rule", RULES)
def test_frozen_layers_get_no_gradient_and_the_others_theirs(rule):
    model = make(NETWORKS["linear 3"], Direct(4), MeanMembrane(0.8))
    whole, _, _ = gradients(RULES[rule](), model)
    for frozen in ("network.1", "network.5"):
        model.requires_grad_(True)
        model.get_submodule(frozen).requires_grad_(False)
        found, _, _ = gradients(RULES[rule](), model)
        close(found, {n: g for n, g in whole.items() if not n.startswith(frozen)}, 1e-12)


class Live:
    """The most bytes that autograd held at once."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, t):
        self.now += t.nbytes
        self.peak = max(self.peak, self.now)
        return _Held(t, self)


class _Held:
    def __init__(self, t, live):
        self.t, self.live = t, live

    def __del__(self):
        self.live.now -= self.t.nbytes


@pytest.mark.parametrize("readout", [MeanOutput(), MeanMembrane()])
@pytest.mark.parametrize("rule", [*RULES, "BPTT"])
def test_the_graph_does_not_grow_with_time(rule, readout):
    """BPTT's does, in proportion: what is measured can be seen."""
    name = "linear 3" if readout.decay > 0 else "conv 3"
    peaks = {}
    for T in (8, 128):
        model, live = make(NETWORKS[name], Poisson(T), readout), Live()
        with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda held: held.t):
            gradients(BPTT() if rule == "BPTT" else RULES[rule](), model)
        peaks[T] = live.peak
    assert peaks[8] > 0
    if rule == "BPTT":
        assert peaks[128] > 8 * peaks[8]
    else:
        assert peaks[128] == peaks[8]


@pytest.mark.parametrize("rule", RULES)
def test_what_the_neurons_fire_is_reported(rule):
    model = make(NETWORKS["linear 3"], Poisson(4), MeanOutput())
    with RULES[rule]().lend(model, X[:1]) as lent:
        with draws(model, 5), lent.activity.watching(hooks=False):
            lent.backward(X, Y, 1.0)
        lent.activity.judge(0, 0)
        rates, _ = lent.activity.rates()
    seen = {}
    for name in ("network.2", "network.4"):
        model.get_submodule(name).register_forward_hook(
            lambda m, _, s, name=name: seen.update({name: float(s.detach().mean())})
        )
    with draws(model, 5):
        model(X)
    assert rates == pytest.approx(seen)


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_learns_what_float32_does(rule):
    model = make(NETWORKS["conv 2"], Direct(4), MeanOutput()).float()
    x = X.float()
    exact, _, _ = gradients(RULES[rule](), model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found, loss, _ = gradients(RULES[rule](), model, x)
    assert loss.dtype == torch.float32
    for name, of in exact.items():
        assert found[name].dtype == torch.float32
        cosine = F.cosine_similarity(found[name].flatten(), of.flatten(), 0)
        assert 0.95 < cosine < 1 - 1e-9, name


@pytest.mark.parametrize("rule", RULES)
def test_bad_labels_are_named(rule):
    model = make(NETWORKS["linear 2"], Direct(2), MeanOutput())
    with RULES[rule]().lend(model, X[:1]) as lent, pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        lent.backward(X, Y + 1, 1.0)


def flat(*parts):
    return lambda: [nn.Flatten(), nn.Linear(16, 6), *parts, nn.Linear(6, 3)]


BAD = {
    "hard reset": (flat(LIF(reset="hard")), ValueError, "reset='soft' at network.2"),
    "reset": (flat(LIF(detach_reset=False)), ValueError, "detach_reset=True at network.2"),
    "refractory": (flat(LIF(refractory=1)), ValueError, "refractory=0 at network.2"),
    "learnt": (flat(PLIF()), TypeError, r"no trace for network.2 \(PLIF\): use LIF\(\) or IF\(\)"),
    "per channel": (flat(LIF([0.5, 0.6] * 3)), ValueError, "network.2 has a decay for each channel"),
    "no neurons": (flat(), TypeError, r"put LIF\(\) behind network.1"),
    "two": (flat(LIF(), LIF()), TypeError, "needs weights between neurons: network.3"),
    "norm": (flat(BNTT(6, 2), LIF()), TypeError, r"network.2 \(BNTT\) between .* norm='none'"),
    "batch norm": (flat(nn.BatchNorm1d(6), LIF()), TypeError, r"network.2 \(BatchNorm1d\).* norm='none'"),
    "relu": (flat(LIF(), nn.ReLU()), TypeError, r"network.3 \(ReLU\) behind neurons: leave it out"),
    "head": (lambda: [LIF(), *flat(LIF())()], TypeError, r"LIF \(LIF\) before the first weights"),
    "max pooling": (
        lambda: [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), LIF(), nn.Flatten(), nn.Linear(2, 3)],
        TypeError,
        r"network.1 \(MaxPool2d\) between .* behind the neurons",
    ),
    "dropout": (flat(Dropout(0.5), LIF()), TypeError, "between weights and neurons"),
    "LSTM": (lambda: [nn.Flatten(), nn.LSTM(16, 6), nn.Linear(6, 3)], TypeError, "chain of layers"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", BAD)
def test_what_has_no_trace_is_refused_before_training(kind, rule):
    network, error, words = BAD[kind]
    model = SpikingClassifier(Direct(2), Sequential(*network()), MeanOutput())
    with pytest.raises(error, match=words.replace(" or IF\\(\\)", "")):
        RULES[rule]().fit(model, (X.float(), Y), epochs=1, progress=False)


@pytest.mark.parametrize("rule", RULES)
def test_other_models_and_readouts_are_refused(rule):
    rule = RULES[rule]()
    with pytest.raises(TypeError, match=r"this Sequential has no time: .*BPTT"):
        rule.fit(ordinary((Dense(4),), (1, 4, 4), 3), (X.float(), Y), epochs=1, progress=False)
    model = make(NETWORKS["linear 2"], Direct(2), LastOutput())
    with pytest.raises(TypeError, match=r"LastOutput reads the answer otherwise: use MeanOutput\(\)"):
        rule.fit(model, (X, Y), epochs=1, progress=False)


@pytest.mark.parametrize("rule", ["OTTT", "DECOLLE"])
def test_recurrent_layers_are_refused_by_rules_without_a_trace_for_them(rule):
    model = make(flat(Recurrent(6)), Direct(2), MeanOutput())
    with pytest.raises(TypeError, match=r"network.2 \(Recurrent\)"):
        RULES[rule]().refuse(model, X[:1])


@pytest.mark.parametrize("rule", ["OTTT", "DECOLLE"])
def test_networks_that_end_in_spikes_are_trained(rule):
    """The loss is of the spikes of each step; max pooling behind neurons is of the step too."""

    def network():
        return [nn.Conv2d(1, 2, 3, padding=1), LIF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3), LIF()]

    for readout in (SpikeCount(), MeanOutput(), MeanMembrane()):
        model = make(network, Poisson(4), readout)
        found, _, logits = gradients(RULES[rule](), model)
        assert all(g.abs().max() > 0 for g in found.values())
        with draws(model, 5):
            assert torch.allclose(model(X), logits)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "accuracy"), [((Dense(64), Dense(64)), 0.9), ((Conv(8), Pool()), 0.85)])
@pytest.mark.parametrize("rule", RULES)
def test_digits_are_learnt(rule, architecture, accuracy):
    """With the defaults; 500 test samples, three standard errors are below 0.05."""
    from snnrobust import data

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking(architecture, (1, 8, 8), 10, Poisson(8), norm="none", readout=MeanOutput())
    train, test = data.load("digits", "train"), data.load("digits", "test")
    history = RULES[rule]().fit(model, train, test, epochs=10, progress=False)
    assert history.last["validation_accuracy"] > accuracy


def test_the_defaults_are_those_that_the_reference_assumes():
    assert LIF().surrogate == IF().surrogate == ALIF().surrogate == ATan(2.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_whole_fit_holds_one_time_step_at_once(rule, monkeypatch):
    """The check before training and the validation too: the sequence is never encoded at once."""
    model = make(NETWORKS["linear 2"], Poisson(6), MeanOutput())
    monkeypatch.setattr(Poisson, "forward", lambda *_: pytest.fail("the whole sequence was encoded"))
    history = RULES[rule]().fit(model, (X, Y), (X, Y), epochs=1, progress=False)
    assert 0 <= history.last["validation_accuracy"] <= 1
