"""Tensors of more than 2**31 elements, against small slices run on their own.

Inputs are zeros that nobody has written, which take no memory, but for a few windows: at both ends, in the middle and where
element 2**31 lies. So a test needs little more than what it computes.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from snnrobust.kernels import buffers, native
from snnrobust.kernels.lif import lif_backward, lif_forward
from snnrobust.kernels.philox import bernoulli, philox
from snnrobust.kernels.pooling import avg_pool2d, max_pool2d
from snnrobust.neurons.surrogate import ATan, in_kernel

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")]
WIDTH = 4096


@pytest.fixture(autouse=True)
def memory():
    """12 GB, of which the largest test takes 9."""
    buffers.release_memory()
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        pytest.skip("the system does not say how much memory is free")
    if free < 12 << 30:
        pytest.skip(f"needs 12 GiB of free memory, there are {free / 2**30:.1f}")
    yield
    buffers.release_memory()


def zeros(*shape):
    """Those of torch are written."""
    return torch.from_numpy(np.zeros(shape, np.int16)).view(torch.bfloat16)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("steps", "inner"), [(1, 2**29 + 1000), (2, 2**28 + 500)])
@pytest.mark.parametrize("constant", [False, True])
def test_lif(steps, inner, constant):
    """[T, 1, 4, inner], with a threshold of 0: whatever has not its spike or its gradient was not written."""
    x = zeros(1, 4, inner) if constant else zeros(steps, 1, 4, inner)
    decays, thresholds = torch.tensor([0.5, 0.9, 0.7, 0.8]), torch.zeros(4)
    windows = [(c, slice(at, at + WIDTH)) for c, at in ((0, 0), (1, inner - WIDTH), (2, 77), (3, inner - WIDTH))]
    assert steps * 4 * inner > 2**31 > (steps - 1) * 4 * inner + 3 * inner + inner - WIDTH
    for c, window in windows:
        x[..., c, window] = normal(*x.shape[:-2], WIDTH, seed=c)
    kind, a, b = in_kernel(ATan())
    repeated = steps if constant else 0

    def forward(x, decays, thresholds):
        return lif_forward(x, repeated, None, None, 0.0, 0.0, decays, thresholds, True, 0, False, False, False)[0]

    def backward(grad, x, decays, thresholds):
        return lif_backward(
            grad, x, repeated, None, None, None, None, None, 0.0, 0.0, decays, thresholds, True, 0, False, True, kind, a, b,
            False, False, False,
        )[0]  # fmt: skip

    def part(tensor, c, window):
        return tensor[..., c : c + 1, window].contiguous()

    s = forward(x, decays, thresholds)
    assert s.numel() > 2**31
    silent = 0
    for c, window in windows:
        expected = forward(part(x, c, window), decays[c : c + 1], thresholds[c : c + 1])
        assert torch.equal(part(s, c, window), expected)
        silent += int((expected == 0).sum())
    assert silent > 4 * WIDTH // 4
    assert int(s.count_nonzero()) == s.numel() - silent
    for c, window in windows:
        s[..., c, window] = normal(*s.shape[:-2], WIDTH, seed=10 + c)
    grad_x = backward(s, x, decays, thresholds)  # ones, and what was just written
    for c, window in windows:
        args = (decays[c : c + 1], thresholds[c : c + 1])
        assert torch.equal(part(grad_x, c, window), backward(part(s, c, window), part(x, c, window), *args))
        inside = grad_x[..., c, inner // 2]
        assert torch.equal(inside, grad_x[..., c, window.stop + 9 if window.start < 99 else window.start - 9])
        assert bool((inside != 0).all())
    assert int(grad_x.count_nonzero()) > grad_x.numel() - 100


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("pool", "reference"), [(max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)])
@pytest.mark.parametrize("kernel", [2, 3])
def test_pooling(last, pool, reference, kernel):
    """Windows of two rows, and of three that overlap; element 2**31 lies in the last plane, or in the last rows."""
    N, C, H, W, stride = 2, 4, 16384, 16386, 2

    def empty(height, width):
        return zeros(N, height, width, C).permute(0, 3, 1, 2) if last else zeros(N, C, height, width)

    x = empty(H, W)
    assert x.numel() > 2**31
    bands = [(0, 0), (0, H - 12), (1, H // 2), (1, H - 12)]
    for n, top in bands:
        x[n, :, top : top + 12] = normal(*x[n, :, top : top + 12].shape, seed=n + top)
    x.requires_grad_()
    y = pool(x, kernel, stride)
    grad, count = empty(*y.shape[2:]), (12 - kernel) // 2 + 1
    parts = [(slice(n, n + 1), slice(top, top + 12), slice(top // 2, top // 2 + count)) for n, top in bands]
    for n, _, outputs in parts:
        grad[n, :, outputs] = normal(*grad[n, :, outputs].shape, seed=outputs.start)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    for n, rows, outputs in parts:
        small = x.detach()[n, :, rows].clone(memory_format=torch.preserve_format).requires_grad_()
        expected = reference(small, kernel, stride)
        assert torch.equal(y.detach()[n, :, outputs], expected)
        (expected,) = torch.autograd.grad(expected, small, grad[n, :, outputs])
        assert torch.equal(grad_x[n, :, rows], expected)


def test_bernoulli():
    """[2, 2, elements] draws, against the generator at the blocks of the windows."""
    elements = 2**29 + 1001
    p = zeros(2, elements)
    key, ids = torch.tensor([3, 5]), torch.tensor([7, 2**33 + 1])
    starts = [0, elements // 8 * 4, elements // 4 * 4 - WIDTH]
    for start in starts:
        p[:, start : start + WIDTH] = normal(2, WIDTH, seed=start % 1000).float().sigmoid().bfloat16()
    s = bernoulli(key, ids, p, 2)
    assert s.numel() > 2**31
    count = 0
    for start in starts:
        block = torch.arange(start // 4, (start + WIDTH) // 4)
        for t in range(2):
            for b in range(2):
                counter = (block, torch.tensor(t), ids[b] & 0xFFFFFFFF, ids[b] >> 32)
                u = (torch.stack(philox(key, counter), -1).flatten() >> 8).float() * 2.0**-24
                expected = (u < p[b, start : start + WIDTH].float()).bfloat16()
                assert torch.equal(s[t, b, start : start + WIDTH], expected)
                count += int(expected.count_nonzero())
    assert int(s.count_nonzero()) == count
