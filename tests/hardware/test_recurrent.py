from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Frames, Rows
from snnrobust.energy import count_operations
from snnrobust.hardware import Chain, GaussianNoise, deploy, on_chips
from snnrobust.layers import LastOutput, MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF, Recurrent
from snnrobust.quantization import Uniform, uniform

KINDS = {
    "lstm": lambda **more: nn.LSTM(3, 4, **more),
    "gru": lambda **more: nn.GRU(3, 4, **more),
    "rnn": lambda **more: nn.RNN(3, 4, **more),
    "relu": lambda **more: nn.RNN(3, 4, nonlinearity="relu", **more),
    "projected": lambda **more: nn.LSTM(3, 4, proj_size=2, **more),
}
SHAPES = [{}, {"num_layers": 2}, {"bias": False}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}]


class Holder(nn.Module):
    """A network of an ordinary kind, which calls its recurrent layer as torch's are called."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, state=None):
        return self.rnn(x, state)


def flat(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else [state])]


def double(module):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module().double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("start", ["zero", "given", "single"])
def test_an_ideal_chip_is_torchs_layer(kind, shape, start):
    model = Holder(double(lambda: KINDS[kind](**shape)))
    chip = deploy(model, Chain(), seed=0)
    x = torch.rand(5, 3, dtype=torch.float64) if start == "single" else torch.rand(5, 2, 3, dtype=torch.float64)
    state = None
    if start == "given":
        _, state = model(x)
    for mine, theirs in zip(flat(chip(x, state)), flat(model(x, state)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def network(kind, steps=6, **more):
    return SpikingClassifier(
        Frames(steps), Sequential(KINDS[kind](**more), nn.Linear(2 if kind == "projected" else 4, 5)), LastOutput()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_sequential_it_streams(kind):
    model = double(lambda: network(kind, num_layers=2))
    chip, x = deploy(model, GaussianNoise(multiplicative=0.3), seed=0), torch.rand(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(deploy(model, Chain(), seed=0)(x), model(x), rtol=1e-12, atol=1e-12)
    with draws(chip, 3):
        whole = chip(x)
        torch.testing.assert_close(list(chip.stream(x))[-1], whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole, model(x))


def test_noise_is_in_each_gate_product_once():
    """The relative noise of a product of all four gates, seen in the gates themselves."""
    model = double(lambda: network("lstm"))
    chip = deploy(model, GaussianNoise(multiplicative=0.5, drawn="chip"), seed=1)
    clean, seen = model.network[0], []
    synapse = chip.network[0].synapses["gates_l0"]
    read = synapse.backend.read
    synapse.backend.read = lambda y, start: seen.append((y, read(y, start))) or read(y, start)
    x = torch.rand(4, 6, 3, dtype=torch.float64)
    chip(x)
    assert len(seen) == 6
    first, _ = seen[0]
    expected = x[:, 0] @ clean.weight_ih_l0.T + clean.bias_ih_l0 + clean.bias_hh_l0  # h is zero
    torch.testing.assert_close(first[0], expected)
    ratios = [noisy / first for first, noisy in seen]
    assert all(torch.allclose(r, ratios[0][:, :1]) for r in ratios)  # one pattern a chip, for all steps and samples
    assert ratios[0].shape == (1, 4, 16)
    assert len(set(ratios[0][0, 0].tolist())) == 16


def test_weights_of_all_gates_are_stored_by_the_backend():
    model = double(lambda: network("lstm"))
    chip = deploy(model, Uniform(bits=3), seed=0)
    lstm = model.network[0]
    stored = chip.network[0].synapses["gates_l0"].array.weight
    assert torch.equal(stored, uniform(torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1), 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_gradient_is_exact(kind):
    chip = deploy(double(lambda: network(kind)), GaussianNoise(multiplicative=0.3), seed=0)
    x = torch.rand(2, 6, 3, dtype=torch.float64, requires_grad=True)

    def logits(x):
        with draws(chip, 5):
            return chip(x)

    assert torch.autograd.gradcheck(logits, x)


def test_a_recurrent_spiking_layer_is_put_on_a_chip():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpikingClassifier(
            Rows(5), Sequential(nn.Linear(5, 16), Recurrent(16, LIF(threshold=0.1)), nn.Linear(16, 3)), MeanOutput()
        ).eval()
    x = torch.rand(4, 1, 5, 5)
    assert torch.equal(deploy(model, Chain(), seed=0)(x), model(x))
    chip = deploy(model, GaussianNoise(multiplicative=1.0), seed=0, layers=["network.1.recurrent"])
    with draws(chip, 1):
        noisy = chip(x)
        assert torch.equal(list(chip.stream(x))[-1], noisy)
    assert not torch.equal(noisy, model(x))
    with pytest.raises(TypeError, match=r"network\.1 .*count the original"):
        count_operations(chip, x)


def test_recurrent_layers_on_a_chip_are_not_counted_silently():
    with pytest.raises(TypeError, match=r"network\.0 .*count the original"):
        count_operations(deploy(network("lstm"), Chain(), seed=0), torch.rand(2, 6, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequential", [True, False])
def test_it_learns_on_chips_what_it_would_learn_without(kind, sequential):
    model = double(lambda: network(kind, num_layers=2) if sequential else Holder(KINDS[kind](num_layers=2)))
    x = torch.rand(4, 6, 3, dtype=torch.float64)

    def gradients(m):
        m.zero_grad()
        y = m(x)
        (y if sequential else y[0]).square().sum().backward()
        return [p.grad.clone() for p in m.parameters()]

    names, before = list(dict(model.named_parameters())), gradients(model.train())
    shape, state = str(model), deepcopy(model.state_dict())
    with on_chips(model, Chain()) as make:
        assert list(dict(model.named_parameters())) == names
        assert list(model.state_dict()) == list(state)
        make(3)
        for mine, theirs in zip(gradients(model), before, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert str(model) == shape
    with on_chips(model, GaussianNoise(multiplicative=0.2, drawn="chip")) as make:
        make(3)
        flat_y = lambda y: y if sequential else y[0]  # noqa: E731
        learning = flat_y(model(x))
        torch.testing.assert_close(learning, flat_y(deploy_original(model, kind, sequential)(x)), rtol=1e-9, atol=1e-12)
        model.eval()
        torch.testing.assert_close(flat_y(model(x)), flat_y(plain(model, kind, sequential)(x)), rtol=0, atol=0)


def plain(model, kind, sequential):
    fresh = double(lambda: network(kind, num_layers=2) if sequential else Holder(KINDS[kind](num_layers=2)))
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def deploy_original(model, kind, sequential):
    return deploy(plain(model, kind, sequential), GaussianNoise(multiplicative=0.2, drawn="chip"), seed=3)
