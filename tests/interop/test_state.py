"""State is fresh inside and afterwards as it was, whatever resets it and whatever happens."""

import copy

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from snnrobust import evaluation, hardware
from snnrobust.attacks import FGSM, Linf
from snnrobust.draws import draws
from snnrobust.evaluation.fingerprint import fingerprint
from snnrobust.interop import wrap
from snnrobust.interop.state import fresh, renew, resets, stateful


def held(model):
    """All that modules hold: objects, and their values."""
    objects = [(id(v), k) for m in model.modules() for k, v in (*vars(m).items(), *m._buffers.items())]
    values = [
        copy.deepcopy(
            {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in {**m._buffers, **memories(m)}.items()}
        )
        for m in model.modules()
    ]
    return objects, values


def memories(module):
    return vars(module).get("_memories", {})


def equal(a, b):
    objects = a[0] == b[0]
    pairs = [(u[k], v[k]) for u, v in zip(a[1], b[1], strict=True) for k in u.keys() | v.keys()]
    return objects and all(torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v for u, v in pairs)


def running(zoo, kind):
    """A model in the middle of a stream of a user's, whose graph still hangs on its state."""
    model = {"jelly": zoo.jelly_steps, "torch": zoo.torch_steps, "forgets": zoo.TorchForgets}[kind]()
    x = torch.rand(2, zoo.FEATURES, requires_grad=True)
    output = [model(x) for _ in range(2)][-1]
    return model, x, output if kind == "jelly" else output[0]


SETTINGS = {
    "jelly": {"time_axis": "step", "time_steps": 3, "decode": "sum"},
    "torch": {"time_axis": "step", "time_steps": 3, "decode": "sum", "output": "spikes"},
    "forgets": {"time_axis": None, "decode": "sum", "output": "spikes"},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_stream_of_the_user_goes_on(kind, training, zoo, batch):
    model, x, output = running(zoo, kind)
    model.train(training)
    before = held(model)
    wrapped = wrap(model, **SETTINGS[kind])
    for part in (batch[0], batch[0][:2], batch[0].requires_grad_()):
        wrapped(part)
        assert equal(held(model), before)
    output.sum().backward()  # the graph of the stream is whole
    assert x.grad is not None


@pytest.mark.parametrize("kind", SETTINGS)
def test_after_an_error_too(kind, zoo, batch):
    model, _, _ = running(zoo, kind)
    wrapped = wrap(model, **SETTINGS[kind])
    wrapped(batch[0])
    before = held(model)
    linear = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))

    def stumble(*_):
        raise KeyError("stumbled")

    handle = linear.register_forward_hook(stumble)
    with pytest.raises(KeyError, match="stumbled"):
        wrapped(batch[0])
    handle.remove()
    assert equal(held(model), before)


def test_other_networks_are_left_alone(zoo, batch):
    """snnTorch keeps a list of every neuron ever made, and resets neurons of other networks."""
    other = zoo.TorchForgets()
    other(batch[0])
    membrane = other.lif1.mem.detach().clone()
    registered = list(snntorch.SpikingNeuron.instances)
    wrapped = wrap(zoo.torch_steps(), **SETTINGS["torch"])
    for _ in range(2):
        wrapped(batch[0])
    assert torch.equal(other.lif1.mem, membrane)
    assert len(snntorch.SpikingNeuron.instances) == len(registered) + 2  # those of the new network


def test_no_graph_is_kept(zoo, batch):
    model = zoo.jelly_steps()
    wrapped = wrap(model, **SETTINGS["jelly"])
    x = batch[0].requires_grad_()
    for _ in range(2):
        wrapped(x).sum().backward()
    assert all(not isinstance(v, torch.Tensor) for m in model.modules() for v in memories(m).values())


class Reset(nn.Module):
    """State in three homes, reset in place."""

    def __init__(self, method):
        super().__init__()
        self.register_buffer("buffer", torch.zeros(1))
        self.attribute, self.listed = torch.zeros(1), [torch.zeros(1)]
        self.seen = []
        setattr(self, method, self._zero)

    def _zero(self):
        for tensor in (self.buffer, self.attribute, self.listed[0]):
            tensor.zero_()
        self.seen.clear()

    def forward(self, x):
        self.buffer = self.buffer + x.mean()
        self.attribute += x.detach().mean()
        self.listed[0] = self.listed[0] + x.mean()
        self.seen.append(len(x))
        return x * (self.buffer + self.attribute + self.listed[0]) + len(self.seen)


