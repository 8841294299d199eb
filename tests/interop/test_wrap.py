"""Wrapped models against the loops of their own libraries, and every seam of the project through the wrapper."""

import copy

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as jelly
from torch import nn

from snnrobust import evaluation, interop
from snnrobust.attacks import (
    ASSG,
    BPDA,
    EOT,
    FGSM,
    PDSG,
    PGD,
    Backprop,
    BluntGradientWarning,
    Linf,
    Surrogate,
    begin,
    cross_entropy,
)
from snnrobust.draws import Stream, draws, is_stochastic
from snnrobust.encoders import Direct, Frames, Poisson
from snnrobust.interop import wrap
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan, Triangle

REDUCE = {
    "sum": lambda y: y.sum(0),
    "mean": lambda y: y.mean(0),
    "last": lambda y: y[-1],
    "max": lambda y: y.amax(0),
}


def by_hand_steps(model, x, steps):
    """SpikingJelly's manual loop."""
    functional.reset_net(model)
    outputs = torch.stack([model(x) for _ in range(steps)])
    functional.reset_net(model)
    return outputs


def by_hand_torch(model, x, steps):
    """snnTorch's manual loop with hidden states."""
    for module in model.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    outputs = [model(x) for _ in range(steps)]
    return torch.stack([spk for spk, _ in outputs]), torch.stack([mem for _, mem in outputs])


