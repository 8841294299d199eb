from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Poisson, Rows
from snnrobust.layers import EventConv2d, EventLinear, OrdinaryResidual
from snnrobust.learning_rules.feedback import (
    carries_feedback,
    feedback_weights,
    first_synapses,
    initial_weights,
    through,
)
from snnrobust.models import ARCHITECTURES, Conv, Dense, Residual, spiking

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear over rows": (lambda: nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "event-driven linear": (lambda: EventLinear(nn.Linear(5, 3)), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 5)),
    "conv2d of stride 2": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 3, 6, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (2, 4, 6, 6)),
    "same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 2, 5, 6)),
    "valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 6)),
    "reflect": (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), (2, 2, 7)),
    "event-driven conv2d": (lambda: EventConv2d(nn.Conv2d(3, 4, 3, padding=1)), (2, 3, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 3, 4, 5)),
}


def fresh(make, seed=0):
    with keyed(seed):
        return make()


def gradients(layer, x, error):
    x = x.clone().requires_grad_()
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    y = layer(x)
    return y, torch.autograd.grad((y * error).sum(), inputs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own layer
@pytest.mark.parametrize("kind", LAYERS)
def test_the_error_passes_as_through_a_layer_with_the_feedback_as_its_weight(kind):
    """A layer is linear: its gradient by x is that of a layer with weight B, and those by weight and bias do not see B."""
    make, shape = LAYERS[kind]
    layer = fresh(make).double()
    back = initial_weights(7, layer.weight.shape, layer.weight)
    other = deepcopy(layer)
    other.weight.data.copy_(back)
    x = fresh(lambda: torch.rand(shape, dtype=torch.float64))
    y, true = gradients(layer, x, error := fresh(lambda: torch.randn(layer(x).shape, dtype=torch.float64), 2))
    with through({layer: lambda weight: back}):
        lent, found = gradients(layer, x, error)
    torch.testing.assert_close(lent, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0], gradients(other, x, error)[1][0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0], true[0])
    for mine, theirs in zip(found[1:], true[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "circular"])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(kind, frozen):
    make, shape = LAYERS[kind]
    layer, x = fresh(make), fresh(lambda: torch.rand(shape))
    with through({layer: lambda weight: weight}):
        whole = gradients(layer, x, 1.0)[1]
        getattr(layer, frozen).requires_grad_(False)
        part = gradients(layer, x, 1.0)[1]
    assert len(part) == 2
    assert torch.equal(part[0], whole[0])
    assert torch.equal(part[1], whole[2 if frozen == "weight" else 1])


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_without_learning_only_the_input_has_a_gradient(kind):
    make, shape = LAYERS[kind]
    layer, x = fresh(make), fresh(lambda: torch.rand(shape))
    with through({layer: lambda weight: 2 * weight}, learning=False):
        assert not layer(x).requires_grad
        (y := layer(x.requires_grad_())).sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    torch.testing.assert_close(x.grad, 2 * gradients(layer, x.detach(), 1.0)[1][0])
    assert y.shape == layer(x).shape


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_under_autocast_the_error_has_16_bits_and_the_gradients_have_32(kind):
    make, shape = LAYERS[kind]
    layer, x = fresh(make), fresh(lambda: torch.rand(shape))
    with through({layer: lambda weight: weight}), torch.autocast("cpu", torch.bfloat16):
        y, found = gradients(layer, x, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        _, true = gradients(layer, x, 1.0)
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in found)
    torch.testing.assert_close(found, true, rtol=0.05, atol=0.05)


def test_a_second_derivative_is_refused():
    layer, x = nn.Linear(3, 2), torch.rand(4, 3, requires_grad=True)
    with through({layer: lambda weight: weight}):
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_the_layer_is_as_it_was_afterwards_and_after_an_error():
    layer = nn.Linear(3, 2)
    before = set(vars(layer))
    for error in (None, KeyError):
        try:
            with through({layer: lambda weight: weight}):
                assert "forward" in vars(layer)
                if error is not None:
                    raise error
        except KeyError:
            pass
        assert set(vars(layer)) == before


def test_one_within_another_gives_way_to_it_again():
    layer, x = nn.Linear(3, 2), torch.rand(4, 3)

    def factor():
        return gradients(layer, x, 1.0)[1][0] / layer.weight.sum(0)

    with through({layer: lambda weight: 2 * weight}):
        with through({layer: lambda weight: 3 * weight}):
            torch.testing.assert_close(factor(), torch.full((4, 3), 3.0))
        torch.testing.assert_close(factor(), torch.full((4, 3), 2.0))
    torch.testing.assert_close(factor(), torch.ones(4, 3))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d", "depthwise"])
def test_weights_begin_as_those_of_torch(kind):
    make, _ = LAYERS[kind]
    layer = fresh(make, 5)
    torch.testing.assert_close(
        initial_weights(5, layer.weight.shape, layer.weight), layer.weight.detach(), rtol=1e-6, atol=0
    )


def test_weights_depend_on_the_seed_and_the_layer_alone_in_any_dtype():
    like = torch.empty(4, 6)
    one = feedback_weights(0, "0", like)
    state = torch.get_rng_state()
    assert torch.equal(one, feedback_weights(0, "0", torch.ones(4, 6)))
    assert torch.equal(one.double(), feedback_weights(0, "0", like.double()))
    assert torch.equal(one, feedback_weights(0, "_orig_mod.0", like))  # a compiled model
    assert torch.equal(state, torch.get_rng_state())
    for other in (feedback_weights(1, "0", like), feedback_weights(0, "1", like)):
        assert not torch.equal(one, other)


class Fork(nn.Module):
    """Two first layers; one of them is used again later."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.after, self.unused = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        return self.after(self.right(self.left(x)) + self.right(x) + self.left(x))


MODELS = {
    "chain": (lambda: spiking((Conv(2), Dense(3)), (1, 4, 4), 2, Poisson(3)), (1, 4, 4), {"network.0"}),
    "residual": (lambda: spiking((Residual((Conv(2),)),), (1, 4, 4), 2, Direct(2)), (1, 4, 4), None),
    "recurrent": (lambda: spiking(ARCHITECTURES["recurrent"], (1, 8, 8), 10, Rows(8)), (1, 8, 8), {"network.0"}),
    "normalised": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)), (4,), {"1"}),
    "parallel": (lambda: nn.Sequential(OrdinaryResidual(nn.Linear(4, 3), nn.Linear(4, 3)), nn.Linear(3, 2)), (4,), None),
    "twice": (Fork, (4,), {"left"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_the_first_layers_are_those_that_see_the_input(kind):
    make, shape, expected = MODELS[kind]
    model = fresh(make)
    if expected is None:  # the first of both branches
        within = [name for name, m in model.named_modules() if carries_feedback(m)]
        expected = {"0.body", "0.shortcut"} if kind == "parallel" else {n for n in within if n.startswith("network.0")}
        assert len(expected) == 2
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    model.train()
    with torch.no_grad():
        assert first_synapses(model, torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))) == expected
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_that_computes_something_else_carries_no_feedback():
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    assert carries_feedback(nn.Conv2d(1, 1, 1))
    assert carries_feedback(spectral)
    assert not any(map(carries_feedback, (Doubled(2, 2), patched, nn.ReLU(), nn.ConvTranspose2d(1, 1, 1))))
