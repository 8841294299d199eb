"""Event-driven products against dense ones in float64."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnrobust.kernels import events as module
from snnrobust.kernels import native
from snnrobust.kernels.events import event_conv2d, event_linear

few = settings(max_examples=30, deadline=None)
needs_kernels = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def _inputs(shape: tuple[int, ...], rate: float, values: str, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(shape, generator=generator) < rate
    real = torch.randn(shape, generator=generator) if values == "real" else torch.ones(shape)
    return (fires * real).to(dtype)


def _layout(t: Tensor, layout: str) -> Tensor:
    """The same values, held otherwise."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":
        return torch.cat([torch.zeros(1), t.float().flatten()]).to(t.dtype)[1:].view(t.shape)
    if layout == "sliced":
        return torch.stack([t, t], dim=-1)[..., 0]
    return t


def _assert_close(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any, op: Any = F.conv2d
) -> None:
    """|y - dense| within rounding of the sum of |w| |x| (Higham 2002, section 3.1)."""
    doubles = [None if t is None else t.double() for t in (x, weight, bias)]
    dense = op(*doubles, *geometry)
    size = op(*(None if t is None else t.abs() for t in doubles), *geometry)
    terms = weight[0].numel() + 1
    error = terms * 2.0**-24 * size
    if y.dtype == torch.bfloat16:
        error = error + 2.0**-8 * dense.abs()
    assert y.shape == dense.shape
    assert ((y.double() - dense).abs() <= error).all()


geometries = st.fixed_dictionaries(
    {
        "N": st.integers(1, 3), "Ci": st.one_of(st.integers(1, 5), st.integers(60, 70)), "Co": st.integers(1, 140),
        "H": st.integers(1, 7), "W": st.one_of(st.integers(1, 7), st.integers(15, 34)),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "rate": st.sampled_from([0.0, 0.05, 0.3, 1.0]), "values": st.sampled_from(["ones", "real"]),
        "x_layout": st.sampled_from(["contiguous", "channels_last", "transposed", "offset", "sliced"]),
        "w_layout": st.sampled_from(["contiguous", "channels_last", "transposed", "offset"]),
        "bias": st.booleans(), "dtype": st.sampled_from([torch.float32, torch.bfloat16]), "seed": st.integers(0, 99),
    }
)  # fmt: skip


@needs_kernels
@few
@given(geometries)
def test_convolution(g: dict[str, Any]) -> None:
    spans = [d * (k - 1) + 1 for d, k in zip(g["dilation"], g["kernel"], strict=True)]
    H, W = (max(n, span - 2 * p) for n, span, p in zip((g["H"], g["W"]), spans, g["padding"], strict=True))
    generator = torch.Generator().manual_seed(g["seed"])
    x = _layout(_inputs((g["N"], g["Ci"], H, W), g["rate"], g["values"], g["seed"], g["dtype"]), g["x_layout"])
    weight = _layout(torch.randn(g["Co"], g["Ci"], *g["kernel"], generator=generator).to(g["dtype"]), g["w_layout"])
    bias = torch.randn(g["Co"], generator=generator).to(g["dtype"]) if g["bias"] else None
    geometry = g["stride"], g["padding"], g["dilation"]
    y = event_conv2d(x, weight, bias, *geometry)
    assert y.dtype == g["dtype"]
    _assert_close(y, x, weight, bias, *geometry)
    meta = torch.ops.snnrobust.event_conv2d(
        *(None if t is None else t.to("meta") for t in (x, weight, bias)), *geometry, 1.0
    )
    assert (meta.shape, meta.stride(), meta.dtype) == (y.shape, y.stride(), y.dtype)


