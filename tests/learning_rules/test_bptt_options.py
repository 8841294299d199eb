"""BPTT with a loss, a surrogate or a truncation of its own."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust import data
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import BNTT, Chunked, Dropout, MeanOutput, Sequential, SpikeCount
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import ALIF, LIF, Recurrent
from snnrobust.neurons.surrogate import ATan, FastSigmoid, Triangle

T, B, K = 7, 5, 3


@pytest.fixture(scope="module")
def digits():
    return data.take(data.load("digits", "train"), 200)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def classifier(encoder=None, *more, steps=T):
    network = Sequential(
        *(nn.Linear(6, 8), LIF(0.9, 0.3), *more, nn.Linear(8, 8), Recurrent(8, LIF(0.8, 0.3)), ALIF(0.9, 0.2)),
        nn.Linear(8, K),
    )
    return SpikingClassifier(encoder or Poisson(steps), network, MeanOutput())


def gradients(rule, model, x, y, key=0, ids=None):
    """Of one call of the rule's backward pass, in train mode."""
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent, draws(model, key, ids):
        loss, logits = lent.backward(x, y, 1.0)
    return loss, logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def detached(state):
    if isinstance(state, torch.Tensor):
        return state.detach()
    if isinstance(state, tuple):
        return type(state)(*map(detached, state)) if hasattr(state, "_fields") else tuple(map(detached, state))
    return {k: detached(v) for k, v in state.items()} if isinstance(state, dict) else state


def truncated_by_hand(model, x, y, every, key):
    """Step by step, the state detached after each ``every`` steps."""
    model.train().zero_grad()
    with draws(model, key):
        sequence = model.encoder(x)
        state, outputs = model.network.initial_state(sequence[0]), []
        for t, x_t in enumerate(sequence.unbind(0)):
            state = detached(state) if t and t % every == 0 else state
            y_t, state = model.network.step(x_t, state)
            outputs.append(y_t)
        logits = model.readout(torch.stack(outputs))
        loss = F.cross_entropy(logits, y)
        loss.backward()
    return loss.detach(), logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


X = torch.rand(B, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("every", [1, 2, 3, 6])
@pytest.mark.parametrize("encoder", [Direct(T), Poisson(T)], ids=str)
def test_truncated_gradients_are_those_of_a_loop_that_detaches(encoder, every):
    """With a mask for the sequence, a mask for each step and normalisation in time; the last piece may be shorter."""
    more = (BNTT(8, T), Dropout(0.2), Dropout(0.2, drawn="step"))
    for key in (1, 2):
        model, other = (seeded(lambda: classifier(encoder, *more).double()) for _ in range(2))
        loss, logits, found = gradients(BPTT(truncate=every), model, X, Y, key)
        want_loss, want_logits, want = truncated_by_hand(other, X, Y, every, key)
        whole = gradients(BPTT(), seeded(lambda: classifier(encoder, *more).double()), X, Y, key)
        assert abs(loss - want_loss) < 1e-10
        assert (logits - want_logits).abs().max() < 1e-10
        assert abs(loss - whole[0]) < 1e-10  # the forward pass is the same
        for name, value in want.items():
            assert (found[name] - value).abs().max() < 1e-10, name
        assert (found["network.0.weight"] - whole[2]["network.0.weight"]).abs().max() > 1e-4
        for (name, one), (_, two) in zip(model.named_buffers(), other.named_buffers(), strict=True):
            assert (one - two).abs().max() < 1e-10, name  # running statistics were brought up to date once
        model.zero_grad()


def test_pieces_as_long_as_the_sequence_cut_nothing(digits):
    for truncate in (T, T + 3):
        model, other = seeded(classifier).double(), seeded(classifier).double()
        found, want = gradients(BPTT(truncate=truncate), model, X, Y, 1), gradients(BPTT(), other, X, Y, 1)
        assert all(torch.equal(found[2][name], value) for name, value in want[2].items())


def kept(truncate, steps):
    """Bytes that the forward pass saves for the backward pass; storages once."""
    model = seeded(lambda: classifier(Direct(steps)))
    network = model.network if truncate is None else Chunked(model.network, truncate, truncated=True)
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(model.encoder(torch.rand(64, 6)))
    return sum(s.nbytes() for s in storages.values())


def test_memory_is_that_of_a_piece_and_of_a_state_for_each():
    long, piece, twice = kept(None, 64), kept(4, 64), kept(4, 128)
    state = 64 * 4 * (8 + 8 + 8 + 3 * 8)  # bytes of all potentials, spikes and thresholds, generously
    assert piece < long / 4
    assert twice - piece < 16 * state + 64 * 4 * K * 64


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: ordinary((Dense(4),), (6,), K), "truncate cuts the gradient in time, and the model has none"),
        (lambda: spiking((Dense(4),), (6,), K, Direct(4), norm="BatchNorm"), r"truncate=2 does not fit .* use BNTT"),
        (lambda: spiking((Dense(4),), (6,), K, Direct(4), norm="TEBN").eval(), r"\(TEBN\) normalises over all time"),
    ],
)
def test_truncation_is_refused_before_training_where_it_cannot_be(model, words):
    model = model()
    training = model.training
    with pytest.raises(ValueError, match=words):
        BPTT(truncate=2).fit(model, (X.float(), Y), epochs=1, progress=False)
    assert model.training == training
    if isinstance(model, SpikingClassifier):
        BPTT(truncate=4).fit(model, (X.float(), Y), epochs=1, progress=False)  # nothing is cut


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"truncate": 0}, ValueError),
        ({"truncate": 1.5}, TypeError),
        ({"loss": "mse"}, ValueError),
        ({"surrogate": "ATan"}, TypeError),
    ],
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        BPTT(**arguments)


