import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnrobust.kernels import native, pooling
from snnrobust.kernels.pooling import avg_pool2d, max_pool2d

HAVE = native.available()
LAYOUTS = {
    "planes": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


@pytest.fixture(autouse=True, scope="module")
def _small_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "SMALLEST", 0)
        yield


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
    window = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}
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
    return {"x": x, "window": window, "generator": generator, "threads": draw(st.sampled_from([1, 2]))}


def both(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], problem: dict[str, Any], **more: Any
) -> list[Tensor]:
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


@settings(max_examples=60, deadline=None)
@given(problems())
def test_max_pooling_has_the_bits_of_torch(problem: dict[str, Any]) -> None:
    y1, y2, g1, g2 = both(max_pool2d, F.max_pool2d, problem)
    assert same(y1, y2)
    assert same(g1, g2)


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_average_pooling_has_the_bits_of_torch(problem: dict[str, Any], include_pad: bool) -> None:
    y1, y2, g1, g2 = both(avg_pool2d, F.avg_pool2d, problem, count_include_pad=include_pad)
    assert same(y1, y2)
    assert same(g1, g2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernel"), [((4, 3, 28, 28), 2), ((2, 3, 8, 300), 2), ((1, 2, 6, 5000), 3), ((1, 3000, 4, 5), 2)]
)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_larger_rows_and_channels(dtype: torch.dtype, shape: tuple[int, ...], kernel: int, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randint(0, 4, shape, generator=generator).to(dtype))
    problem = {"x": x, "window": {"kernel_size": kernel}, "generator": generator, "threads": 2}
    for ours, theirs in [(max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)]:
        y1, y2, g1, g2 = both(ours, theirs, problem)
        assert same(y1, y2)
        assert same(g1, g2)


@pytest.mark.skipif(not HAVE, reason="no kernels")
@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_fallback_has_the_same_bits(problem: dict[str, Any]) -> None:
    window = pooling._windows(*[problem["window"][k] for k in ("kernel_size", "stride", "padding")])
    window = (*window, problem["window"]["ceil_mode"])
    x = pooling._dense(problem["x"])
    y, codes = pooling._max(x, *window)
    y2, codes2 = pooling._torch_max(x, *window)
    assert same(y, y2)
    assert torch.equal(codes, codes2)
    grad = torch.randn(y.shape, generator=problem["generator"]).to(x.dtype)
    grad_x = pooling._max_backward(grad, codes, x.shape, *window)
    assert same(grad_x, pooling._torch_max_backward(grad, codes, x.shape, *window))


def test_operators_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 9, 8)
    window = ([2, 2], [2, 2], [0, 0], False)
    ops = torch.ops.snnrobust
    expected = [*ops.max_pool2d(x, *window), ops.avg_pool2d(x, *window, True)]
    expected += [ops.max_pool2d_backward(expected[0], expected[1], x.shape, *window)]
    expected += [ops.avg_pool2d_backward(expected[0], x.shape, *window, True)]
    monkeypatch.setattr(native, "available", lambda: False)
    found = [*ops.max_pool2d(x, *window), ops.avg_pool2d(x, *window, True)]
    found += [ops.max_pool2d_backward(found[0], found[1], x.shape, *window)]
    found += [ops.avg_pool2d_backward(found[0], x.shape, *window, True)]
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))


