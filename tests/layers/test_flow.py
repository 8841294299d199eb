"""What a ``Sequential`` leaves out, and when it must not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snnrobust import SpikingClassifier
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.layers import BNTT, TDBN, Chunked, MeanOutput, Normalise, Residual, Sequential
from snnrobust.neurons import ALIF, LIF, NEURONS, PLIF

T, B = 5, 3


@pytest.fixture
def calls(monkeypatch):
    """Shapes that convolutions and matrix products are called with; not by a hook, which would change what runs."""
    shapes = []
    for name in ("conv2d", "linear", "dropout", "batch_norm", "max_pool2d"):
        own = getattr(F, name)

        def see(x, *rest, _own=own, _name=name, **named):
            shapes.append((_name, tuple(x.shape)))
            return _own(x, *rest, **named)

        monkeypatch.setattr(F, name, see)
    return shapes


def _alike(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _seeded(*modules):
    for index, parameter in enumerate(nn.ModuleList(modules).parameters()):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
    return Sequential(*modules)


NETWORKS = {
    "convolution": (lambda: _seeded(nn.Conv2d(2, 4, 3), LIF(0.8), nn.Flatten(), nn.Linear(64, 3)), [("conv2d", (B, 2, 6, 6))]),
    "no neuron": (lambda: _seeded(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), [("linear", (B, 64))]),
    "normalised": (
        lambda: _seeded(Normalise(0.5, 0.2), nn.Conv2d(2, 4, 3), BNTT(4, T), LIF(0.8)), [("conv2d", (B, 2, 6, 6))]
    ),
    "nested": (lambda: _seeded(nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), PLIF(0.8)), [("conv2d", (B, 2, 6, 6))]),
    "adaptive": (lambda: _seeded(nn.Conv2d(2, 4, 3), ALIF(0.8)), [("conv2d", (B, 2, 6, 6))]),
    "branches": (
        lambda: _seeded(nn.Conv2d(2, 4, 3), Residual(Sequential(nn.Conv2d(4, 4, 1), LIF(0.8)))), [("conv2d", (B, 2, 6, 6))]
    ),
    "neuron first": (lambda: _seeded(LIF(0.8), nn.Conv2d(2, 4, 3)), [("conv2d", (T * B, 2, 6, 6))]),
    "tdBN": (lambda: _seeded(nn.Conv2d(2, 4, 3), TDBN(4), LIF(0.8)), [("conv2d", (B, 2, 6, 6))]),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("make", "seen"), NETWORKS.values(), ids=NETWORKS)
def test_what_is_alike_is_computed_once(make, seen, training, calls):
    network = make().train(training)
    unfolded = copy.deepcopy(network)
    x = _alike(B, 2, 6, 6)
    y = network.shown(x, T)
    assert set(seen) <= set(calls)
    assert ("conv2d", (T * B, 2, 6, 6)) not in set(calls) - set(seen)
    expected = unfolded(x.expand(T, B, 2, 6, 6).clone())
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((y * weights).sum(), [x, *network.parameters()])
    slow = torch.autograd.grad((expected * weights).sum(), [x, *unfolded.parameters()])
    for a, b in zip(found, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * (1 + float(b.abs().max())))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, unfolded.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_hook_is_called_with_all_steps(calls):
    shapes = []
    first, second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    second.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    Sequential(first, second, LIF()).shown(_alike(B, 2, 4, 4), T)
    assert shapes == [(T * B, 2, 4, 4)]
    assert [shape for _, shape in calls] == [(B, 2, 4, 4), (T * B, 2, 4, 4)]


@pytest.mark.parametrize("how", ["derived", "instance", "helper"])
def test_a_layer_with_a_forward_of_its_own_sees_all_steps(how, calls):
    """It may draw at each step."""

    class Noisy(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + torch.rand(len(x), 1, 1, 1)

    class Helper(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight, bias) + torch.rand(len(x), 1, 1, 1)

    layer = {"derived": Noisy, "helper": Helper}.get(how, nn.Conv2d)(2, 2, 1)
    if how == "instance":
        layer.forward = lambda x: nn.Conv2d.forward(layer, x) + torch.rand(len(x), 1, 1, 1)
    y = Sequential(layer).shown(_alike(B, 2, 4, 4), T)
    assert calls == [("conv2d", (T * B, 2, 4, 4))]
    assert not torch.equal(y[0], y[1])


def test_dropout_draws_at_each_step(calls):
    y = Sequential(nn.Linear(6, 50), nn.Dropout(0.5)).shown(_alike(B, 6), T)
    assert calls == [("linear", (B, 6)), ("dropout", (T * B, 50))]
    assert not torch.equal(y[0] == 0, y[1] == 0)
    network = Sequential(nn.Dropout(0.5), nn.Linear(6, 5))
    x = _alike(B, 6)
    found = []
    for whole in (x.expand(T, B, 6), x.expand(T, B, 6).clone()):
        with draws(network, 3):
            found.append(network(whole))
    assert torch.equal(*found)


def test_batch_norm_of_alike_steps(calls):
    """All steps count: the unbiased variance is that of T * B * H * W values."""
    alone, folded = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    x = _alike(B, 2, 2, 2)
    y = Sequential(alone)(x.expand(T, B, 2, 2, 2))
    expected = folded(x.expand(T, B, 2, 2, 2).flatten(0, 1))
    torch.testing.assert_close(y.flatten(0, 1), expected)
    torch.testing.assert_close(alone.state_dict(), folded.state_dict())


def test_the_gradient_of_each_step_is_its_own():
    """Steps that are alike in memory may still be asked for their gradients one by one."""
    network = _seeded(nn.Linear(6, 4), LIF(0.8), nn.Linear(4, 2))
    slow = torch.rand(1, B, 6).expand(T, B, 6).clone().requires_grad_()
    x = slow.detach()[:1].expand(T, B, 6).requires_grad_()
    expected = torch.autograd.grad(network(slow).square().sum(), slow)
    torch.testing.assert_close(torch.autograd.grad(network(x).square().sum(), x), expected)
    image = slow.detach()[0].clone().requires_grad_()
    shown = image.expand(T, B, 6)
    shown.retain_grad()
    network(shown).square().sum().backward()
    torch.testing.assert_close(shown.grad, expected[0])
    torch.testing.assert_close(image.grad, expected[0].sum(0))
    shown, seen = image.expand(T, B, 6), []
    shown.register_hook(seen.append)
    network(shown).square().sum().backward()
    torch.testing.assert_close(seen[0], expected[0])


@pytest.mark.parametrize("alike", [False, True])
def test_who_counts_operations_sees_all_steps(alike):
    network = _seeded(nn.Conv2d(2, 4, 3), BNTT(4, T), LIF(0.8), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = _alike(B, 2, 6, 6).detach().expand(T, B, 2, 6, 6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = network(x if alike else x.clone())
    assert counter.get_total_flops() == T * B * 2 * (4 * 16 * 2 * 9 + 64 * 3)
    torch.testing.assert_close(y, network(x))


@pytest.mark.parametrize(("make", "seen"), NETWORKS.values(), ids=NETWORKS)
def test_steps_taken_in_parts_are_those_taken_at_once(make, seen):
    network = make().eval()
    x = _alike(B, 2, 6, 6).detach().expand(T, B, 2, 6, 6)
    whole = network(x)
    for sizes in ([1, 4], [2, 1, 2], [5]):
        state, parts = network.initial_state(x[0]), []
        for part in x.split(sizes):
            y, state = network.advance(part, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
        steps, slow = [], network.initial_state(x[0])
        for x_t in x:
            y_t, slow = network.step(x_t, slow)
            steps.append(y_t)
        torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 1, 3, 3), (1, 1, 3, 3), (2, 3, 1, 1), (0, 2, 3, 3)])
def test_channels_last_keeps_shapes_and_numbers(shape):
    """Single channels, samples and pixels have strides that say nothing."""
    layer = nn.Conv2d(shape[1], 4, 1)
    x = torch.rand(T, *shape)
    y = Sequential(layer)(x)
    assert y.shape == (T, shape[0], 4, *shape[2:])
    torch.testing.assert_close(y.flatten(0, 1), layer(x.flatten(0, 1)))


def test_a_convolution_without_a_batch_axis():
    """``[T, B]`` folded has no channels: the layer's own error."""
    with pytest.raises(RuntimeError, match="Expected 3D"):
        Sequential(nn.Conv2d(2, 4, 1))(torch.rand(T, B))


