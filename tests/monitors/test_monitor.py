"""Monitors against spike trains that were made by hand and against statistics of the whole output."""

from copy import deepcopy

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import neuron as jelly
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.monitors import monitor
from snnrobust.neurons import ALIF, IF, LIF, NEURONS, Neuron, Recurrent


class Plays(Neuron):
    """Puts out its input, whatever that is, and has half of it as potential."""

    def __init__(self):
        super().__init__("soft", LIF().surrogate, True, 0)
        self.threshold = 1.0

    def forward(self, x):
        return x.clone()

    def membrane(self, x):
        return x / 2


NEURONS.pop("Plays")  # for this file only


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Sequential(
            nn.Flatten(),
            nn.Linear(16, 8),
            LIF(0.9, 0.2),
            nn.Linear(8, 6),
            Recurrent(6, ALIF(threshold=0.2)),
            nn.Linear(6, 3),
        )
    return SpikingClassifier(Poisson(5), network, MeanOutput())


@pytest.fixture
def x():
    return torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def outputs_of(model, name, run):
    """All outputs of a layer, [T, N, *], over all forwards of ``run``."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    run()
    handle.remove()
    return torch.cat(seen, 1)


def test_by_hand():
    """Three steps, two samples, four neurons: never, always, once in one sample, always in one sample."""
    x = torch.tensor([[[0.0, 1, 1, 1], [0, 1, 0, 0]], [[0, 1, 0, 1], [0, 1, 0, 1]], [[0, 1, 0, 1], [0, 1, 0, 1]]])
    with monitor(Sequential(Plays()), membrane=True) as record:
        Sequential(Plays())(x)  # another one is not watched
        with pytest.raises(RuntimeError, match="has seen nothing"):
            record.layers  # noqa: B018
    model = Sequential(Plays())
    with monitor(model, membrane=True) as record:
        model(x)
    (layer,) = record.layers
    assert (layer.name, layer.type, layer.shape, layer.samples) == ("0", "Plays", (4,), 2)
    assert layer.rate.tolist() == [4 / 8, 4 / 8, 4 / 8]
    assert layer.mean.tolist() == layer.rate.tolist()
    assert layer.silent == 1 / 4
    assert layer.saturated == 3 / 8
    m = layer.membrane
    assert m.mean.tolist() == [1 / 4] * 3
    assert m.std.tolist() == [1 / 4] * 3
    assert m.low.tolist() == [0] * 3
    assert m.high.tolist() == [1 / 2] * 3
    assert record["0"].rate.tolist() == layer.rate.tolist()
    with pytest.raises(ValueError, match="layer must be one of 0; got '1'"):
        record["1"]


def test_batches_of_any_size_give_the_statistics_of_the_whole(x):
    model = make()
    for name in ("network.2", "network.4"):
        with draws(model, 3):
            whole = outputs_of(model, name, lambda: model(x))
        with monitor(model, membrane=True) as record:
            for part in torch.arange(9).split((4, 1, 4)[0]):
                with draws(model, 3, part):
                    model(x[part])
        with monitor(model, membrane=True) as at_once, draws(model, 3):
            model(x)
        layer, expected = record[name], at_once[name]
        assert layer.samples == 9
        torch.testing.assert_close(layer.rate, (whole != 0).double().flatten(1).mean(1), rtol=1e-12, atol=0)
        assert 0 < float(layer.rate.mean()) < 1
        assert layer.silent == (whole == 0).all(0).all(0).double().mean().item()
        assert layer.saturated == (whole != 0).all(0).double().mean().item()
        for statistic in ("mean", "std", "low", "high"):
            torch.testing.assert_close(
                getattr(layer.membrane, statistic), getattr(expected.membrane, statistic), rtol=1e-9, atol=1e-12
            )


def test_membranes_are_those_of_the_neurons(x):
    model = make().eval()
    inputs = {}
    lif, recurrent = model.network[2], model.network[4]
    for module in (lif, recurrent):
        module.register_forward_hook(lambda m, args, output: inputs.update({m: (args[0], output)}))
    with monitor(model, membrane=True) as record, draws(model, 3):
        model(x)
    current, _ = inputs[recurrent]
    state, potentials = recurrent.initial_state(current[0]), []
    for x_t in current.unbind(0):
        _, state = recurrent.step(x_t, state)
        potentials.append(recurrent.neuron.potential(state.neuron))
    for name, v in (("network.2", lif.membrane(inputs[lif][0])), ("network.4", torch.stack(potentials).detach())):
        found, rows = record[name].membrane, v.double().flatten(1)
        torch.testing.assert_close(found.mean, rows.mean(1), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.std, rows.std(1, unbiased=False), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.low, rows.amin(1), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.high, rows.amax(1), rtol=1e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_any_batches(batches, steps, neurons, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(-1, 2, (steps, b, neurons), generator=generator).float() for b in batches]
    model = Sequential(Plays())
    with monitor(model, membrane=True) as record:
        for part in parts:
            model(part)
    (layer,), whole = record.layers, torch.cat(parts, 1).double()
    torch.testing.assert_close(layer.rate, (whole != 0).double().flatten(1).mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.mean, whole.flatten(1).mean(1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(layer.membrane.mean, whole.flatten(1).mean(1) / 2, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(layer.membrane.std, whole.flatten(1).std(1, unbiased=False) / 2, rtol=1e-9, atol=1e-12)
    assert layer.silent == pytest.approx((whole == 0).all(0).all(0).double().mean().item())
    assert layer.saturated == pytest.approx((whole != 0).all(0).double().mean().item())


def test_sequences_of_different_lengths_are_weighted_step_by_step():
    model = Sequential(Plays())
    with monitor(model, membrane=True) as record:
        model(torch.ones(1, 3, 2))
        model(torch.zeros(3, 1, 2))
        model(torch.ones(2, 2, 2))
    layer = record["0"]
    assert layer.rate.tolist() == pytest.approx([5 / 6, 2 / 3, 0])
    assert layer.membrane.mean.tolist() == pytest.approx([5 / 12, 1 / 3, 0])
    assert layer.membrane.std.tolist() == pytest.approx([0.5 * (5 / 36) ** 0.5, 0.5 * (2 / 9) ** 0.5, 0])
    assert layer.membrane.low.tolist() == [0, 0, 0]
    assert layer.membrane.high.tolist() == [0.5, 0.5, 0]
    assert (layer.samples, layer.saturated) == (6, 5 / 6)


def test_nothing_changes(x):
    model = make().train()
    model.network[1].eval()
    modes = [m.training for m in model.modules()]
    state = deepcopy(model.state_dict())

    def run():
        torch.manual_seed(5)
        inputs = x.clone().requires_grad_()
        logits = model(inputs)
        logits.square().sum().backward()
        return logits.detach(), inputs.grad, torch.get_rng_state()

    before = run()
    with monitor(model, membrane=True), monitor(model) as inner, monitor(model.network):
        during = run()
    assert inner.layers
    after = run()
    for one, two, three in zip(before, during, after, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert not hooks(model)


def hooks(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called]


def test_afterwards_nothing_more_is_recorded(x):
    model = make()
    with monitor(model) as record:
        model(x)
    model(x)
    assert record["network.2"].samples == 9


def test_an_exception_removes_the_hooks_and_keeps_the_record(x):
    model = make()
    context = monitor(model)
    record = context.__enter__()
    model(x)
    assert hooks(model)
    assert not context.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # it is not swallowed
    assert record["network.2"].samples == 9
    assert not hooks(model)


class Fails(nn.Module):
    def forward(self, x):
        if len(x) == 15:
            raise ZeroDivisionError
        return x


def test_a_forward_that_fails_does_not_disturb_the_next():
    model = Sequential(Plays(), Fails(), Plays())
    with monitor(model) as record:
        with pytest.raises(ZeroDivisionError):
            model(torch.ones(5, 3, 2))
        model[0](torch.ones(5, 1, 2))  # outside a forward, so the first call again
        model(torch.zeros(5, 2, 2))
    assert [layer.name for layer in record.layers] == ["0", "2"]
    assert record["0"].samples == 6
    assert record["2"].rate.tolist() == [0] * 5


def test_nested_monitors_are_independent(x):
    model = make()
    with monitor(model) as outer:
        model(x)
        with monitor(model) as inner:
            model(x[:2])
    assert outer["network.2"].samples == 11
    assert inner["network.2"].samples == 2


def test_a_neuron_that_stands_twice_has_two_entries():
    neuron = Plays()
    model = Sequential(neuron, nn.Threshold(2.0, 0.0), neuron)
    with monitor(model) as record:
        for _ in range(3):
            model(torch.ones(2, 1, 4))
    assert [(layer.name, layer.samples, float(layer.rate.mean())) for layer in record.layers] == [
        ("0", 3, 1.0),
        ("0 (call 2)", 3, 0.0),
    ]


def test_a_part_of_the_model_may_be_called_alone():
    model = Sequential(Sequential(Plays()), nn.Identity())
    with monitor(model) as record:
        for _ in range(3):
            model[0](torch.ones(2, 1, 4))
    (layer,) = record.layers
    assert (layer.name, layer.samples) == ("0.0", 3)


def test_the_model_may_be_the_neuron():
    neuron = IF()
    with monitor(neuron) as record:
        neuron(torch.ones(2, 3, 4))
        neuron(torch.zeros(2, 3, 4))
    assert record[""].rate.tolist() == [0.5, 0.5]


def test_the_record_does_not_grow(x):
    def size(record):
        total = 0
        for tally in record._tallies.values():
            values = [*vars(tally).values(), *vars(tally.membrane).values()]
            total += sum(v.untyped_storage().nbytes() for v in values if isinstance(v, torch.Tensor))
        return total

    model = make()
    with monitor(model, membrane=True) as record:
        model(x)
        before = size(record)
        for _ in range(5):
            model(x)
    assert size(record) == before < 4000


def test_ordinary_networks_are_seen_through_their_relus():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU6(inplace=True)), torch.randn(8, 6)
    with torch.no_grad():
        whole = {"1": model[:2](x), "3": model(x)}
        with monitor(model) as record:
            model(x[:3])
            model(x[3:])
    for name, y in whole.items():
        layer = record[name]
        assert layer.rate.tolist() == pytest.approx([(y != 0).double().mean().item()])
        assert layer.mean.tolist() == pytest.approx([y.double().mean().item()])
        assert layer.silent == (y == 0).all(0).double().mean().item()
        assert layer.membrane is None


class Loop(nn.Module):
    """As models of other libraries are wrapped: the loop over time inside."""

    def __init__(self, neuron, steps):
        super().__init__()
        self.linear, self.neuron, self.steps = nn.Linear(6, 5), neuron, steps

    def forward(self, x):
        functional.reset_net(self)
        state = None if not hasattr(self.neuron, "spike_grad") or self.neuron.init_hidden else self.neuron.init_leaky()
        if hasattr(self.neuron, "init_hidden") and self.neuron.init_hidden:
            self.neuron.reset_mem()
        total = 0
        for _ in range(self.steps):
            if state is None:
                spikes = self.neuron(self.linear(x))
            else:
                spikes, state = self.neuron(self.linear(x), state)
            total = total + spikes
        return total


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: jelly.LIFNode(v_threshold=0.2),
        lambda: snntorch.Leaky(0.9, threshold=0.2),
        lambda: snntorch.Leaky(0.9, threshold=0.2, init_hidden=True),
    ],
    ids=["SpikingJelly", "snnTorch", "snnTorch with its state hidden"],
)
def test_neurons_of_other_libraries(neuron):
    torch.manual_seed(0)
    model, x = Loop(neuron(), 6), torch.rand(7, 6)
    seen = []
    handle = model.neuron.register_forward_hook(lambda _, __, y: seen.append(y[0] if isinstance(y, tuple) else y))
    with torch.no_grad(), monitor(model) as record:
        model(x)
        model(x[:3])
    handle.remove()
    whole = torch.cat([torch.stack(seen[:6]), torch.stack(seen[6:])], 1)
    (layer,) = record.layers
    assert (layer.name, layer.shape, layer.samples) == ("neuron", (5,), 10)
    torch.testing.assert_close(layer.rate, (whole != 0).double().flatten(1).mean(1))
    assert 0 < float(layer.rate.mean()) < 1
    assert layer.silent == (whole == 0).all(0).all(0).double().mean().item()
    assert layer.saturated == (whole != 0).all(0).double().mean().item()
    with pytest.raises(ValueError, match="membrane=True needs neurons of snnrobust"), monitor(model, membrane=True):
        pass


def test_a_multi_step_neuron_of_spikingjelly():
    neuron, x = jelly.IFNode(v_threshold=1.0, step_mode="m"), torch.full((4, 2, 3), 0.5)
    model = nn.Sequential(neuron)
    with monitor(model) as record:
        model(x)
    assert record["0"].rate.tolist() == [0, 1, 0, 1]
    assert record["0"].samples == 2


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), Sequential(nn.Linear(2, 2))]
)
def test_a_model_without_neurons_is_an_error(model):
    with pytest.raises(ValueError, match="the model has no neurons to watch"), monitor(model):
        pass
    assert not hooks(model)


def test_bad_arguments(x):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"), monitor(torch.relu):
        pass
    with pytest.raises(TypeError, match="membrane must be True or False"), monitor(make(), membrane=1):
        pass
    with (
        pytest.raises(ValueError, match="membrane=True needs neurons of snnrobust, and the model has ReLU"),
        monitor(nn.Sequential(nn.ReLU()), membrane=True),
    ):
        pass
    model = Sequential(Plays())
    with monitor(model, membrane=True) as record:
        model(torch.ones(2, 3, 4))
        with pytest.raises(ValueError, match=r"0 \(Plays\) put out \(5,\) after \(4,\): use one monitor for each size"):
            model(torch.ones(2, 3, 5))
        model(torch.ones(2, 0, 4))
    assert record["0"].samples == 3


def test_a_stream_is_not_seen_and_says_so(x):
    model = make()
    with monitor(model) as record:
        list(model.stream(x))
    for ask in (lambda: record.layers, record.table, lambda: record["network.2"], lambda: record.plot("unused.png")):
        with pytest.raises(RuntimeError, match=r"has seen nothing.*stream\(\)"):
            ask()