@pytest.mark.parametrize("layout", ["planes", "channels_last", "transposed"])
def test_operators_are_described(layout: str) -> None:
    x = LAYOUTS[layout](torch.rand(2, 3, 9, 8))
    window = ([2, 2], [2, 2], [0, 0], False)
    ops = torch.ops.snnrobust
    y, codes = ops.max_pool2d(x, *window)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.max_pool2d.default, (x, *window), test_utils=checks)
    torch.library.opcheck(ops.avg_pool2d.default, (x, *window, True), test_utils=checks)
    torch.library.opcheck(ops.max_pool2d_backward.default, (y, codes, list(x.shape), *window), test_utils=checks)
    torch.library.opcheck(ops.avg_pool2d_backward.default, (y, list(x.shape), *window, True), test_utils=checks)


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_second_derivatives(pool: Callable[..., Tensor]) -> None:
    theirs = F.max_pool2d if pool is max_pool2d else F.avg_pool2d
    results = []
    for function in (pool, theirs):
        x = torch.rand((2, 3, 6, 6), generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = function(x, 3, 2)
        (grad,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((grad**2).sum(), x)
        results.append((grad.detach(), second))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 3, 8, 8, dtype=torch.float64),
        torch.rand(2, 3, 8, 8)[:, :2, ::2],
        torch.rand(3, 8, 8),
        torch.rand(0, 3, 8, 8),
        torch.rand(2, 3, 8, 8, device="meta"),
        torch.rand(2, 3, 8, 8).expand(2, 3, 8, 8)[:1].expand(4, 3, 8, 8),
    ],
    ids=["float64", "sliced", "no batch", "empty", "meta", "expanded"],
)
@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
def test_all_else_is_torch(x: Tensor, pool: str) -> None:
    ours, theirs = getattr(pooling, pool)(x, 2), getattr(F, pool)(x, 2)
    assert ours.shape == theirs.shape
    assert x.is_meta or torch.equal(ours, theirs)


def test_large_windows_functional_transforms_and_mistakes() -> None:
    x = torch.rand(1, 1, 20, 20, requires_grad=True)
    assert torch.equal(max_pool2d(x, 16, 1), F.max_pool2d(x, 16, 1))
    grad = torch.func.grad(lambda x: max_pool2d(x, 2).sum())(x)
    assert torch.equal(grad, torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0])
    with pytest.raises(RuntimeError, match="too small"):
        max_pool2d(x, 30)
    with pytest.raises(RuntimeError, match="pad"):
        avg_pool2d(x, 2, padding=2)


def test_small_inputs_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "SMALLEST", 100)
    name = "_MaxPoolBackward" if HAVE else "MaxPool2DWithIndicesBackward0"
    assert type(max_pool2d(torch.rand(1, 1, 10, 10, requires_grad=True), 2).grad_fn).__name__ == name
    small = max_pool2d(torch.rand(1, 1, 9, 10, requires_grad=True), 2)
    assert type(small.grad_fn).__name__ == "MaxPool2DWithIndicesBackward0"


def test_what_is_saved_is_one_byte_for_each_output() -> None:
    saved: list[Tensor] = []
    x = torch.rand(2, 3, 8, 8, requires_grad=True)

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = max_pool2d(x, 2)
        avg_pool2d(x, 2)
    if HAVE:
        assert [t.nbytes for t in saved] == [y.numel()]


def test_a_compiled_function_is_whole() -> None:
    def function(x: Tensor) -> Tensor:
        return avg_pool2d(max_pool2d(x, 2), 2)

    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), function(x))


@pytest.mark.slow
@pytest.mark.skipif(not HAVE, reason="no kernels")
def test_every_instruction_set_gives_the_same_bits() -> None:
    code = """
import hashlib, torch
from snnrobust.kernels import pooling
from snnrobust.kernels.pooling import avg_pool2d, max_pool2d
pooling.SMALLEST = 0
digest, generator = hashlib.sha256(), torch.Generator().manual_seed(0)
for shape in [(2, 3, 28, 28), (1, 2, 9, 37), (2, 5, 6, 140)]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for window in [(2,), (3, 2, 1), (3,)]:
                for pool in (max_pool2d, avg_pool2d):
                    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
                    y = pool(x, *window)
                    (g,) = torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator).to(dtype))
                    digest.update(y.detach().float().contiguous().numpy().tobytes() + g.float().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""
    found = []
    for isa in (*native.ISAS, "off"):  # one that this processor lacks is as "off"
        environment = {**os.environ, "SNNROBUST_KERNELS": isa}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert len(set(found)) == 1