# --- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["tet", "spike_count"])
def test_losses_over_time_train(loss, digits):
    last = (LIF(0.9, 0.5), SpikeCount()) if loss == "spike_count" else (None, MeanOutput())
    layers = [nn.Flatten(), nn.Linear(64, 32), LIF(0.9, 0.3), nn.Linear(32, 10), *([last[0]] if last[0] else [])]
    model = seeded(lambda: SpikingClassifier(Direct(6), Sequential(*layers), last[1]))
    rule = BPTT(lr=1e-2, batch_size=25, loss=loss)
    history = rule.fit(model, digits, epochs=8, progress=False)
    assert history.last["accuracy"] > 0.8
    assert history.last["loss"] < 0.5 * history.records[0]["loss"]


def test_a_network_without_time_refuses_losses_over_time(digits):
    with pytest.raises(ValueError, match="loss 'tet' is of outputs over time, and the model has none"):
        BPTT(loss="tet").fit(ordinary((Dense(4),), (1, 8, 8), 10), digits, epochs=1, progress=False)


# --- surrogates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncate", [None, 3])
def test_the_surrogate_trains_and_the_old_one_comes_back(truncate, digits):
    """The weights are those of the same network made with that surrogate, and not those of its own."""

    def make(surrogate):
        return seeded(lambda: spiking((Dense(12),), (1, 8, 8), 10, Poisson(T), LIF(0.9, 0.3, surrogate=surrogate)))

    def fit(model, **settings):
        BPTT(lr=1e-2, truncate=truncate, **settings).fit(model, digits, epochs=1, progress=False)
        return model

    own, lent, other = make(ATan(2.0)), make(ATan(2.0)), make(Triangle(1.0, 1.0))
    fit(own), fit(lent, surrogate=Triangle(1.0, 1.0)), fit(other)
    found = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (own, lent, other)]
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[1], found[0])
    assert {m.surrogate for m in lent.modules() if isinstance(m, LIF)} == {ATan(2.0)}


def test_the_old_surrogate_comes_back_after_an_error():
    model, seen = seeded(classifier), []

    def fail():
        with BPTT(surrogate=Triangle()).lend(model, X[:1].float()):
            seen.extend(m.surrogate for m in model.modules() if isinstance(m, LIF))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [Triangle()] * 2
    assert {m.surrogate for m in model.modules() if isinstance(m, LIF)} == {ATan(2.0)}


def test_a_surrogate_for_a_model_without_any_is_an_error(digits):
    with pytest.raises((ValueError, TypeError), match="surrogate"):
        BPTT(surrogate=ATan()).fit(ordinary((Dense(4),), (1, 8, 8), 10), digits, epochs=1, progress=False)


def test_its_input_gradient_is_through_the_surrogate_that_trains():
    """Of each sample by itself, and without a trace in the model."""
    model = seeded(lambda: classifier(Direct(T))).double().eval()
    other = seeded(lambda: classifier(Direct(T))).double().eval()
    for m in other.modules():
        if hasattr(m, "surrogate"):
            m.surrogate = FastSigmoid(4.0)
    x = X.clone().requires_grad_()
    want = torch.stack(
        [torch.autograd.grad(F.cross_entropy(other(x[i : i + 1]), Y[i : i + 1]), x)[0][i] for i in range(B)]
    )
    found = BPTT(surrogate=FastSigmoid(4.0)).input_gradient(model, X, Y)
    assert (found - want).abs().max() < 1e-12
    assert (BPTT().input_gradient(model, X, Y) - want).abs().max() > 1e-6
    assert all(p.grad is None for p in model.parameters())
    assert not X.requires_grad


# --- 16 bits --------------------------------------------------------------------------------------------------


def test_the_backward_pass_of_16_bits_is_outside_autocast(digits):
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.is_autocast_enabled("cpu"))
            return grad

    class Layer(nn.Linear):
        def forward(self, x):
            return Watch.apply(super().forward(x))

    model = seeded(lambda: nn.Sequential(nn.Flatten(), Layer(64, 10)))
    x, y = digits
    history = BPTT(precision="bfloat16", batch_size=200).fit(model, (x, y), epochs=1, progress=False)
    assert seen == [False, True, False]  # the check before training; the step
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = seeded(lambda: nn.Sequential(nn.Flatten(), Layer(64, 10)))(x)
    assert history.last["loss"] == pytest.approx(F.cross_entropy(logits.float(), y).item(), abs=1e-3)
    assert model[1].weight.dtype == torch.float32
