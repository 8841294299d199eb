"""Normalisation and neurons that run as one: nobody could tell from outside, but for the time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnrobust.kernels import native
from snnrobust.layers import BNTT, TDBN, Sequential, flow, fused
from snnrobust.neurons import IF, LIF, PLIF, LearnableThresholdLIF
from snnrobust.neurons.surrogate import ATan, SpikeTime, Triangle

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")

T, B, C = 4, 3, 5
NORMS = {
    "BNTT": lambda: BNTT(C, T),
    "BNTT, longer": lambda: BNTT(C, T + 3, momentum=0.3),
    "BNTT, fixed": lambda: BNTT(C, T, momentum=0.0),
    "TDBN": lambda: TDBN(C, threshold=0.9, alpha=0.7),
    "BatchNorm2d": lambda: nn.BatchNorm2d(C),
    "BatchNorm2d, plain": lambda: nn.BatchNorm2d(C, affine=False, momentum=0.4),
    "BatchNorm2d, no statistics": lambda: nn.BatchNorm2d(C, track_running_stats=False),
    "BatchNorm2d, cumulative": lambda: nn.BatchNorm2d(C, momentum=None),
}
NEURONS = {
    "LIF": lambda: LIF(0.8, 0.7),
    "hard": lambda: LIF(0.9, reset="hard", surrogate=Triangle(0.5)),
    "IF": lambda: IF(detach_reset=False),
    "refractory": lambda: LIF([0.5 + 0.1 * c for c in range(C)], refractory=2),
    "timed": lambda: LIF(0.8, surrogate=SpikeTime()),
    "PLIF": lambda: PLIF(0.8),
    "PLIF of scaled input": lambda: PLIF(0.8, decay_input=True),
    "threshold": lambda: LearnableThresholdLIF(0.8),
}


def _filled(norm):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in norm.state_dict().items():
            if p.is_floating_point():
                p.copy_(torch.rand(p.shape, generator=generator) + (0.5 if "mean" not in name else 0.0))
    return norm


def _input(layout="contiguous", dtype=torch.float32):
    x = torch.randn(T, B, C, 4, 6, generator=torch.Generator().manual_seed(0)).mul(2).add(1).to(dtype)
    if layout == "channels last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    return x[:1].expand_as(x) if layout == "constant" else x


def _both(network, x, monkeypatch, count=2):
    """Outputs, gradients and state of the network as it runs, and with nothing fused."""
    found = []
    for off in (False, True):
        net = copy.deepcopy(network)
        given = x.detach()[0].clone().requires_grad_() if x.stride(0) == 0 else x.detach().clone().requires_grad_()
        whole = given.expand(T, *given.shape) if given.dim() < x.dim() else given
        with monkeypatch.context() as patch:
            calls = []
            if off:
                patch.setattr(flow, "fuses", lambda *_: False)
            else:
                patch.setattr(flow, "run_fused", lambda *a, _calls=calls: _calls.append(a) or fused.run_fused(*a))
            for _ in range(count):
                y = net(whole)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        leaves = [given, *net.parameters()]
        found.append((y, torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True), net.state_dict(), calls))
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "constant"])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("norm", NORMS)
def test_equal_to_one_after_the_other(norm, neuron, layout, training, monkeypatch):
    network = Sequential(_filled(NORMS[norm]()), NEURONS[neuron]()).train(training)
    (y, grads, state, calls), (slow, slow_grads, slow_state, _) = _both(network, _input(layout), monkeypatch)
    expected = "statistics" not in norm and "cumulative" not in norm and "scaled" not in neuron
    assert (len(calls) == 2) == expected
    if not training and ("BNTT" in norm or "TDBN" in norm):  # a stream has to equal the sequence
        assert torch.equal(y, slow)
    assert (y != slow).float().mean() < 0.005
    assert state.keys() == slow_state.keys()
    for name in state:
        torch.testing.assert_close(state[name], slow_state[name], rtol=1e-5, atol=1e-6)
    if torch.equal(y, slow):
        for a, b in zip(grads, slow_grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4 * (1 + float(b.abs().max())))


@pytest.mark.parametrize("norm", ["BNTT", "TDBN"])
def test_eval_mode_equals_the_stream_to_the_bit(norm):
    network = Sequential(nn.Identity(), _filled(NORMS[norm]()), LIF(0.8)).eval()
    x = _input()
    state, steps = network.initial_state(x[0]), []
    for x_t in x:
        s, state = network.step(x_t, state)
        steps.append(s)
    assert torch.equal(torch.stack(steps), network(x))
    advanced, _ = network.advance(x, network.initial_state(x[0]))
    assert torch.equal(advanced, network(x))


def test_batch_norm_1d_and_3d_and_features(monkeypatch):
    for norm, shape in (
        (nn.BatchNorm1d(C), (T, B, C)),
        (nn.BatchNorm1d(C), (T, B, C, 7)),
        (nn.BatchNorm3d(C), (T, B, C, 2, 3, 2)),
    ):
        network = Sequential(norm, LIF(0.8))
        (y, _, state, calls), (slow, _, slow_state, _) = _both(network, torch.randn(shape), monkeypatch, 1)
        assert len(calls) == 1
        assert (y != slow).float().mean() < 0.01
        for name in state:
            torch.testing.assert_close(state[name], slow_state[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["norm", "neuron", "everywhere", "backward", "instance"])
def test_who_watches_sees_all_steps(place, monkeypatch):
    """A hook, or a forward put in place of a module's own, is called as if nothing were fused."""
    conv, norm, neuron = nn.Conv2d(2, C, 3, padding=1), BNTT(C, T), LIF(0.8)
    network = Sequential(conv, norm, neuron)
    shapes, handles = [], []
    see = lambda module, inputs, *_: shapes.append((type(module).__name__, tuple(inputs[0].shape)))  # noqa: E731
    if place == "everywhere":
        handles.append(nn.modules.module.register_module_forward_hook(see))
    elif place == "backward":
        handles.append(neuron.register_full_backward_hook(lambda *_: shapes.append(("LIF", (T, B, C, 4, 4)))))
    elif place == "instance":
        monkeypatch.setattr(norm, "forward", lambda x: shapes.append(("BNTT", tuple(x.shape))) or BNTT.forward(norm, x))
    else:
        handles.append((norm if place == "norm" else neuron).register_forward_hook(see))
    try:
        x = torch.randn(1, B, 2, 4, 4).expand(T, B, 2, 4, 4)
        network(x).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    whole = (T, B, C, 4, 4)
    expected = {"norm": [("BNTT", whole)], "instance": [("BNTT", whole)], "everywhere": [
        ("Conv2d", (T * B, 2, 4, 4)), ("BNTT", whole), ("LIF", whole), ("Sequential", (T, B, 2, 4, 4))
    ]}.get(place, [("LIF", whole)])  # fmt: skip
    assert shapes == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (BNTT(C, T), (T, B, C + 1, 2)), (BNTT(C, T), (T + 1, B, C, 2)), (TDBN(C), (T, B, C - 1)),
        (nn.BatchNorm2d(C), (T, B, C, 2)),
        (nn.BatchNorm2d(C), (T, B, C + 1, 2, 2)), (nn.BatchNorm1d(C), (T, B, C, 2, 2)), (BNTT(C, T), (T, B, C, 1, 2, 1, 2)),
        (TDBN(C), (T, B, C, 1, 2, 1, 2)), (BNTT(C, T), (T, B)), (BNTT(C, T), (T, 1, C)), (TDBN(C), (1, 1, C)),
        (nn.BatchNorm1d(C), (1, 1, C)), (BNTT(C, T), (T, 0, C)),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_layers(norm, shape, training, monkeypatch):
    """Wrong channels, too many steps or axes, a single value a channel while training."""
    outcomes = []
    for off in (False, True):
        network = Sequential(copy.deepcopy(norm), LIF(0.8)).train(training)
        with monkeypatch.context() as patch:
            if off:
                patch.setattr(flow, "fuses", lambda *_: False)
            try:
                outcomes.append(("no error", tuple(network(torch.rand(shape)).shape)))
            except Exception as error:
                outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_bfloat16_input(monkeypatch):
    network = Sequential(BNTT(C, T), LIF(0.8)).eval()
    (y, _, _, calls), (slow, _, _, _) = _both(network, _input(dtype=torch.bfloat16), monkeypatch)
    assert len(calls) == 2
    assert y.dtype == slow.dtype == torch.bfloat16
    assert (y != slow).float().mean() < 0.03  # unfused, the normalised values are rounded


def test_an_overridden_surrogate_and_a_derived_neuron():
    class Doubled(LIF):
        def forward(self, x):
            return 2 * super().forward(x)

    from snnrobust.neurons import NEURONS

    NEURONS.pop("Doubled")
    x = _input()
    assert Sequential(BNTT(C, T), Doubled(0.8))(x).max() == 2
    network = Sequential(BNTT(C, T), LIF(0.8)).eval()
    x.requires_grad_()
    grads = []
    for surrogate in (ATan(2.0), ATan(9.0)):
        network[1].surrogate = surrogate
        grads.append(torch.autograd.grad(network(x).sum(), x)[0])
    assert not torch.equal(*grads)


def test_an_eval_pass_may_be_followed_by_a_training_pass():
    """Gradients of the first are still to be had, as without fusing: running statistics are read, not kept."""
    network = Sequential(BNTT(C, T), LIF(0.8)).eval()
    x = _input().requires_grad_()
    first = network(x).sum()
    network.train()
    (first + network(x).sum()).backward()
    assert x.grad.isfinite().all()
