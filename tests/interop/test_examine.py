"""What is found out at the first call, and what is refused."""

import numpy as np
import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from snnrobust.draws import draws
from snnrobust.interop import HiddenStateError, wrap

STEP = {"time_axis": "step", "time_steps": 4, "decode": "mean"}


@pytest.mark.parametrize("inplace", [True, False])
def test_state_that_nothing_resets_is_named(inplace, zoo, batch):
    model = nn.Sequential(zoo.Accumulator(inplace), nn.Linear(6, 3))
    with pytest.raises(HiddenStateError, match=r"other outputs at a second call. What is left over: 0.membrane"):
        wrap(model, time_axis=None)(batch[0])
    assert model[0].membrane is None

    def reset(network):
        network[0].membrane = None

    wrapped = wrap(model, reset=reset, **STEP)
    x = batch[0]
    total, membrane = 0, 0
    for _ in range(4):
        membrane = 0.5 * membrane + x
        total = total + model[1](membrane)
    torch.testing.assert_close(wrapped(x), total / 4)
    assert model[0].membrane is None


def test_a_network_that_forgets_some_of_its_state(zoo, batch):
    """Its neurons are reset, its own trace is not."""
    with pytest.raises(HiddenStateError, match=r"What is left over: 0\.membrane"):
        wrap(nn.Sequential(zoo.Accumulator(), *zoo.jelly_steps()), **STEP)(batch[0])


class Held(nn.Module):
    """Something that changes at every call, read or not."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.count, self.cache, self.rates, self.table = kind, 0, None, [], {}
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        y = self.linear(x)
        if self.kind == "count read":
            self.count += 1
            return y * self.count
        if self.kind == "list read":
            self.rates.append(x.mean())
            return y + sum(self.rates)
        if self.kind == "seldom read":  # a trace that shows only when it is high
            before, self.cache = self.cache, x.mean()
            return y + (before is not None and bool(before > 10))
        if self.kind == "batch read":
            self.table.setdefault(len(x), x.mean())
            return y + self.table[len(x)]
        if self.kind == "numpy":
            return y + torch.from_numpy(np.random.default_rng().standard_normal(3)).float()
        if self.kind == "fails":
            self.count += 1
            if self.count > 1:
                raise IndexError("past the end")
        if self.kind == "count":
            self.count += 1
        if self.kind == "list":
            self.rates.append(x.mean())
        if self.kind == "recorded":
            self.rate = y.detach()
        if self.kind == "cached":
            self.cache = torch.full((3,), 2.0) if self.cache is None else self.cache
            return y * self.cache
        return y


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("count read", "other outputs at a second call. What is left over: count"),
        ("list read", "other outputs at a second call. What is left over: rates"),
        ("seldom read", "other outputs at a second call. What is left over: cache"),
        ("batch read", "other outputs at a second call. What is left over: table"),
        (
            "numpy",
            "other outputs at a second call. Nothing on its modules has changed: does it draw from another generator",
        ),
        ("fails", "a second call fails with IndexError: past the end. What is left over: count"),
    ],
)
def test_what_is_read_again_is_refused(kind, words, batch):
    with pytest.raises(HiddenStateError, match=words):
        wrap(Held(kind), time_axis=None)(batch[0])


@pytest.mark.parametrize("kind", ["count", "list", "recorded", "cached", "nothing"])
def test_what_is_only_recorded_is_taken(kind, batch):
    model = Held(kind)
    wrapped = wrap(model, time_axis=None)
    for training in (False, True):
        model.train(training)
        assert torch.equal(wrapped(batch[0]), model.linear(batch[0]) * (2 if kind == "cached" else 1))
        kept = (model.count, len(model.rates), model.cache is not None, hasattr(model, "rate"))
        assert any(kept) == (training and kind != "nothing")  # in eval mode it is as it was


def test_random_models_are_told_from_forgetful_ones(zoo, batch):
    x, _ = batch
    model = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))
    wrapped = wrap(model.train(), time_axis=None)
    assert not torch.equal(wrapped(x), wrapped(x))
    poisson = wrap(zoo.JellyPoisson(), time_axis=None, decode="mean")
    state = torch.get_rng_state()
    with draws(poisson, 0):
        poisson(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_examination_leaves_no_trace(zoo, batch):
    """Running statistics, modes, generator; and it is not counted as a call of the wrapped model."""
    x, _ = batch
    model = nn.Sequential(nn.BatchNorm1d(6), *zoo.jelly_steps())
    calls = []
    wrapped = wrap(model, **STEP)
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    wrapped.eval()
    wrapped(x)
    wrapped(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(model[0].num_batches_tracked) == 0
    assert modes[0]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("steps", {"time_axis": None}, 'LIFNode was called once, so the model takes one time step: use time_axis="step"'),
        ("steps", {"time_axis": 0, "time_steps": 4, "decode": "sum"}, "LIFNode takes one time step, but was called once with"),
        ("steps", {"time_axis": 1, "time_steps": 4, "decode": "sum"}, "LIFNode takes one time step, but was called once with"),
        ("sequence", STEP, "LIFNode takes whole sequences .* would take the batch for time"),
        ("torch", {"time_axis": None, "output": 0}, 'Leaky was called once, .* use time_axis="step"'),
        ("torch", {"time_axis": 0, "time_steps": 4, "output": 0, "decode": "sum"}, "Leaky takes one time step"),
        ("loop", {**STEP, "output": "spikes"}, "the model runs each neuron 16 times in 4 steps, so it loops over time itself"),
        ("loop", {"time_axis": None}, "the model returns 2 values .* say which is decoded"),
        ("loop", {"time_axis": None, "output": "spikes"}, r"is not logits \[B, K\]: say how time is decoded"),
        ("loop", {"time_axis": None, "output": 2}, "output must be below 2"),
        ("all", {"time_axis": None, "decode": "mean"}, "leave decode out"),
        ("all", {"time_axis": None, "output": "spikes"}, "chooses one of several values, but the model returns a tensor"),
        ("linear", STEP, "Linear keeps no state that is known, so .* 4 independent steps"),
    ],
)  # fmt: skip
def test_contradictions_are_named(model, settings, words, zoo, batch):
    built = {
        "steps": zoo.jelly_steps, "sequence": zoo.jelly_sequence, "torch": zoo.torch_steps, "loop": zoo.TorchLoop,
        "all": lambda: zoo.JellyAll(True), "linear": lambda: nn.Linear(6, 3),
    }[model]()  # fmt: skip
    with pytest.raises(ValueError, match=words):
        wrap(built, **settings)(batch[0])


def test_what_looks_like_a_contradiction_but_is_none(zoo, batch):
    x, _ = batch
    one = zoo.jelly_steps()
    functional.reset_net(one)
    expected = one(x)
    functional.reset_net(one)
    assert torch.equal(wrap(one, time_axis=None, time_steps=1)(x), expected)
    linear = nn.Linear(6, 3)
    torch.testing.assert_close(wrap(linear, reset=lambda _: None, **STEP)(x), linear(x))
    shared = nn.Sequential(node := neuron.IFNode(), nn.Linear(6, 6), node, nn.Linear(6, 6), neuron.IFNode())
    assert wrap(shared, **STEP)(x).shape == (5, 6)


class Swapped(nn.Module):
    """Takes ``[T, B, F]``, returns what ``how`` makes of it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.linear = how, nn.Linear(6, 3)

    def forward(self, x):
        return self.how(self.linear(x))


