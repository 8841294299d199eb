"""BNTT against one ``nn.BatchNorm`` per time step, SpikingJelly's, and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based.layer import BatchNormThroughTime2d
from torch import nn

from snnrobust.layers import BNTT

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _input(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def _twins(bntt, rank):
    """One batch norm a step with the same gamma and without beta."""
    norms = [
        KINDS[rank](bntt.features, eps=bntt.eps, momentum=bntt.momentum).to(bntt.weight.dtype)
        for _ in range(bntt.time_steps)
    ]
    with torch.no_grad():
        bntt.weight.copy_(_input(*bntt.weight.shape, seed=9))
        for norm, gamma in zip(norms, bntt.weight, strict=True):
            norm.weight.copy_(gamma)
    return norms


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 4),
    batch=st.integers(2, 5),
    features=st.integers(1, 4),
    space=st.lists(st.integers(1, 4), max_size=3),
    eps=st.sampled_from([1e-4, 1e-2]),
    momentum=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equals_batch_norm_of_each_step(T, batch, features, space, eps, momentum):
    bntt = BNTT(features, T, eps, momentum).double()
    norms = _twins(bntt, 2 + len(space))
    for seed in range(2):  # statistics run on from one batch to the next
        x = _input(T, batch, features, *space, seed=seed).requires_grad_()
        y = bntt(x)
        expected = torch.stack([norm(x_t) for norm, x_t in zip(norms, x, strict=True)])
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        weights = _input(*x.shape, seed=5)
        gradients = torch.autograd.grad((y * weights).sum(), [x, bntt.weight])
        theirs = torch.autograd.grad((expected * weights).sum(), [x, *(norm.weight for norm in norms)])
        torch.testing.assert_close(gradients[0], theirs[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(gradients[1], torch.stack(theirs[1:]), rtol=1e-8, atol=1e-8)
    for t, norm in enumerate(norms):
        torch.testing.assert_close(bntt.running_mean[t], norm.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bntt.running_var[t], norm.running_var, rtol=1e-12, atol=1e-12)
    bntt.eval()
    statistics = bntt.running_mean.clone()
    expected = torch.stack([norm.eval()(x_t) for norm, x_t in zip(norms, x, strict=True)])
    torch.testing.assert_close(bntt(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(bntt.running_mean, statistics)


def test_equals_spikingjelly():
    """Theirs has eps 1e-5 by default; its beta is None."""
    ours, theirs = BNTT(3, 4), BatchNormThroughTime2d(4, 3, eps=1e-4, step_mode="m")
    assert all(norm.bias is None for norm in theirs.bn_list)
    x = _input(4, 6, 3, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.reset()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    for t, norm in enumerate(theirs.bn_list):
        torch.testing.assert_close(ours.running_var[t], norm.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    bntt = BNTT(2, 3, momentum=0.0).double().train(training)
    bntt.running_mean.copy_(_input(3, 2, seed=1))
    bntt.running_var.copy_(_input(3, 2, seed=2).square() + 0.1)
    x, weight = _input(3, 4, 2, 2).requires_grad_(), _input(3, 2, seed=3).requires_grad_()

    def function(x, weight):
        return torch.func.functional_call(bntt, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(function, (x, weight))


def test_numbers_by_hand():
    """x = -1, 1 at step 1 (mean 0, variance 1) and 2, 6 at step 2 (mean 4, variance 4, unbiased 8)."""
    bntt = BNTT(1, 2, eps=1.0, momentum=0.5).double()
    with torch.no_grad():
        bntt.weight.copy_(torch.tensor([[1.0], [5.0]]))
    x = torch.tensor([[[-1.0], [1.0]], [[2.0], [6.0]]], dtype=torch.float64)
    expected = torch.tensor([[[-(0.5**0.5)], [0.5**0.5]], [[-2 * 5**0.5], [2 * 5**0.5]]], dtype=torch.float64)
    torch.testing.assert_close(bntt(x), expected)
    assert bntt.running_mean.flatten().tolist() == [0.0, 2.0]
    assert bntt.running_var.flatten().tolist() == [1.5, 4.5]
    # eval: x / sqrt(1.5 + 1) and 5 (x - 2) / sqrt(4.5 + 1)
    evaluated = torch.stack([x[0] / 2.5**0.5, 5 * (x[1] - 2) / 5.5**0.5])
    torch.testing.assert_close(bntt.eval()(x), evaluated)


def test_defaults_and_parameters():
    bntt = BNTT(3, time_steps=5)
    assert (bntt.eps, bntt.momentum) == (1e-4, 0.1)
    assert {name: tuple(p.shape) for name, p in bntt.named_parameters()} == {"weight": (5, 3)}  # no beta
    assert set(bntt.state_dict()) == {"weight", "running_mean", "running_var"}


def test_a_shorter_sequence_leaves_later_steps_alone():
    bntt = BNTT(2, 4)
    bntt(_input(2, 8, 2, dtype=torch.float32))
    assert (bntt.running_mean[:2] != 0).all()
    assert torch.equal(bntt.running_mean[2:], torch.zeros(2, 2))
    assert torch.equal(bntt.running_var[2:], torch.ones(2, 2))


def test_eval_does_not_depend_on_batch_or_layout():
    bntt = BNTT(3, 2)
    bntt(_input(2, 8, 3, 4, 4, dtype=torch.float32))
    bntt.eval()
    x = _input(2, 8, 3, 4, 4, dtype=torch.float32, seed=1)
    y = bntt(x)
    assert torch.equal(torch.cat([bntt(x[:, i : i + 1]) for i in range(8)], dim=1), y)
    nhwc = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 8))
    assert torch.equal(bntt(nhwc), y)


def test_too_long_a_sequence_touches_no_statistics():
    bntt = BNTT(2, 3)
    before = {k: v.clone() for k, v in bntt.state_dict().items()}
    with pytest.raises(ValueError, match="3 time steps"):
        bntt(torch.rand(4, 5, 2))
    assert all(torch.equal(v, before[k]) for k, v in bntt.state_dict().items())
    with pytest.raises(ValueError, match="asked for step 4"):  # streaming cannot know how many will come
        bntt.step(torch.rand(5, 2), 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2, 2), r"BNTT was made for 3 time steps and got a sequence of 4"),
        ((3, 2, 5), r"BNTT expects 2 channels in \[B, C, ...\], got shape \(2, 5\)"),
        ((3, 2), r"BNTT expects 2 channels in \[B, C, ...\], got shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_input(shape, message, training):
    with pytest.raises(ValueError, match=message):
        BNTT(2, 3).train(training)(torch.ones(shape))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_truncate_keeps_the_first_steps(steps, training):
    bntt = BNTT(3, 4, eps=1e-3, momentum=0.3)
    with torch.no_grad():
        bntt.weight.copy_(_input(4, 3, seed=1))
    bntt(_input(4, 8, 3, 2, 2, dtype=torch.float32))
    bntt.train(training).double()
    before = {name: value.clone() for name, value in bntt.state_dict().items()}
    short = bntt.truncate(steps)
    assert (type(short), short.time_steps, short.eps, short.momentum) == (BNTT, steps, 1e-3, 0.3)
    assert short.training is training
    assert {n: tuple(t.shape) for n, t in short.state_dict().items()} == dict.fromkeys(before, (steps, 3))
    x = _input(steps, 5, 3, 2, 2, seed=2)
    y = short(x)
    assert all(torch.equal(before[name], value) for name, value in bntt.state_dict().items())  # nothing is shared
    assert torch.equal(y, bntt(x))
    for name, value in short.state_dict().items():  # statistics ran on alike
        assert torch.equal(value, bntt.state_dict()[name][:steps])
    with torch.no_grad():
        short.weight.zero_()
    assert torch.equal(bntt.weight, before["weight"])
    with pytest.raises(ValueError, match=f"BNTT was made for {steps} time steps and got a sequence of {steps + 1}"):
        short(_input(steps + 1, 5, 3))


def test_truncate_keeps_what_is_frozen_frozen():
    bntt = BNTT(3, 4)
    assert bntt.truncate(2).weight.requires_grad
    bntt.weight.requires_grad_(False)
    assert not bntt.truncate(2).weight.requires_grad


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "steps must be at least 1, got 0"),
        (5, ValueError, "steps must be in 1..4, the time steps that BNTT was made for, got 5"),
        (2.0, TypeError, "steps must be an integer, got 2.0"),
    ],
)
def test_bad_truncation(steps, error, message):
    with pytest.raises(error, match=message):
        BNTT(2, 4).truncate(steps)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": 0, "time_steps": 3}, ValueError, "features must be at least 1, got 0"),
        ({"features": 2, "time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"features": 2, "time_steps": 3.0}, TypeError, "time_steps must be an integer, got 3.0"),
        ({"features": 2, "time_steps": 3, "eps": 0.0}, ValueError, r"eps must be in \(0, inf\], got 0.0"),
        ({"features": 2, "time_steps": 3, "momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BNTT(**arguments)
