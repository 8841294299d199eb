"""TDBN against ``nn.BatchNorm``, SpikingJelly's, finite differences and numbers by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer as jelly
from torch import nn

from snnrobust.hardware import Chain, deploy
from snnrobust.layers import TDBN, Sequential

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _input(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def _drawn(tdbn):
    with torch.no_grad():
        tdbn.weight.copy_(_input(tdbn.features, seed=7))
        tdbn.bias.copy_(_input(tdbn.features, seed=8))
    return tdbn


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(2, 9),
    features=st.integers(1, 4),
    space=st.lists(st.integers(1, 4), max_size=3),
    threshold=st.sampled_from([0.5, 1.0, 3.0]),
    alpha=st.sampled_from([0.5**0.5, 1.0]),
    momentum=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equals_batch_norm_of_a_scaled_gamma(batch, features, space, threshold, alpha, momentum):
    ours = _drawn(TDBN(features, threshold, alpha, 1e-3, momentum).double())
    theirs = KINDS[2 + len(space)](features, 1e-3, momentum).double()
    theirs.load_state_dict(ours.state_dict())  # the same names
    theirs.weight.data *= threshold * alpha
    for seed in range(2):
        x = _input(batch, features, *space, seed=seed).requires_grad_()
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        weights = _input(*x.shape, seed=5)
        mine = torch.autograd.grad((y * weights).sum(), [x, ours.weight, ours.bias])
        other = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias])
        torch.testing.assert_close(mine[0], other[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(mine[1], other[1] * threshold * alpha, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(mine[2], other[2], rtol=1e-8, atol=1e-8)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "space"), [(jelly.ThresholdDependentBatchNorm1d, (6,)), (jelly.ThresholdDependentBatchNorm2d, (3, 4))]
)
def test_equals_spikingjelly(kind, space):
    """Theirs holds alpha * threshold in the initial weight, ours beside it."""
    ours, theirs = TDBN(3, threshold=0.5, alpha=0.5**0.5), kind(0.5**0.5, 0.5, 3)
    network = Sequential(ours)
    x = _input(4, 6, 3, *space, dtype=torch.float32).requires_grad_()
    weights = _input(*x.shape, dtype=torch.float32, seed=1)
    y, expected = network(x), theirs(x)
    torch.testing.assert_close(y, expected)
    mine = torch.autograd.grad((y * weights).sum(), [x, ours.weight, ours.bias])
    other = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias])
    torch.testing.assert_close(mine[0], other[0])
    torch.testing.assert_close(mine[1], other[1] * 0.5**1.5)  # chain rule of the translation
    torch.testing.assert_close(mine[2], other[2])
    torch.testing.assert_close(network.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_numbers_by_hand():
    """x = -1, 1, 3, 5 over time and batch: mean 2, variance 5, unbiased 20/3; threshold 3 and alpha 1/2 scale by 1.5."""
    tdbn = TDBN(1, threshold=3.0, alpha=0.5, eps=4.0, momentum=0.5).double()
    x = torch.tensor([-1.0, 1.0, 3.0, 5.0], dtype=torch.float64).view(2, 2, 1)
    torch.testing.assert_close(Sequential(tdbn)(x), 1.5 * (x - 2) / 3)
    assert tdbn.running_mean.item() == 1.0
    assert tdbn.running_var.item() == pytest.approx(0.5 + 10 / 3)
    assert tdbn.num_batches_tracked == 1
    torch.testing.assert_close(tdbn.eval()(x[0]), 1.5 * (x[0] - 1) / (0.5 + 10 / 3 + 4) ** 0.5)


def test_the_output_has_the_variance_of_the_threshold():
    x = _input(8, 500, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1])
    y = Sequential(TDBN(3, threshold=2.0, alpha=0.5**0.5).double())(x).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.full((3,), 2.0).double(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    tdbn = TDBN(2, 0.5, 0.7, momentum=0.0).double().train(training)
    tdbn.running_mean.copy_(_input(2, seed=1))
    tdbn.running_var.copy_(_input(2, seed=2).square() + 0.1)
    arguments = tuple(t.requires_grad_() for t in (_input(4, 2, 2, 2), _input(2, seed=3), _input(2, seed=4)))

    def function(x, weight, bias):
        return torch.func.functional_call(tdbn, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, arguments)


def test_defaults_and_arguments():
    tdbn = TDBN(3)
    assert (tdbn.features, tdbn.threshold, tdbn.alpha, tdbn.eps, tdbn.momentum) == (3, 1.0, 1.0, 1e-5, 0.1)
    assert torch.equal(tdbn.weight, torch.ones(3))
    assert torch.equal(tdbn.bias, torch.zeros(3))
    assert str(TDBN(3, 0.5, 0.25)) == "TDBN(3, threshold=0.5, alpha=0.25, eps=1e-05, momentum=0.1)"


def test_a_chip_leaves_it_digital():
    model = Sequential(nn.Linear(4, 3), _drawn(TDBN(3, 0.5))).eval()
    x = _input(2, 5, 4, dtype=torch.float32)
    assert torch.equal(deploy(model, Chain(), seed=1)(x), model(x))


def test_nan_stays_where_it_is():
    tdbn, x = TDBN(2).eval(), torch.ones(3, 2)
    x[1, 0] = torch.nan
    assert tdbn(x).isnan().tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(4, 3), ValueError, r"TDBN expects 2 channels in \[B, C, ...\], got shape \(4, 3\)"),
        (torch.ones(2), ValueError, r"TDBN expects 2 channels in \[B, C, ...\], got shape \(2,\)"),
        (torch.ones(4, 2).long(), TypeError, "TDBN expects a floating tensor, got torch.int64"),
    ],
)
def test_bad_input(training, x, error, message):
    tdbn = TDBN(2).train(training)
    with pytest.raises(error, match=message):
        tdbn(x)
    assert tdbn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"features": 2.0}, TypeError, "features must be an integer, got 2.0"),
        ({"threshold": 0.0}, ValueError, r"threshold must be in \(0, inf\], got 0.0"),
        ({"threshold": float("nan")}, ValueError, r"threshold must be in \(0, inf\], got nan"),
        ({"alpha": -1.0}, ValueError, r"alpha must be in \(0, inf\], got -1.0"),
        ({"eps": 0.0}, ValueError, r"eps must be in \(0, inf\], got 0.0"),
        ({"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
        ({"momentum": None}, TypeError, "momentum must be a number, got None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TDBN(**{"features": 2, **arguments})