@needs_kernels
@few
@given(
    st.integers(1, 40), st.integers(1, 150), st.integers(1, 140), st.sampled_from([0.0, 0.1, 1.0]), st.booleans(),
    st.sampled_from(["ones", "real"]), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_linear(
    rows: int, ins: int, outs: int, rate: float, bias: bool, values: str, dtype: torch.dtype, seed: int, turned: bool
) -> None:
    x = _inputs((rows, ins), rate, values, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=generator).to(dtype)
    b = torch.randn(outs, generator=generator).to(dtype) if bias else None
    if turned:
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    y = event_linear(x, weight, b)
    assert y.dtype == dtype
    assert y.is_contiguous()
    _assert_close(y, x, weight, b, op=F.linear)
    assert torch.equal(event_linear(x.expand(2, -1, -1), weight, b), y.expand(2, -1, -1))
    assert torch.equal(event_linear(x[0], weight, b), y[0])


@needs_kernels
def test_many_slabs_and_long_sums() -> None:
    x, weight = _inputs((5, 12000), 0.1, "ones", 0), torch.randn(50, 12000)
    _assert_close(event_linear(x, weight), x, weight, None, op=F.linear)
    x, weight = _inputs((2, 300, 5, 5), 0.1, "real", 0), torch.randn(300, 300, 3, 3)
    _assert_close(event_conv2d(x, weight, None, padding=(1, 1)), x, weight, None, 1, 1)


@needs_kernels
def test_exact_where_sums_are() -> None:
    x = _inputs((4, 37, 9, 9), 0.2, "ones", 0)
    weight = torch.randint(-64, 64, (21, 37, 3, 3)) / 256.0
    bias = torch.randint(-64, 64, (21,)) / 256.0
    for layout in ("contiguous", "channels_last"):
        y = event_conv2d(_layout(x, layout), weight, bias, padding=(1, 1))
        assert torch.equal(y, F.conv2d(x, weight, bias, padding=1))
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    flat, matrix = x.flatten(1), weight.flatten()[: 2 * 37 * 81].view(2, 37 * 81)
    assert torch.equal(event_linear(flat, matrix), F.linear(flat, matrix))


@needs_kernels
@pytest.mark.parametrize("values", ["ones", "real"])
def test_a_sample_does_not_depend_on_the_others(values: str) -> None:
    x, weight = _inputs((6, 20, 6, 7), 0.3, values, 0), torch.randn(33, 20, 3, 3)
    y = event_conv2d(x, weight, padding=(1, 1))
    other = x.clone()
    other[1:] = 0.5  # all other samples are dense and not of ones
    assert torch.equal(event_conv2d(other, weight, padding=(1, 1))[:1], y[:1])
    assert torch.equal(event_conv2d(x[:1], weight, padding=(1, 1)), y[:1])


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(layout: str, dtype: torch.dtype) -> None:
    x = _layout(_inputs((16, 64, 16, 16), 0.2, "real", 0, dtype), layout)
    weight = torch.randn(130, 64, 3, 3).to(dtype)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            flat, matrix = x.flatten(1), weight.flatten()[: 4 * 64 * 256].view(4, 64 * 256)
            results.append((event_conv2d(x, weight, padding=(1, 1)), event_linear(flat, matrix)))
    finally:
        torch.set_num_threads(1)
    for conv, linear in results[1:]:
        assert torch.equal(conv, results[0][0])
        assert torch.equal(linear, results[0][1])


_PRINT = """
import hashlib, torch
from snnrobust.kernels import native
from snnrobust.kernels.events import event_conv2d, event_linear
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16):
    for values in (torch.ones(3, 70, 9, 20), torch.randn(3, 70, 9, 20)):
        x = ((torch.rand(3, 70, 9, 20) < 0.2) * values).to(dtype)
        w, b = torch.randn(150, 70, 3, 3).to(dtype), torch.randn(150).to(dtype)
        for y in (event_conv2d(x, w, b, (2, 1), (1, 1)), event_linear(x, torch.randn(37, 20).to(dtype))):
            digest.update(y.float().contiguous().numpy().tobytes())
print(digest.hexdigest() if native.available() else "off")
"""


@pytest.mark.slow
@needs_kernels
def test_instruction_sets_give_the_same_bits() -> None:
    printed = set()
    for isa in native.ISAS:
        environment = {**os.environ, "SNNROBUST_KERNELS": isa}
        run = subprocess.run(
            [sys.executable, "-c", _PRINT], env=environment, capture_output=True, text=True, check=True
        )
        printed.add(run.stdout.strip())
    assert len(printed - {"off"}) == 1


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 4, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    assert event_conv2d(x, torch.randn(5, 3, 3, 3)).shape == (shape[0], 5, 2, 2)
    assert event_linear(x, torch.randn(0, 4)).shape == (*shape[:3], 0)
    assert event_linear(x[..., :0], torch.randn(2, 0), torch.ones(2)).shape == (*shape[:3], 2)


def test_what_torch_refuses_is_refused_as_torch_does() -> None:
    x, weight = torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)
    for wrong in (
        lambda: event_conv2d(x, weight[:, :2]),
        lambda: event_conv2d(x, weight, torch.ones(3)),
        lambda: event_conv2d(x, weight, stride=(0, 1)),
        lambda: event_conv2d(x, weight, padding=(-1, 0)),
        lambda: event_conv2d(x, torch.ones(2, 3, 5, 3)),
        lambda: event_linear(x, torch.ones(2, 3)),
        lambda: event_linear(x, torch.ones(2, 4), torch.ones(3)),
        lambda: event_linear(x, torch.ones(2, 4).double()),
    ):
        with pytest.raises(RuntimeError):
            wrong()


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_go_through_as_in_a_dense_product(layout: str, bad: float, dtype: torch.dtype) -> None:
    x, weight, bias = _inputs((2, 5, 6, 6), 0.3, "ones", 0), torch.randn(7, 5, 3, 3), torch.randn(7)
    cases = []
    for index in range(3):
        tensors = [t.clone() for t in (x, weight, bias)]
        tensors[index].view(-1)[0] = bad
        cases.append(tensors)
    silent = [x.clone(), weight.clone(), bias]  # zero times an infinite weight is NaN
    silent[0][:, 2], silent[1][1, 2, 1, 1] = 0, bad
    for x, weight, bias in [*cases, silent]:
        x = _layout(x.to(dtype), layout)
        y = event_conv2d(x, weight.to(dtype), bias.to(dtype), padding=(1, 1)).float()
        dense = F.conv2d(x, weight.to(dtype), bias.to(dtype), padding=1).float()
        assert torch.equal(y.isnan(), dense.isnan())
        assert torch.equal(y.isinf(), dense.isinf())
        torch.testing.assert_close(y, dense, rtol=1e-2, atol=1e-1, equal_nan=True)
    flat = torch.zeros(3, 8)
    assert event_linear(flat.fill_(0), torch.full((2, 8), bad)).isnan().all()