@pytest.mark.parametrize("method", ["reset", "reset_state", "reset_states", "reset_mem", "own"])
def test_every_style_of_reset(method, batch):
    x, _ = batch
    model = nn.Sequential(Reset(method))
    expected = nn.Sequential(Reset(method))(x)
    model(x)
    before = held(model), list(model[0].seen), model[0].attribute.clone(), model[0].listed[0].clone()
    reset = (lambda m: m[0].own()) if method == "own" else None
    wrapped = wrap(model, time_axis=None, time_steps=1, reset=reset)
    assert torch.equal(wrapped(x), expected)
    assert torch.equal(wrapped(x), expected)
    assert equal(held(model), before[0])
    assert model[0].seen == before[1]
    assert torch.equal(model[0].attribute, before[2])
    assert torch.equal(model[0].listed[0], before[3])


def test_what_is_known_to_have_state():
    assert all(map(stateful, (neuron.LIFNode(), snntorch.Leaky(0.9), Reset("reset_states"))))
    assert not any(map(stateful, (nn.Linear(1, 1), nn.LSTM(1, 1), nn.BatchNorm1d(1), Reset("own"))))
    assert resets(snntorch.Leaky(0.9)).__name__ == "reset_mem"


def test_a_reset_that_needs_arguments_is_not_one():
    class Needs(nn.Module):
        def reset(self, batch):
            raise AssertionError

    class Twice(Needs):
        def reset_state(self, batch=None, *more, **others):
            self.called = True

    assert resets(Needs()) is None
    module = Twice()
    resets(module)()
    assert module.called
    module.reset_state = None
    assert resets(module) is None
    module.reset_mem = lambda: 3
    assert resets(module)() == 3


def test_memories_get_their_own_first_values():
    node = neuron.IFNode(v_reset=0.25)
    node.register_memory("trace", torch.ones(2))
    node.v, node.trace = torch.full((3,), 9.0), torch.full((2,), 9.0)
    mine = node.trace
    with fresh(node):
        assert node.v == 0.25
        assert torch.equal(node.trace, torch.ones(2))
        node.trace.fill_(5.0)
        renew(node)
        assert torch.equal(node.trace, torch.ones(2))
    assert node.trace is mine
    assert torch.equal(mine, torch.full((2,), 9.0))
    functional.reset_net(node)
    assert torch.equal(node.trace, torch.ones(2))


def test_a_reset_of_the_weights_is_refused(batch):
    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def reset(self):
            self.linear.reset_parameters()

        def forward(self, x):
            return self.linear(x)

    model = Learner()
    with pytest.raises(ValueError, match=r"a reset changed the model's parameters \(asked: Learner\)"):
        wrap(model, time_axis=None)(batch[0])


def test_contexts_nest(zoo, batch):
    """A wrapped model inside another."""
    inner = wrap(zoo.jelly_steps(), **SETTINGS["jelly"])
    outer = wrap(nn.Sequential(inner), time_axis=None)
    assert torch.equal(outer(batch[0]), inner(batch[0]))


@pytest.mark.parametrize("kind", SETTINGS)
def test_stored_cells_are_read_back(kind, zoo, batch, tmp_path):
    """A model is the same before and after its calls, and its neurons' methods, which snnTorch keeps on them, do not recur."""
    model = {"jelly": zoo.jelly_steps, "torch": zoo.torch_steps, "forgets": zoo.TorchForgets}[kind]()
    wrapped = wrap(model, **SETTINGS[kind])
    print_before = fingerprint(wrapped)
    wrapped(batch[0])
    assert fingerprint(wrapped) == print_before
    runs = []
    for _ in range(2):
        report = evaluation.evaluate(wrapped, batch, {"fgsm": FGSM(Linf(0.1))}, progress=False, folder=tmp_path)
        runs.append((report.rows, sorted(tmp_path.iterdir())))
    assert runs[0] == runs[1]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert fingerprint(wrapped) != print_before


def test_on_a_chip(zoo, batch):
    """Layers that count their calls count each forward pass anew; noise is that of the steps."""
    wrapped = wrap(zoo.torch_steps(), **{**SETTINGS["torch"], "output": "membrane"})
    chip = hardware.deploy(wrapped, hardware.GaussianNoise(multiplicative=0.5), seed=1)
    with draws(chip, 3):
        first = chip(batch[0])
        assert torch.equal(chip(batch[0]), first)
    with draws(chip, 3, torch.arange(5)[2:]):
        torch.testing.assert_close(chip(batch[0][2:]), first[2:])
    assert not torch.allclose(first, wrapped(batch[0]))
