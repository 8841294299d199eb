"""Normalisation and LIF as one operation, against the two after each other in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.kernels import native
from snnrobust.neurons.lif import _rule, lif
from snnrobust.neurons.norm_lif import Norm, _moments, norm_lif
from snnrobust.neurons.surrogate import ATan, SpikeTime, Triangle

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")


def _along(p, x):
    return p.view(p.shape[0], 1, -1, *[1] * (x.dim() - 3))


def _slow(x, norm, decay, threshold, rule):
    mean, var = norm.mean, norm.var
    if mean is None:
        dims = [d for d in range(x.dim()) if d != 2 and not (d == 0 and len(norm.gain) > 1)]
        mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=False)
    else:
        mean, var = _along(mean, x), _along(var, x)
    y = (x - mean) * (_along(norm.gain, x) / (var + norm.eps).sqrt())
    y = y if norm.shift is None else y + _along(norm.shift, x)
    return lif(y, decay, threshold, "hard" if rule.hard else "soft", *rule[1:])


def _wide(p):
    return p.detach().double().requires_grad_() if isinstance(p, torch.Tensor) else p


def _channels_last(x):
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


@given(
    st.sampled_from(
        [(5, 3, 6, 4, 5), (5, 7, 6), (4, 2, 33, 9), (1, 2, 3, 2), (3, 1, 2, 30, 30), (2, 3, 600), (3, 2, 2, 3, 4, 2)]
    ),
    st.integers(0, 999), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([0, 2]), st.booleans(), st.booleans(), st.sampled_from([ATan(2.0), Triangle(0.5), SpikeTime(0.3, 0.2)]),
)  # fmt: skip
@settings(max_examples=250, deadline=None, derandomize=True)
def test_it_is_lif_of_the_normalised(
    shape, seed, last, constant, each_step, of_batch, bias, hard, refractory, detach, learn, surrogate
):
    torch.manual_seed(seed)
    T, _, C = shape[:3]
    x = torch.randn(shape[1:] if constant else shape) * 2 + 3
    x = _channels_last(x) if last and len(shape) > 4 else x
    rows = T if each_step else 1
    gain, shift = torch.rand(rows, C) + 0.5, torch.randn(rows, C) * 0.2 if bias else None
    mean, var = (None, None) if of_batch else (torch.randn(rows, C) * 0.3 + 3, torch.rand(rows, C) + 2)
    decay, threshold = (torch.tensor(0.8), torch.rand(C) * 0.3 + 0.7) if learn else (0.8, 0.9)
    rule = _rule(0.8, 0.9, "hard" if hard else "soft", surrogate, detach, refractory)
    leaves = [p.requires_grad_() for p in (x, gain, shift, decay, threshold) if isinstance(p, torch.Tensor)]
    s, mean_used, var_used = norm_lif(
        x, T if constant else 0, Norm(gain, shift, mean, var, 1e-4), decay, threshold, rule
    )
    assert s.shape == shape
    assert s.dtype == x.dtype
    assert not mean_used.requires_grad
    assert not var_used.requires_grad
    wide = [_wide(p) for p in (x, gain, shift, decay, threshold)]
    wx = wide[0].expand(shape) if constant else wide[0]
    slow = _slow(wx, Norm(wide[1], wide[2], _wide(mean), _wide(var), 1e-4), *wide[3:], rule)
    if not torch.equal(s, slow.float()):  # a potential within rounding of its threshold
        assert (s != slow.float()).float().mean() < 0.02
        return
    weights = torch.randn(shape)
    found = torch.autograd.grad((s * weights).sum(), leaves)
    doubles = [p for p in wide if isinstance(p, torch.Tensor)]
    expected = torch.autograd.grad((slow * weights).sum(), doubles, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        b = torch.zeros_like(a).double() if b is None else b
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=1e-4 * (1 + float(b.abs().max())))
    if of_batch:
        dims = [d for d in range(wx.dim()) if d != 2 and not (d == 0 and each_step)]
        torch.testing.assert_close(mean_used, wx.mean(dims).view(rows, C).detach().float())
        torch.testing.assert_close(var_used, wx.var(dims, unbiased=False).view(rows, C).detach().float())


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("of_batch", [False, True])
def test_bfloat16_rounds_spikes_and_gradients_alone(constant, of_batch):
    torch.manual_seed(0)
    x = (torch.randn(4, 8, 5, 6, 6) * 2 + 3).bfloat16()
    x = (x[0] if constant else x).requires_grad_()
    gain, stats = (
        torch.rand(1, 5) + 0.5,
        (None, None) if of_batch else (torch.full((1, 5), 3.0), torch.full((1, 5), 4.0)),
    )
    rule = _rule(0.8, 0.9, "soft", ATan(2.0), True, 0)
    steps = 4 if constant else 0
    s, *_ = norm_lif(x, steps, Norm(gain, None, *stats, 1e-5), 0.8, 0.9, rule)
    wide = x.detach().float().requires_grad_()
    slow, *_ = norm_lif(wide, steps, Norm(gain, None, *stats, 1e-5), 0.8, 0.9, rule)
    assert s.dtype == torch.bfloat16
    assert torch.equal(s.float(), slow)  # the normalised values are never rounded
    weights = torch.randn(s.shape).bfloat16()
    (found,), (expected,) = (
        torch.autograd.grad((y * weights.to(y.dtype)).sum(), leaf) for y, leaf in ((s, x), (slow, wide))
    )
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("outlier", [None, 0.0, 1e6])
@pytest.mark.parametrize("shape", [(3, 4, 2, 20, 20), (3, 40, 2)])
def test_moments_of_a_large_mean_and_a_small_deviation(each_step, outlier, shape):
    """Sums of squares would cancel. The value that they are taken from may itself lie far off."""
    torch.manual_seed(0)
    x = torch.randn(shape) * 0.1 + 1000
    if outlier is not None:
        x[:, 0] = x[:, 0].flatten(1).index_fill(1, torch.tensor(0), outlier).view(x[:, 0].shape)
    for y in (x, _channels_last(x) if x.dim() > 3 else x):
        rows = 3 if each_step else 1
        mean, var = _moments(y, 0, rows)
        dims = [d for d in range(x.dim()) if d != 2 and not (d == 0 and each_step)]
        torch.testing.assert_close(mean.double(), x.double().mean(dims).view(rows, 2), rtol=1e-6, atol=0)
        torch.testing.assert_close(var.double(), x.double().var(dims, unbiased=False).view(rows, 2), rtol=1e-4, atol=0)


def test_moments_where_the_first_value_is_unlike_all_others():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 1, 32, 32) * 0.1 + 1000
    x[:, 0, 0, 0, 0] = 400.0  # a corner under zero padding, say
    mean, var = _moments(x, 0, 4)
    wide = x.double().flatten(1)
    torch.testing.assert_close(var.double()[:, 0], wide.var(1, unbiased=False), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double()[:, 0], wide.mean(1), rtol=1e-6, atol=0)
    mean, var = _moments(torch.full((2, 3, 2, 5), 7.25), 0, 2)
    assert mean.eq(7.25).all()
    assert var.eq(0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_channel(value):
    x = torch.rand(3, 4, 2, 5)
    x[1, 2, 1, 3] = value
    rule = _rule(0.8, 0.9, "soft", ATan(2.0), True, 0)
    s, _, var = norm_lif(x, 0, Norm(torch.ones(1, 2), None, None, None, 1e-5), 0.8, 0.9, rule)
    assert s[:, :, 0].isfinite().all()
    assert s[-1, :, 1].isnan().all()
    assert var[0, 0].isfinite()
    assert not var[0, 1].isfinite()


def test_threads_change_rounding_at_most():
    x = torch.randn(6, 3, 5, 21, 23).requires_grad_()
    rule = _rule(0.8, 0.9, "soft", ATan(2.0), True, 0)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gain = torch.ones(6, 5, requires_grad=True)
            s, *_ = norm_lif(x, 0, Norm(gain, None, torch.zeros(6, 5), torch.ones(6, 5), 1e-5), 0.8, 0.9, rule)
            runs.append([s, *torch.autograd.grad((s * x.detach()).sum(), [x, gain])])
    finally:
        torch.set_num_threads(before)
    for s, of_x, of_gain in runs[1:]:
        assert torch.equal(s, runs[0][0])
        assert torch.equal(of_x, runs[0][1])
        torch.testing.assert_close(of_gain, runs[0][2])
