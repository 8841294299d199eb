"""TEBN against ``nn.BatchNorm`` over time and batch, SpikingJelly's, finite differences and numbers by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer as jelly
from torch import nn

from snnrobust.hardware import Chain, deploy
from snnrobust.layers import TEBN, Sequential

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
NAMES = ("weight", "bias", "running_mean", "running_var")


def _input(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def _drawn(tebn):
    with torch.no_grad():
        for seed, parameter in enumerate(tebn.parameters(), 6):
            parameter.copy_(_input(*parameter.shape, seed=seed))
    return tebn


def _stream(layer, x):
    state, steps = layer.initial_state(x[0]), []
    for x_t in x.unbind(0):
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    return torch.stack(steps)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 4),
    spare=st.integers(0, 2),
    batch=st.integers(2, 5),
    features=st.integers(1, 4),
    space=st.lists(st.integers(1, 4), max_size=3),
    momentum=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equals_a_factor_times_batch_norm_over_all_steps(T, spare, batch, features, space, momentum):
    ours = _drawn(TEBN(features, T + spare, 1e-3, momentum).double())
    theirs = KINDS[2 + len(space)](features, 1e-3, momentum).double()
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if n in NAMES}, strict=False)
    factors = ours.factors.detach()[:T].clone().requires_grad_()

    def expect(x):
        return theirs(x.flatten(0, 1)).unflatten(0, (T, batch)) * factors.view(T, *[1] * (x.dim() - 1))

    for seed in range(2):
        x = _input(T, batch, features, *space, seed=seed).requires_grad_()
        y, expected = ours(x), expect(x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        weights = _input(*x.shape, seed=5)
        mine = torch.autograd.grad((y * weights).sum(), [x, ours.weight, ours.bias, ours.factors])
        other = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias, factors])
        torch.testing.assert_close(mine[:3], other[:3], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(mine[3][:T], other[3], rtol=1e-8, atol=1e-8)
        assert (mine[3][T:] == 0).all()
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    theirs.eval()
    y = ours.eval()(x)
    torch.testing.assert_close(y, expect(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(_stream(ours, x), y)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "space"), [(jelly.TemporalEffectiveBatchNorm1d, (6,)), (jelly.TemporalEffectiveBatchNorm2d, (3, 4))]
)
def test_equals_spikingjelly(kind, space):
    ours, theirs = _drawn(TEBN(3, 4)), kind(4, 3)
    theirs.load_state_dict(
        {"scale": ours.factors} | {n: v for n, v in ours.state_dict().items() if n in NAMES}, strict=False
    )
    x = _input(4, 6, 3, *space, dtype=torch.float32).requires_grad_()
    weights = _input(*x.shape, dtype=torch.float32, seed=1)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected)
    mine = torch.autograd.grad((y * weights).sum(), [x, ours.weight, ours.bias, ours.factors])
    other = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias, theirs.scale])
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_numbers_by_hand():
    """x = -1, 1 then 3, 5: mean 2, variance 5, unbiased 20/3 over both steps together; factors 1 and 10."""
    tebn = TEBN(1, 2, eps=4.0, momentum=0.5).double()
    with torch.no_grad():
        tebn.factors.copy_(torch.tensor([1.0, 10.0]))
        tebn.bias.fill_(2.0)
    x = torch.tensor([[-1.0, 1.0], [3.0, 5.0]], dtype=torch.float64)[..., None]
    expected = torch.tensor([[1.0, 5 / 3], [70 / 3, 30.0]], dtype=torch.float64)  # the factor scales beta too
    torch.testing.assert_close(tebn(x)[..., 0], expected)
    assert tebn.running_mean.item() == 1.0
    assert tebn.running_var.item() == pytest.approx(0.5 + 10 / 3)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    tebn = TEBN(2, 3, momentum=0.0).double().train(training)
    tebn.running_mean.copy_(_input(2, seed=1))
    tebn.running_var.copy_(_input(2, seed=2).square() + 0.1)
    drawn = (_input(3, 4, 2, 2), _input(2, seed=3), _input(2, seed=4), _input(3, seed=5))

    def function(x, weight, bias, factors):
        return torch.func.functional_call(tebn, {"weight": weight, "bias": bias, "factors": factors}, (x,))

    assert torch.autograd.gradcheck(function, tuple(t.requires_grad_() for t in drawn))


def test_defaults_and_parameters():
    tebn = TEBN(3, time_steps=5)
    assert (tebn.eps, tebn.momentum) == (1e-5, 0.1)
    shapes = {name: tuple(p.shape) for name, p in tebn.named_parameters()}
    assert shapes == {"weight": (3,), "bias": (3,), "factors": (5,)}
    assert torch.equal(tebn.factors, torch.ones(5))
    assert str(tebn) == "TEBN(3, time_steps=5, eps=1e-05, momentum=0.1)"


def test_step_while_training_is_refused():
    tebn = TEBN(2, 3)
    with pytest.raises(RuntimeError, match="TEBN normalises over all time steps while training"):
        tebn.step(torch.rand(4, 2), 0)
    assert torch.equal(tebn.running_mean, torch.zeros(2))


def test_eval_does_not_depend_on_batch_or_layout():
    tebn = _drawn(TEBN(3, 2))
    tebn(_input(2, 8, 3, 4, 4, dtype=torch.float32))
    tebn.eval()
    x = _input(2, 8, 3, 4, 4, dtype=torch.float32, seed=1)
    y = tebn(x)
    assert torch.equal(torch.cat([tebn(x[:, i : i + 1]) for i in range(8)], dim=1), y)
    nhwc = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 8))
    assert torch.equal(tebn(nhwc), y)
    assert torch.equal(tebn(x.transpose(0, 1).contiguous().transpose(0, 1)), y)
    torch.testing.assert_close(tebn.train()(nhwc), tebn(x))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_truncate_keeps_the_first_factors(steps, training):
    tebn = _drawn(TEBN(3, 4, eps=1e-3, momentum=0.3))
    tebn(_input(4, 8, 3, 2, 2, dtype=torch.float32))
    tebn.train(training).double()
    tebn.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in tebn.state_dict().items()}
    short = tebn.truncate(steps)
    assert (type(short), short.time_steps, short.eps, short.momentum) == (TEBN, steps, 1e-3, 0.3)
    assert (short.training, short.weight.requires_grad, short.factors.requires_grad) == (training, False, True)
    assert torch.equal(short.factors, tebn.factors[:steps])
    x = _input(steps, 5, 3, 2, 2, seed=2)
    y = short(x)
    assert all(torch.equal(before[name], value) for name, value in tebn.state_dict().items())  # nothing is shared
    assert torch.equal(y, tebn(x))
    with torch.no_grad():
        short.factors.zero_()
    assert torch.equal(tebn.factors, before["factors"])
    with pytest.raises(ValueError, match=f"TEBN was made for {steps} time steps and got a sequence of {steps + 1}"):
        short(_input(steps + 1, 5, 3))


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "steps must be at least 1, got 0"),
        (5, ValueError, "steps must be in 1..4, the time steps that TEBN was made for, got 5"),
        (True, TypeError, "steps must be an integer, got True"),
    ],
)
def test_bad_truncation(steps, error, message):
    with pytest.raises(error, match=message):
        TEBN(2, 4).truncate(steps)


def test_a_chip_leaves_it_digital():
    model = Sequential(nn.Linear(4, 3), _drawn(TEBN(3, 2))).eval()
    x = _input(2, 5, 4, dtype=torch.float32)
    assert torch.equal(deploy(model, Chain(), seed=1)(x), model(x))


def test_an_empty_batch_stays_empty():
    for training in (True, False):
        tebn = TEBN(2, 3).train(training)
        assert tebn(torch.ones(3, 0, 2, 4)).shape == (3, 0, 2, 4)
        assert torch.equal(tebn.running_mean, torch.zeros(2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(4, 2, 2), ValueError, "TEBN was made for 3 time steps and got a sequence of 4"),
        (torch.ones(0, 2, 2), ValueError, "x must be .* with at least one time step"),
        (torch.ones(3, 2, 5), ValueError, r"TEBN expects 2 channels in \[B, C, ...\]"),
        (torch.ones(3, 2), ValueError, r"TEBN expects 2 channels in \[B, C, ...\]"),
        (torch.tensor(1.0), ValueError, "x must be"),
        (torch.ones(3, 2, 2).int(), TypeError, "x must be floating"),
    ],
)
def test_bad_input_touches_no_statistics(training, x, error, message):
    tebn = TEBN(2, 3).train(training)
    with pytest.raises(error, match=message):
        tebn(x)
    assert torch.equal(tebn.running_mean, torch.zeros(2))
    assert torch.equal(tebn.running_var, torch.ones(2))


def test_streaming_past_the_end_is_refused():
    with pytest.raises(ValueError, match="TEBN was made for 3 time steps and is asked for step 4"):
        TEBN(2, 3).eval().step(torch.rand(5, 2), 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"time_steps": 3.0}, TypeError, "time_steps must be an integer, got 3.0"),
        ({"eps": 0.0}, ValueError, r"eps must be in \(0, inf\], got 0.0"),
        ({"momentum": -0.5}, ValueError, r"momentum must be in \[0, 1\], got -0.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TEBN(**{"features": 2, "time_steps": 3, **arguments})
