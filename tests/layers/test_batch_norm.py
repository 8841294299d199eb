"""``batch_norm`` against torch's, and its checks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.layers import BNTT, TDBN, TEBN
from snnrobust.layers.batch_norm import batch_norm, check_features, check_steps


def _drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def _arguments(features, dtype=torch.float64):
    mean, weight, bias = (_drawn(features, seed=s, dtype=dtype) for s in (1, 2, 3))
    return mean, _drawn(features, seed=4, dtype=dtype).square() + 0.1, weight, bias


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.integers(2, 5),
    features=st.integers(1, 4),
    space=st.lists(st.integers(1, 4), max_size=3),
    with_bias=st.booleans(),
    training=st.booleans(),
)
def test_equals_torch(batch, features, space, with_bias, training):
    x, (mean, var, weight, bias) = _drawn(batch, features, *space), _arguments(features)
    bias = bias if with_bias else None
    theirs = mean.clone(), var.clone()
    y = batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-3)
    expected = F.batch_norm(x, *theirs, weight, bias, training, 0.3, 1e-3)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((mean, var), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_rounds_alike_for_any_batch_and_layout(dtype):
    x, arguments = _drawn(9, 5, 6, 7, dtype=dtype), _arguments(5, dtype)
    y = batch_norm(x, *arguments, False, 0.1, 1e-5)
    assert y.dtype == dtype
    assert torch.equal(torch.cat([batch_norm(x_i[None], *arguments, False, 0.1, 1e-5) for x_i in x]), y)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch_norm(nhwc, *arguments, False, 0.1, 1e-5), y)
    assert torch.equal(batch_norm(x.mT.contiguous().mT, *arguments, False, 0.1, 1e-5), y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input(training, dtype):
    """Statistics and weights stay float32, and what is computed from them is."""
    x = _drawn(6, 3, 4).to(dtype)
    layers = [BNTT(3, 2), TEBN(3, 2), TDBN(3)]
    for layer in layers:
        layer.train(training)
        given = x if isinstance(layer, TDBN) else x[None].repeat(2, *[1] * x.dim())
        y = layer(given)
        assert y.dtype == dtype
        assert layer.running_mean.dtype == torch.float32
        torch.testing.assert_close(y, layer.train(training)(given.float()).to(dtype), rtol=0.05, atol=0.05)
        if isinstance(layer, BNTT) or (isinstance(layer, TEBN) and not training):
            assert layer.step(x, 0)[0].dtype == dtype


def test_an_empty_batch_touches_no_statistics():
    mean, var, weight, bias = _arguments(3)
    before = mean.clone(), var.clone()
    for training in (True, False):
        assert batch_norm(torch.ones(0, 3, 2).double(), mean, var, weight, bias, training, 0.1, 1e-5).shape == (0, 3, 2)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(4, 3), ValueError, r"Layer expects 2 channels in \[B, C, ...\], got shape \(4, 3\)"),
        (torch.ones(2), ValueError, r"got shape \(2,\)"),
        (torch.tensor(1.0), ValueError, r"got shape \(\)"),
        (torch.ones(1, 2, 1, 1, 1, 1), ValueError, r"got shape \(1, 2, 1, 1, 1, 1\)"),
        (torch.ones(4, 2).int(), TypeError, r"Layer expects a floating tensor, got torch.int32"),
        ([[1.0, 2.0]], TypeError, r"Layer expects a floating tensor, got list"),
    ],
)
def test_check_features(x, error, message):
    with pytest.raises(error, match=message):
        check_features("Layer", x, 2)


def test_check_steps():
    assert [check_steps("Layer", steps, 3) for steps in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"steps must be in 1..3, the time steps that Layer was made for, got 4"):
        check_steps("Layer", 4, 3)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        check_steps("Layer", 0, 3)
    with pytest.raises(TypeError, match=r"steps must be an integer, got 2\.0"):
        check_steps("Layer", 2.0, 3)