def test_minus_zero_makes_no_product() -> None:
    assert torch.equal(event_linear(torch.full((9, 3), -0.0), torch.ones(2, 3), torch.ones(2)), torch.ones(9, 2))


class _Counted:
    """Counts the calls of the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results: list[int] = []
        kernel = module._kernel()
        monkeypatch.setattr(
            module, "_kernel", lambda: lambda call: self.results.append(kernel(call)) or self.results[-1]
        )


@needs_kernels
def test_many_events_are_left_to_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    weight = torch.randn(4, 5, 3, 3)
    for rate, most, result in ((0.5, 0.3, 2), (0.05, 0.3, 0), (1.0, 1.0, 0), (0.0, 0.0, 0)):
        x = _inputs((4, 5, 9, 9), rate, "real", 0)
        _assert_close(event_conv2d(x, weight, most=most), x, weight, None)
        assert counted.results.pop() == result
    x, weight = _inputs((3, 50), 0.05, "ones", 0), torch.randn(4, 50)
    event_linear(x, weight, most=0.3)  # three rows do not pay for the packing of the weights
    assert counted.results == []
    event_linear(x.repeat(10, 1), weight, most=0.3)
    assert counted.results == [0]


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    x, weight, bias = _inputs((2, 5, 6, 6), 0.3, "real", 0), torch.randn(7, 5, 3, 3), torch.randn(7)
    assert torch.equal(event_conv2d(x, weight, bias, padding=(1, 1)), F.conv2d(x, weight, bias, padding=1))
    assert torch.equal(
        event_linear(x, weight[:, 0, :2].flatten(1), bias), F.linear(x, weight[:, 0, :2].flatten(1), bias)
    )


def test_other_dtypes_and_autocast_are_dense() -> None:
    x, weight = _inputs((2, 5, 6, 6), 0.3, "real", 0), torch.randn(7, 5, 3, 3)
    assert torch.equal(event_conv2d(x.double(), weight.double()), F.conv2d(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            event_conv2d(x, weight).dtype == event_linear(x, weight[0, 0, :, :1].expand(3, 6)).dtype == torch.bfloat16
        )


@few
@given(st.tuples(*[st.booleans()] * 3), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2), st.integers(0, 99))
def test_gradients_of_a_convolution(
    wanted: tuple[bool, ...], stride: int, padding: int, dilation: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = _inputs((2, 3, 7, 7), 0.3, "real", seed)
    weight, bias = torch.randn(5, 3, 3, 3, generator=generator), torch.randn(5, generator=generator)
    gradients = []
    for op in (event_conv2d, F.conv2d):
        leaves = [t.clone().requires_grad_(want) for t, want in zip((x, weight, bias), wanted, strict=True)]
        y = op(*leaves, (stride, stride), (padding, padding), (dilation, dilation))
        assert y.requires_grad == any(wanted)
        if any(wanted):
            y.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, dense in zip(*gradients, strict=True):
        assert (ours is None) == (dense is None)
        if ours is not None:
            torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True), (True, True, True)])
def test_gradients_of_a_linear_layer(shape: tuple[int, ...], wanted: tuple[bool, ...]) -> None:
    x, weight, bias = _inputs(shape, 0.5, "real", 0), torch.randn(5, 4), torch.randn(5)
    gradients = []
    for op in (event_linear, F.linear):
        leaves = [t.clone().requires_grad_(want) for t, want in zip((x, weight, bias), wanted, strict=True)]
        op(*leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, dense in zip(*gradients, strict=True):
        assert (ours is None) == (dense is None)
        if ours is not None:
            torch.testing.assert_close(ours, dense)


def test_gradients_of_gradients() -> None:
    x, weight = _inputs((2, 3, 5, 5), 0.5, "real", 0), torch.randn(4, 3, 3, 3)
    seconds = []
    for op in (event_conv2d, F.conv2d):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(op(a, w).square().sum(), a, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), w)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_operators_are_well_formed(layout: str) -> None:
    x, weight = _layout(_inputs((2, 3, 9, 9), 0.3, "ones", 0), layout), torch.randn(4, 3, 3, 3)
    checks = ("test_schema", "test_faketensor")
    geometry = [1, 1], [1, 0], [1, 1]
    torch.library.opcheck(
        torch.ops.snnrobust.event_conv2d, (x, weight, torch.ones(4), *geometry, 0.5), test_utils=checks
    )
    torch.library.opcheck(
        torch.ops.snnrobust.event_linear, (x, weight[0, 0, :, :1].expand(3, 9), None, 0.5), test_utils=checks
    )


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled(layout: str) -> None:
    x, weight = _layout(_inputs((2, 3, 9, 9), 0.3, "ones", 0), layout), torch.randn(4, 3, 3, 3, requires_grad=True)

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return event_linear(event_conv2d(x, weight, padding=(1, 1)).relu(), weight.flatten()[:27].view(3, 9))

    def gradients(f: Any) -> tuple[Tensor, ...]:
        a = x.clone().requires_grad_()
        return f(x, weight).detach(), *torch.autograd.grad(f(a, weight).square().sum(), (a, weight))

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(gradients(compiled), gradients(f), strict=True):
        torch.testing.assert_close(ours, eager)