def test_the_axis_of_time_in_the_output(batch):
    x, _ = batch
    transposed = wrap(Swapped(lambda y: y.transpose(0, 1)), time_axis=0, time_steps=8, decode="sum")
    torch.testing.assert_close(transposed(x), 8 * transposed.model.linear(x))
    for how, words in (
        (lambda y: y[:2], "was shown 8 steps and returns"),
        (lambda y: y.permute(2, 0, 1), r"must return \[T, B, K\] or \[B, T, K\]"),
        (lambda y: y.permute(1, 2, 0), "was shown 8 steps and returns"),
        (lambda y: [y], "say which is decoded"),
        (lambda y: {"logits": y}, "what is decoded must be a tensor, got dict"),
    ):
        with pytest.raises(ValueError, match=words):
            wrap(Swapped(how), time_axis=0, time_steps=8, decode="sum")(x)


def test_stateful_layers_of_snntorch_that_take_sequences(batch):
    model = nn.Sequential(nn.Linear(6, 3), snntorch.StateLeaky(beta=0.8, channels=3, threshold=0.1))
    wrapped = wrap(model, time_axis=0, time_steps=4, output="spikes", decode="sum")
    expected = model(batch[0].expand(4, -1, -1))[0].sum(0)
    assert torch.equal(wrapped(batch[0]), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_whose_state_is_out_of_reach(batch):
    scripted = torch.jit.trace(nn.Linear(6, 3), batch[0])
    assert torch.equal(wrap(scripted, time_axis=None)(batch[0]), scripted(batch[0]))
