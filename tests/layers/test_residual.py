"""Branches that are added or concatenated: against the sum and concatenation written out, streamed and whole."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.layers import BNTT, Concat, MeanOutput, OrdinaryConcat, OrdinaryResidual, Residual, Sequential
from snnrobust.neurons import IF, LIF


def _seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double().eval()


def _input(*shape, seed=1):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def _body(channels, out, stride=1):
    return Sequential(nn.Conv2d(channels, out, 3, stride, 1), BNTT(out, 9), LIF(0.5), nn.Conv2d(out, out, 3, padding=1))


CASES = {
    "identity": (lambda: Residual(_body(3, 3)), (2, 3, 5, 4)),
    "projection": (lambda: Residual(_body(3, 4, 2), Sequential(nn.Conv2d(3, 4, 1, 2), IF(0.5))), (2, 3, 5, 4)),
    "neurons alone": (lambda: Residual(LIF(0.5), IF()), (3, 6)),
    "nested": (lambda: Residual(Sequential(Residual(Sequential(nn.Linear(6, 6), LIF())), nn.Linear(6, 6))), (3, 6)),
    "concatenation": (lambda: Concat(_body(3, 2)), (2, 3, 5, 4)),
    "flat concatenation": (lambda: Concat(Sequential(nn.Linear(6, 2), LIF(0.7))), (3, 6)),
    "recurrent": (lambda: Residual(Sequential(nn.LSTM(6, 6))), (3, 6)),
}


def _stream(module, x):
    state, outputs = module.initial_state(x[0]), []
    for x_t in x.unbind(0):
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    return torch.stack(outputs)


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("T", [1, 6])
def test_a_stream_is_the_whole_sequence(make, shape, T):
    module, x = _seeded(make), _input(T, *shape).requires_grad_()
    whole, streamed = module(x), _stream(module, x)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-12)
    parameters = [x, *module.parameters()]
    weights = _input(*whole.shape, seed=2)
    gradients = torch.autograd.grad((whole * weights).sum(), parameters)
    expected = torch.autograd.grad((streamed * weights).sum(), parameters)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["identity", "projection"])
def test_the_sum_written_out(name):
    make, shape = CASES[name]
    module, x = _seeded(make), _input(6, *shape)
    straight = x if module.shortcut is None else module.shortcut(x)
    assert torch.equal(module(x), straight + module.body(x))
    assert not torch.equal(module(x), module.body(x))


@pytest.mark.parametrize("name", ["concatenation", "flat concatenation"])
def test_the_concatenation_written_out(name):
    make, shape = CASES[name]
    module, x = _seeded(make), _input(6, *shape)
    y = module(x)
    assert torch.equal(y[:, :, : x.shape[2]], x)
    assert torch.equal(y[:, :, x.shape[2] :], module.body(x))


def test_numbers_by_hand():
    """An integrate-and-fire neuron of threshold 1 on 0.5, 0.5, 1.5: no spike, a spike, a spike."""
    x = torch.tensor([0.5, 0.5, 1.5]).view(3, 1, 1)
    assert Residual(IF())(x).flatten().tolist() == [0.5, 1.5, 2.5]
    assert Residual(IF(), IF(0.5))(x).flatten().tolist() == [1.0, 2.0, 2.0]
    assert Concat(IF())(x).flatten().tolist() == [0.5, 0.0, 0.5, 1.0, 1.5, 1.0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 5),
    batch=st.integers(0, 3),
    channels=st.integers(1, 4),
    grown=st.integers(1, 3),
    space=st.lists(st.integers(1, 3), max_size=3),
    concat=st.booleans(),
)
def test_any_shape(T, batch, channels, grown, space, concat):
    """Without memory in the branches, time is one more batch axis: the plain twin on the folded input is the reference."""
    kind = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(space)]
    layer = kind(channels, grown if concat else channels, *([1] if space else [])).double()
    x = _input(T, batch, channels, *space)
    temporal = (Concat if concat else Residual)(Sequential(layer))
    plain = (OrdinaryConcat if concat else OrdinaryResidual)(layer)
    expected = plain(x.flatten(0, 1))
    torch.testing.assert_close(temporal(x).flatten(0, 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(temporal(x.transpose(0, -1).contiguous().transpose(0, -1)), temporal(x))
    if concat:
        assert expected.shape[1] == channels + grown


def test_float32_stays_float32():
    assert Residual(Sequential(nn.Linear(6, 6)))(torch.ones(2, 3, 6)).dtype == torch.float32


@pytest.mark.parametrize(
    ("body", "shortcut"),
    [
        (nn.Linear(4, 4), None),
        (nn.Sequential(nn.Linear(4, 4)), None),
        (None, None),
        (LIF(), nn.Linear(4, 4)),
    ],
)
def test_branches_are_temporal(body, shortcut):
    name, given = ("body", body) if shortcut is None else ("shortcut", shortcut)
    message = (
        f"{name} must be a temporal module [T, B, *] -> [T, B, *], got {type(given).__name__}: put it in a Sequential"
    )
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        Residual(body, shortcut)
    if shortcut is None:
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            Concat(body)


@pytest.mark.parametrize("readout", [MeanOutput(), Sequential(nn.Linear(4, 4), MeanOutput())])
def test_a_readout_is_no_branch(readout):
    for make in (lambda: Residual(readout), lambda: Residual(LIF(), readout), lambda: Concat(readout)):
        with pytest.raises(TypeError, match="holds a readout, which ends the sequence"):
            make()


@pytest.mark.parametrize("kind", [OrdinaryResidual, OrdinaryConcat])
def test_ordinary_branches_are_modules(kind):
    with pytest.raises(TypeError, match=r"body must be a torch\.nn\.Module"):
        kind(torch.relu)
    with pytest.raises(TypeError, match=r"shortcut must be a torch\.nn\.Module"):
        OrdinaryResidual(nn.Identity(), 3)


@pytest.mark.parametrize(
    "body",
    [Sequential(nn.Linear(4, 1)), Sequential(nn.Linear(4, 3)), Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)))],
    ids=["would be broadcast", "does not fit", "another rank"],
)
def test_branches_that_differ_are_refused(body):
    x = torch.ones(3, 2, 4)
    with pytest.raises(ValueError, match="the branches of a residual connection must agree: the body gives"):
        Residual(body)(x)
    with pytest.raises(ValueError, match="must agree: the body gives"):
        Residual(body).step(x[0], Residual(body).initial_state(x[0]))


def test_concatenation_along_channels_only():
    for body in (Sequential(nn.AvgPool2d(2)), Sequential(nn.Flatten())):
        with pytest.raises(ValueError, match="may differ in channels only"):
            Concat(body)(torch.ones(3, 2, 4, 4, 4))
    with pytest.raises(ValueError, match="may differ in channels only"):
        OrdinaryConcat(nn.Identity())(torch.ones(3))


@pytest.mark.parametrize("kind", [Residual, Concat])
@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.ones(3), ValueError), (torch.tensor(1.0), ValueError), (torch.ones(0, 2, 2), ValueError), ([1.0], TypeError),
     (torch.ones(2, 2, 2).int(), TypeError)],
)  # fmt: skip
def test_bad_input(kind, x, error):
    with pytest.raises(error, match="x must be"):
        kind(LIF())(x)