@pytest.mark.parametrize("network", [_seeded(nn.Linear(6, 4), LIF(0.8)), Sequential(Residual(Sequential(LIF(0.8))))])
def test_the_gradient_at_each_step_of_an_expanded_input(network):
    """Also of one that is not a leaf, which nobody announces."""
    image = _alike(B, 6)
    shown = image.expand(T, B, 6)
    y = network(shown)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((y * weights).sum(), shown)[0]
    slow = image.detach().expand(T, B, 6).clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad((network(slow) * weights).sum(), slow)[0])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("x", [_alike(B, 6), _alike(B, 6).detach()], ids=["attacked", "trained"])
def test_a_classifier_computes_once_what_direct_shows(x, calls):
    model = SpikingClassifier(Direct(T), Sequential(nn.Linear(6, 4), LIF(0.8), nn.Linear(4, 3)), MeanOutput())
    model(x)
    assert calls == [("linear", (B, 6)), ("linear", (T * B, 4))]


def test_classes_with_a_forward_or_step_of_their_own_keep_it():
    class Twice(LIF):
        def forward(self, x):
            return super().forward(2 * x)

        def step(self, x_t, state):
            return super().step(2 * x_t, state)

    NEURONS.pop("Twice")  # a class of this test alone

    class Wide(Sequential):
        def forward(self, x):
            return super().forward(2 * x)

    x = _alike(B, 6).detach()
    for network in (Sequential(Twice(0.8)), Sequential(Residual(Wide(LIF(0.8))))):
        expected = network(x.expand(T, B, 6).clone())
        assert torch.equal(network.shown(x, T), expected)
    network = Sequential(Twice(0.8))
    expected = network(x.expand(T, B, 6).clone())
    assert torch.equal(network.advance(x.expand(T, B, 6), {})[0], expected)
    assert torch.equal(network.advance_shown(x, T, {})[0], expected)


def test_a_layer_in_place_leaves_the_input_as_it_is():
    network, x = Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), torch.randn(B, 6)
    before = x.clone()
    expected = network(x.expand(T, B, 6).clone())
    assert torch.equal(network(x.expand(T, B, 6)), expected)
    assert torch.equal(network.shown(x.requires_grad_(), T), expected)
    assert torch.equal(x, before)


def test_chunks_of_an_expanded_leaf_have_the_gradient_of_each_step():
    network = _seeded(nn.Linear(6, 4), LIF(0.8))
    weights = torch.randn(T, B, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for run in (network, Chunked(network, 2)):
        x = _alike(B, 6).detach().expand(T, B, 6).requires_grad_()
        found.append(torch.autograd.grad((run(x) * weights).sum(), x)[0])
    torch.testing.assert_close(*found)
    assert found[0].any(-1).all()
