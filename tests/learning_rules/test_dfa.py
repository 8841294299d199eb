import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.draws import draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import SpikeCount
from snnrobust.learning_rules import BPTT, DFA, RULES
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

SHAPE = (2, 6, 6)
NEURON = LIF(0.9, threshold=0.3)


def fresh(make, seed=0):
    with keyed(seed):
        return make()


MODELS = {
    "linear": lambda: spiking((Dense(9),), SHAPE, 3, Direct(4), NEURON, "none"),
    "linear, Poisson": lambda: spiking((Dense(9),), SHAPE, 3, Poisson(4), NEURON, "BNTT"),
    "conv": lambda: spiking((Conv(4, stride=2),), SHAPE, 3, Direct(4), LIF(0.8, threshold=0.3, reset="hard"), "none"),
    "conv, pool": lambda: spiking((Conv(4), Pool()), SHAPE, 3, Poisson(5), NEURON, "BNTT"),
    "ordinary linear": lambda: ordinary((Dense(9),), SHAPE, 3),
    "ordinary conv": lambda: ordinary((Conv(4), Pool()), SHAPE, 3),
    "no hidden layer": lambda: spiking((), SHAPE, 3, Direct(2)),
    "learnt head": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
    ),
}  # fmt: skip


def batch(size=5):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(size, *SHAPE, generator=generator).double(), torch.arange(size) % 3


def gradients(rule, model, x, y, scale=1.0):
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent, draws(model, 9):
        loss, logits = lent.backward(x, y, scale)
    assert not logits.requires_grad
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, loss


class Transposed(DFA):
    """B is the weight of the layer behind."""

    def matrices(self, model, example):
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        following = [m.weight.detach() for _, m in layers[1:]]
        made = super().matrices(model, example)
        assert set(made) == {name for name, _ in layers[:-1]}
        return {name: w.view_as(made[name]) for (name, _), w in zip(layers, following, strict=False)}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", ["cross_entropy", "tet"])
def test_with_one_hidden_layer_and_its_transpose_it_is_bptt(kind, loss):
    if loss == "tet" and kind in ("ordinary linear", "ordinary conv", "learnt head"):
        pytest.skip("has no time")
    model, (x, y) = fresh(MODELS[kind]).double(), batch()
    true, its_loss = gradients(BPTT(loss=loss), model, x, y)
    found, own_loss = gradients(Transposed(loss=loss), model, x, y, 2.0)
    torch.testing.assert_close(own_loss, its_loss, rtol=1e-12, atol=0)
    assert found.keys() == true.keys()
    for name, gradient in true.items():
        assert gradient.norm() > 0, name
        torch.testing.assert_close(found[name], 2 * gradient, rtol=1e-9, atol=1e-13)
    if kind != "no hidden layer":
        with draws(model.eval(), 9):
            expected = BPTT(loss=loss).input_gradient(model, x, y)
            own = Transposed(loss=loss).input_gradient(model, x, y, input_feedback="transpose")
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-13)


def test_a_last_layer_that_spikes():
    """The error enters at the network's output, which is behind the last neuron."""
    model, (x, y) = fresh(MODELS["linear"]).double(), batch()
    network = type(model.network)(*model.network, LIF(0.9, threshold=0.2))
    model = type(model)(model.encoder, network, SpikeCount())
    for loss in ("cross_entropy", "spike_count"):
        true, _ = gradients(BPTT(loss=loss), model, x, y)
        found, _ = gradients(DFA(loss=loss), model, x, y)
        for name in ("network.3.weight", "network.3.bias"):
            assert true[name].norm() > 0
            torch.testing.assert_close(found[name], true[name], rtol=1e-9, atol=1e-13)


def test_frozen_blocks_are_left_out():
    model, (x, y) = fresh(lambda: ordinary((Dense(5), Dense(4)), SHAPE, 3)).double(), batch()
    whole, _ = gradients(DFA(), model, x, y)
    frozen = [name for name in whole if name.startswith(("1.", "2."))]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
        model.get_parameter(name).grad = None
    rest, _ = gradients(DFA(), model, x, y)
    assert set(rest) == set(whole) - set(frozen)
    for name, gradient in rest.items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=0)


def test_matrices_are_those_of_the_seed_and_of_the_ends_of_blocks():
    model = fresh(lambda: spiking((Conv(4), Pool(), Conv(5), Dense(6)), SHAPE, 3, Direct(2)))
    x, _ = batch()
    one, again, other = (DFA(seed=seed).matrices(model, x[:1].float()) for seed in (0, 0, 1))
    assert {name: tuple(m.shape) for name, m in one.items()} == {
        "network.0": (3, 4, 3, 3), "network.4": (3, 5 * 9), "network.8": (3, 6),
    }  # fmt: skip
    for name, matrix in one.items():
        assert torch.equal(matrix, again[name])
        assert not torch.equal(matrix, other[name])
        bound = matrix[0].numel() ** -0.5
        assert 0.8 * bound < matrix.abs().max() <= bound
        assert matrix.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    alike = DFA().matrices(ordinary((Dense(6), Dense(6)), SHAPE, 3), x[:1].float())
    assert not torch.equal(*alike.values())


@pytest.mark.parametrize(("architecture", "accuracy"), [("mlp", 0.93), ("conv-small", 0.88)])
def test_digits_are_learnt(architecture, accuracy):
    train, test = data.load("digits", "train"), data.load("digits", "test")
    model = fresh(lambda: spiking(ARCHITECTURES[architecture], (1, 8, 8), 10, Direct(4)))
    history = DFA(lr=5e-3).fit(model, train, test, epochs=4, progress=False)
    assert history.last["validation_accuracy"] > accuracy
    assert set(history.last["rates"]) == {n for n, m in model.named_modules() if isinstance(m, LIF)}


def test_trains_in_16_bits_and_in_parts():
    train = data.take(data.load("digits", "train"), 256)
    model = fresh(lambda: spiking((Conv(4), Dense(16)), (1, 8, 8), 10, Direct(3)))
    history = DFA(lr=1e-2, precision="bfloat16", accumulate=2).fit(model, train, epochs=4, progress=False)
    assert history.last["loss"] < 0.8 * history.records[0]["loss"]


def test_bad_settings():
    with pytest.raises(ValueError, match="loss must be one of"):
        DFA(loss="mse")
    with pytest.raises(ValueError, match="loss 'tet' is of outputs over time"):
        DFA(loss="tet").refuse(fresh(MODELS["ordinary linear"]), batch()[0][:1])
    assert RULES["DFA"] is DFA