def same(wrapped, x, expected):
    """Logits to the bit and the gradient too, twice, and for other batch sizes."""
    x = x.clone().requires_grad_()
    reference = expected(x)
    weight = torch.linspace(-1, 1, reference.numel()).view_as(reference)
    (gradient,) = torch.autograd.grad((reference * weight).sum(), x)
    assert reference.detach().unique().numel() > 1
    assert gradient.abs().sum() > 0
    for _ in range(2):
        logits = wrapped(x)
        assert torch.equal(logits, reference)
        torch.testing.assert_close(torch.autograd.grad((logits * weight).sum(), x)[0], gradient, rtol=1e-6, atol=1e-6)
    for part in (x[:1], x[:3], torch.cat([x, x])):
        torch.testing.assert_close(wrapped(part), expected(part), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("decode", REDUCE)
def test_spikingjelly_step_by_step(decode, zoo, batch):
    model = zoo.jelly_steps()
    wrapped = wrap(model, time_axis="step", time_steps=zoo.T, decode=decode)
    same(wrapped, batch[0], lambda x: REDUCE[decode](by_hand_steps(model, x, zoo.T)))


@pytest.mark.parametrize("resets_itself", [True, False])
def test_spikingjelly_whole_sequences(resets_itself, zoo, batch):
    steps, whole = zoo.jelly_steps(), zoo.jelly_sequence()
    whole.load_state_dict(steps.state_dict())
    every = zoo.JellyAll(resets_itself)
    every.network = whole

    def expected(x):
        return by_hand_steps(steps, x, zoo.T).mean(0)

    same(wrap(whole, time_axis=0, time_steps=zoo.T, decode="mean"), batch[0], expected)
    same(wrap(every, time_axis=None), batch[0], expected)


class BatchFirst(nn.Module):
    """``[B, T, F] -> [B, T, K]``."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("size", [1, 4, 5])  # T = 4: as many samples as steps
def test_event_frames(size, zoo):
    frames = torch.rand(size, zoo.T, zoo.FEATURES)
    steps, whole = zoo.jelly_steps(), zoo.jelly_sequence()
    whole.load_state_dict(steps.state_dict())
    functional.reset_net(steps)
    expected = torch.stack([steps(frame) for frame in frames.unbind(1)]).sum(0)
    functional.reset_net(steps)
    for model, axis in ((steps, "step"), (whole, 0), (BatchFirst(whole), 1)):
        wrapped = wrap(model, time_axis=axis, encoder=Frames(zoo.T), decode="sum")
        assert torch.equal(wrapped(frames), expected)
    itself = wrap(BatchFirst(whole), time_axis=None, decode="sum")  # which axis is time is told from the batch
    assert torch.equal(itself(frames), expected)
    assert torch.equal(itself(frames[:1].expand(3, -1, -1))[0], itself(frames)[0])
    back = wrap(nn.Sequential(_Swap(), whole), time_axis=None, decode="sum")
    assert torch.equal(back(frames), expected)
    with pytest.raises(ValueError, match=r"its first axis must be its 4 frames"):
        wrapped(frames[:, :3])


class _Swap(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


@pytest.mark.parametrize(
    ("output", "decode"), [("spikes", "sum"), ("membrane", "last"), (1, "max"), (None, lambda y: y[0].mean(0))]
)
@pytest.mark.parametrize("settings", [{}, {"reset_mechanism": "zero"}, {"reset_delay": False}], ids=str)
def test_snntorch_with_states_made_in_forward(output, decode, settings, zoo, batch):
    model = zoo.TorchLoop(**settings)

    def expected(x):
        spikes, membranes = model(x)
        return (
            decode((spikes, membranes)) if output is None else REDUCE[decode]((spikes, membranes)[output != "spikes"])
        )

    same(wrap(model, time_axis=None, output=output, decode=decode), batch[0], expected)


@pytest.mark.parametrize(("output", "decode"), [("spikes", "mean"), ("membrane", "last")])
def test_snntorch_with_hidden_states(output, decode, zoo, batch):
    model = zoo.torch_steps()
    wrapped = wrap(model, time_axis="step", time_steps=zoo.T, output=output, decode=decode)
    same(wrapped, batch[0], lambda x: REDUCE[decode](by_hand_torch(model, x, zoo.T)[output == "membrane"]))


def test_snntorch_that_never_resets(zoo, batch):
    forgets, loop = zoo.TorchForgets(), zoo.TorchLoop()
    loop.load_state_dict(forgets.state_dict())
    forgets(batch[0])
    wrapped = wrap(forgets, time_axis=None, output="membrane", decode="mean")
    same(wrapped, batch[0], lambda x: loop(x)[1].mean(0))


@pytest.mark.parametrize(
    "kind",
    [
        lambda **k: snntorch.Synaptic(alpha=0.9, init_hidden=True, **k),
        lambda **k: snntorch.Alpha(alpha=0.9, init_hidden=True, **k),
        lambda **k: snntorch.RLeaky(linear_features=8, init_hidden=True, **k),
        lambda **k: snntorch.RSynaptic(alpha=0.9, linear_features=8, init_hidden=True, **k),
        lambda **k: snntorch.Lapicque(init_hidden=True, **k),
    ],
    ids=["Synaptic", "Alpha", "RLeaky", "RSynaptic", "Lapicque"],
)
def test_every_stateful_neuron_of_snntorch(kind, zoo, batch):
    model = nn.Sequential(nn.Linear(zoo.FEATURES, 8), kind(beta=0.8, threshold=0.1), nn.Linear(8, zoo.CLASSES))
    wrapped = wrap(model, time_axis="step", time_steps=zoo.T, decode="mean")
    model(batch[0])  # leftovers of a call by hand

    def expected(x):
        model[1].reset_mem()
        return torch.stack([model(x) for _ in range(zoo.T)]).mean(0)

    assert torch.equal(wrapped(batch[0]), expected(batch[0]))
    assert torch.equal(wrapped(batch[0][:2]), expected(batch[0][:2]))


@pytest.mark.parametrize("axis", ["step", 0])
def test_an_encoder_of_ours_in_front_is_keyed_by_sample(axis, zoo, batch):
    x, _ = batch
    model = zoo.jelly_steps() if axis == "step" else zoo.jelly_sequence()
    wrapped = wrap(model, time_axis=axis, encoder=Poisson(16), decode="mean")
    ids = torch.tensor([7, 3, 9, 1, 4])
    with draws(wrapped, 5, ids):
        whole = wrapped(x)
        assert torch.equal(wrapped(x), whole)
    with draws(wrapped, 5, ids[2:]):
        torch.testing.assert_close(wrapped(x[2:]), whole[2:])
    assert not torch.equal(wrapped(x), wrapped(x))
    assert is_stochastic(wrapped)


def cases(zoo):
    return {
        "jelly step": wrap(zoo.jelly_steps(), time_axis="step", time_steps=zoo.T, decode="mean"),
        "jelly sequence": wrap(zoo.jelly_sequence(), time_axis=0, time_steps=zoo.T, decode="mean"),
        "jelly all": wrap(zoo.JellyAll(False), time_axis=None),
        "torch loop": wrap(zoo.TorchLoop(), time_axis=None, output="membrane", decode="mean"),
        "torch step": wrap(zoo.torch_steps(), time_axis="step", time_steps=zoo.T, output="membrane", decode="mean"),
    }


CASES = ["jelly step", "jelly sequence", "jelly all", "torch loop", "torch step"]
SOURCES = [Backprop(), Surrogate(ATan(1.0)), Surrogate(Triangle(width=2.0), EOT(2)), ASSG(), PDSG(), EOT(2)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", CASES)
def test_every_gradient_source(name, source, zoo, batch):
    x, y = batch
    wrapped = cases(zoo)[name]
    before = copy.deepcopy(vars(wrapped.model))
    attack = PGD(Linf(0.1), steps=3, gradient=source)
    x_adv = attack(wrapped, x, y, seed=0)
    assert (x_adv != x).any()
    assert torch.equal(attack(wrapped, x, y, seed=0), x_adv)
    assert vars(wrapped.model).keys() == before.keys()
    ids = torch.arange(5)
    parts = [attack(wrapped, x[i], y[i], seed=0, sample_ids=i) for i in ids.split(2)]
    torch.testing.assert_close(torch.cat(parts), x_adv)


@pytest.mark.parametrize("name", CASES)
def test_the_surrogate_reaches_the_neurons(name, zoo, batch):
    x, y = batch
    wrapped, stream = cases(zoo)[name], Stream(0, torch.arange(5))

    def gradient(source):
        return source(wrapped, x, y, lambda z, _: (z * torch.tensor([1.0, -2.0, 0.5])).sum(1), stream)[0]

    plain, sharp, wide = map(gradient, (Backprop(), Surrogate(ATan(50.0)), Surrogate(ATan(0.5))))
    assert not torch.allclose(plain, sharp)
    assert not torch.allclose(sharp, wide)


def test_attacks_evaluate_and_diagnose(zoo):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, zoo.FEATURES, generator=generator), torch.arange(60) % zoo.CLASSES
    model = wrap(zoo.jelly_steps(), time_axis="step", time_steps=zoo.T, decode="mean")
    y = model(x).argmax(1)
    attack = PGD(Linf(0.2), steps=5)
    report = evaluation.evaluate(model, (x, y), {"pgd": attack}, seed=0, progress=False, batch_size=25)
    again = evaluation.evaluate(model, (x, y), {"pgd": attack}, seed=0, progress=False, batch_size=60)
    rows, others = ({row["attack"]: row["accuracy"] for row in r.rows} for r in (report, again))
    assert rows == others
    assert report.rows[1]["forwards"] == report.rows[1]["gradients"] == 5 * 60  # one for all steps in time
    assert rows["pgd"] < rows["clean"] == 1.0
    assert "gradient" in str(evaluation.diagnose(model, (x, y), Linf(0.2), progress=False))


def test_randomness_of_theirs_is_keyed(zoo, batch):
    x, y = batch
    jelly = wrap(zoo.JellyPoisson(), time_axis=None, decode="sum")
    rate = wrap(zoo.TorchRate(), time_axis=None)
    for wrapped in (jelly, rate):
        state = torch.get_rng_state()
        with draws(wrapped, 3):
            first = wrapped(x)
        with draws(wrapped, 3):
            assert torch.equal(wrapped(x), first)
        with draws(wrapped, 4):
            assert not torch.equal(wrapped(x), first)
        assert torch.equal(torch.get_rng_state(), state)
        assert is_stochastic(wrapped, x)
    through = PGD(Linf(0.1), steps=2, gradient=EOT(2, BPDA("model.encoder")))
    x_adv = through(jelly, x, y, seed=0)
    assert (x_adv != x).any()
    assert torch.equal(through(jelly, x, y, seed=0), x_adv)


def test_an_encoder_without_gradient_is_reported(zoo):
    x = torch.rand(60, zoo.FEATURES)
    y = torch.arange(60) % zoo.CLASSES
    rate = wrap(zoo.TorchRate(), time_axis=None)
    with pytest.warns(BluntGradientWarning, match="an encoder"):
        FGSM(Linf(0.1))(rate, x, y, seed=0)
    jelly = wrap(zoo.JellyPoisson(), time_axis=None, decode="sum")
    with pytest.raises(ValueError, match="do not depend on x through any differentiable path"):
        FGSM(Linf(0.1))(jelly, x, y, seed=0)
    for wrapped in (rate, jelly):
        report = evaluation.diagnose(wrapped, (x, y), Linf(0.1), draws=2, progress=False)
        assert report.verdict == "masked"
        assert {c.name: c.status for c in report.checks}["the input gradient is alive"] == "failed"


@pytest.mark.parametrize("reset", [None, functional.reset_net])
def test_training_through_the_wrapper(reset, zoo, batch):
    """Gradients of weights and running statistics are those of the model."""
    x, y = batch

    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            layer.Linear(zoo.FEATURES, 8), layer.BatchNorm1d(8), zoo.lif(), layer.Linear(8, zoo.CLASSES)
        )

    by_hand, wrapped = build(), wrap(build(), time_axis="step", time_steps=zoo.T, decode="mean", reset=reset)
    wrapped(x)  # examined
    wrapped.model.load_state_dict(by_hand.state_dict())
    for _ in range(2):
        nn.functional.cross_entropy(by_hand_steps(by_hand, x, zoo.T).mean(0), y).backward()
        nn.functional.cross_entropy(wrapped(x), y).backward()
    for a, b in zip(by_hand.parameters(), wrapped.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert int(wrapped.model[1].num_batches_tracked) == 2 * zoo.T
    for a, b in zip(by_hand.buffers(), wrapped.model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_modes_are_those_of_the_model(zoo):
    model = nn.Sequential(nn.Dropout(), *zoo.jelly_steps())
    model.eval()
    model[0].train()
    wrapped = wrap(model, time_axis="step", time_steps=2, decode="sum")
    assert not wrapped.training
    assert [m.training for m in model.modules()] == [
        False,
        True,
        *[False] * 4,
        *[False] * (len(list(model.modules())) - 6),
    ]
    assert wrapped.train().model.training


def test_a_wrapped_model_says_how(zoo):
    wrapped = wrap(zoo.jelly_steps(), time_axis="step", time_steps=7, decode="mean")
    assert "time_axis='step', time_steps=7, decode='mean'" in repr(wrapped)
    assert isinstance(wrapped, interop.Wrapped)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"time_axis": 2}, ValueError, 'time_axis must be "step"'),
        ({"time_axis": True}, ValueError, 'time_axis must be "step"'),
        ({"time_axis": "step", "decode": "mean"}, ValueError, "give time_steps=T to show an image at T steps"),
        ({"time_axis": 0}, ValueError, "give time_steps=T to show an image at T steps"),
        ({"time_axis": "step", "time_steps": 4}, ValueError, "say how they are decoded"),
        ({"time_axis": 0, "time_steps": 0}, ValueError, "time_steps must be at least 1"),
        ({"time_axis": 0, "time_steps": 3, "encoder": Poisson(4)}, ValueError, "the encoder gives 4"),
        ({"time_axis": None, "encoder": Poisson(4)}, ValueError, "say where time goes"),
        ({"time_axis": 0, "encoder": nn.Identity()}, TypeError, "encoder must be an encoder such as"),
        ({"time_axis": 0, "time_steps": 4, "decode": "median"}, ValueError, "decode must be one of"),
        ({"time_axis": 0, "time_steps": 4, "output": "spike"}, ValueError, "did you mean 'spikes'"),
        ({"time_axis": 0, "time_steps": 4, "output": True}, ValueError, "output must be one of"),
        ({"time_axis": 0, "time_steps": 4, "reset": "reset"}, TypeError, "reset must be a function"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words, zoo):
    with pytest.raises(error, match=words):
        wrap(zoo.jelly_steps(), **arguments)


def test_other_bad_models_are_named(batch):
    class Explicit(nn.Module):
        def forward(self, x, mem):
            return x, mem

    with pytest.raises(ValueError, match=r"Explicit.forward takes x, mem, but a wrapped model gets one input"):
        wrap(Explicit(), time_axis=None)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        wrap(lambda x: x, time_axis=None)
    with pytest.raises(ValueError, match="lazy parameters"):
        wrap(nn.LazyLinear(3), time_axis=None)(batch[0])


def _alike(library, decay):
    """A layer of ours and one of theirs with the same dynamics, reset included."""
    if library == "torch":
        theirs = snntorch.Leaky(decay, 0.3, init_hidden=True, reset_delay=False, reset_mechanism="zero")
    else:
        theirs = neuron.LIFNode(
            tau=1 / (1 - decay), decay_input=False, v_threshold=0.3, surrogate_function=jelly.ATan(2.0)
        )
    return LIF(decay=decay, threshold=0.3, reset="hard", detach_reset=False), theirs


@pytest.mark.parametrize("source", [Backprop(), Surrogate(ATan(5.0)), ASSG(), PDSG(), PDSG("batch")], ids=str)
@pytest.mark.parametrize("library", ["torch", "jelly"])
def test_gradients_are_those_of_our_own_network(library, source, zoo, batch):
    """The adaptive ones too, which look at every potential: at each step once, resets not counted."""
    x, y = batch
    first, last = nn.Linear(zoo.FEATURES, 8), nn.Linear(8, zoo.CLASSES)
    with torch.no_grad():
        first.weight.mul_(3.0)
        last.weight.mul_(3.0)
    (a, b), (c, d) = _alike(library, 0.8), _alike(library, 0.5)
    ours = SpikingClassifier(Direct(5), Sequential(first, a, last, c), MeanOutput())
    theirs = wrap(nn.Sequential(first, b, last, d), time_axis="step", time_steps=5, decode="mean")
    torch.testing.assert_close(ours(x), theirs(x))
    mine, yours = begin(source), begin(source)
    for _ in range(2):
        one = mine(ours, x, y, cross_entropy, Stream(0, torch.arange(5)))[0]
        two = yours(theirs, x, y, cross_entropy, Stream(0, torch.arange(5)))[0]
        assert one.abs().max() > 0.01
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
