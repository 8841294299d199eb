import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnrobust.kernels import native, pooling
from snnrobust.kernels.pooling import avg_pool2d, max_pool2d

LAYOUTS = {
    "planes": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def same(x: Tensor, y: Tensor) -> bool:
    """Bits, except for which NaN it is."""
    if x.shape != y.shape or x.dtype != y.dtype or not torch.equal(x.isnan(), y.isnan()):
        return False
    return torch.equal(bits(x.nan_to_num(0.0)), bits(y.nan_to_num(0.0)))


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.just((2, 2)) | st.just((3, 3)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(st.just((0, 0)) | st.tuples(st.integers(0, kernel[0] // 2), st.integers(0, kernel[1] // 2)))
    window = dict(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=draw(st.booleans()))
    N, C = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    H, W = kernel[0] + draw(st.integers(0, 12)), kernel[1] + draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kind = draw(st.sampled_from(["normal", "spikes", "special"]))
    x = torch.randn((N, C, H, W), generator=generator)
    if kind == "spikes":
        x = (x > 0.5).float() * torch.where(torch.rand(x.shape, generator=generator) < 0.2, -1.0, 1.0)  # with -0.0
    if kind == "special":
        values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, 3e38, 1e-40])
        x = values[torch.randint(len(values), x.shape, generator=generator)]
    x = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](x.to(dtype))
    return dict(x=x, window=window, generator=generator, threads=draw(st.sampled_from([1, 2])))


def both(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], problem: dict[str, Any], **more: Any) -> list[Tensor]:
    x, window = problem["x"], problem["window"]
    x1, x2 = x.detach().requires_grad_(), x.detach().requires_grad_()
    torch.set_num_threads(problem["threads"])
    try:
        y1 = ours(x1, **window, **more)
        y2 = theirs(x2, **window, **more)
        grad = torch.randn(y2.shape, generator=problem["generator"]).to(x.dtype)
        y1.backward(grad)
        y2.backward(grad)
    finally:
        torch.set_num_threads(1)
    assert x1.grad is not None
    assert x2.grad is not None
    assert y1.stride() == y2.stride() or min(x.shape) == 1
    return [y1.detach(), y2.detach(), x1.grad, x2.grad]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_max_pooling_has_the_bits_of_torch(problem: dict[str, Any]) -> None:
    y1, y2, g1, g2 = both(max_pool2d, F.max_pool2d, problem)
    assert same(y1, y2)
    assert same(g1, g2)


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans())
def test_average_pooling_has_the_bits_of_torch(problem: dict[str, Any], include_pad: bool) -> None:
    y1, y2, g1, g2 = both(avg_pool2d, F.avg_pool2d, problem, count_include_pad=include_pad)
    assert same(y1, y2)
    assert same(g1, g2)
