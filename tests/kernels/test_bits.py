import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from snnrobust.kernels import native
from snnrobust.kernels.bits import pack, packed_spikes, unpack
from snnrobust.neurons import LIF

HAVE = native.available()
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "every other": lambda x: x[:, :, ::2, 1::2],
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "expanded and permuted": lambda x: x[:, :1].expand(-1, 5, -1, -1).permute(3, 1, 2, 0),
    "expanded and sliced": lambda x: x[:1, :, ::2].expand(3, -1, -1, -1),
    "a scalar, expanded": lambda x: x.flatten()[0].expand(4, 6),
    "misaligned": lambda x: x.flatten()[1:],
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "windows": lambda x: x.flatten().unfold(0, 3, 1),
}


@pytest.fixture(params=["kernel", "fallback"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(native, "available", lambda: False)
    return request.param


def spikes(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).to(dtype)


def reference(x: Tensor) -> list[int]:
    """Bits of values in a row."""
    values = [int(v) for v in x.flatten().tolist()]
    return [sum(v << k for k, v in enumerate(values[i : i + 8])) for i in range(0, len(values), 8)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_bits(n: int, dtype: torch.dtype, offset: int, fallback: bool, rate: float) -> None:
    x = spikes((n + offset,), dtype, n, rate)[offset:]
    with pytest.MonkeyPatch.context() as patch:
        if fallback:
            patch.setattr(native, "available", lambda: False)
        bits = pack(x)
        assert bits is not None
        assert bits.tolist() == reference(x)
        back = unpack(bits, x.shape, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, x)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9000),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
    st.sampled_from([-0.0, -1.0, 2.0, 0.5, 1e-40, float("nan"), float("inf"), 1.0078125]),
    st.booleans(),
)
def test_a_single_other_value_is_found(
    n: int, dtype: torch.dtype, data: st.DataObject, other: float, fallback: bool
) -> None:
    x = spikes((n,), dtype)
    x[data.draw(st.integers(0, n - 1))] = other
    with pytest.MonkeyPatch.context() as patch:
        if fallback:
            patch.setattr(native, "available", lambda: False)
        assert pack(x) is None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout(layout: Callable[[Tensor], Tensor], dtype: torch.dtype, path: str) -> None:
    x = layout(spikes((4, 5, 6, 6), dtype))
    bits = pack(x)
    assert bits is not None
    assert bits.numel() <= (x.numel() + 7) // 8
    back = unpack(bits, x.shape, dtype, x.stride())
    assert back.stride() == x.stride()
    assert torch.equal(back, x)
    assert torch.equal(torch.signbit(back), torch.zeros(x.shape, dtype=torch.bool))


def test_empty_scalars_and_mistakes(path: str) -> None:
    for x in (torch.empty(0), torch.empty(3, 0, 2), torch.tensor(1.0), torch.tensor([0.0])):
        bits = pack(x)
        assert bits is not None
        assert torch.equal(unpack(bits, x.shape, x.dtype, x.stride()), x)
    with pytest.raises(TypeError, match="x must be float32 or bfloat16"):
        pack(torch.ones(3, dtype=torch.float64))


def test_two_threads(path: str) -> None:
    x = spikes((700_001,))
    one = pack(x)
    torch.set_num_threads(2)
    try:
        two = pack(x)
        assert two is not None
        assert torch.equal(unpack(two, x.shape, x.dtype), x)
        x[-1] = 2.0
        assert pack(x) is None
    finally:
        torch.set_num_threads(1)
    assert one is not None
    assert torch.equal(one, two)


class Network(nn.Module):
    def __init__(self, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(128, 5),
        )
        self.neurons = LIF(decay=0.9)
        self.last = last
        if last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(0, 1)
        if self.last:
            h = h.contiguous(memory_format=torch.channels_last)
        s = self.neurons(self.first(h).unflatten(0, x.shape[:2]) * 3).flatten(0, 1)
        s = torch.max_pool2d(self.second(s) + s * s, 2)
        return self.third(s.flatten(1)).unflatten(0, x.shape[:2]).mean(0)


def step(last: bool, packed: bool, dtype: torch.dtype) -> list[Tensor]:
    """The loss and all gradients."""
    model = Network(last).to(dtype)
    x = spikes((3, 2, 2, 8, 8), dtype, 1).requires_grad_()
    with packed_spikes(smallest=64) if packed else nullcontext():
        loss = model(x * 1).square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, (x, *model.parameters()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_have_the_same_bits(last: bool, dtype: torch.dtype, path: str) -> None:
    for a, b in zip(step(last, False, dtype), step(last, True, dtype), strict=True):
        assert torch.equal(a, b)


def saved(function: Callable[[], Tensor]) -> Tensor:
    with packed_spikes(smallest=16):
        return function()


def test_what_is_kept_is_small() -> None:
    w, s = torch.rand(64, 64, requires_grad=True), spikes((64, 64))
    bits = pack(s)
    assert bits is not None
    assert bits.nbytes * 32 == s.nbytes
    storage = StorageWeakRef(s.untyped_storage())
    with packed_spikes(smallest=16):
        y = s @ w
    del s
    assert storage.expired()
    y.sum().backward()


def test_a_tensor_that_is_saved_twice_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from snnrobust.kernels import bits

    calls = []
    monkeypatch.setattr(bits, "pack", lambda x: calls.append(x.shape) or pack(x))
    w, s = torch.rand(64, 64, requires_grad=True), spikes((64, 64))
    with packed_spikes(smallest=16):
        y = s @ w + (s @ (2 * w)) * s
        assert len(calls) == 1
        s.zero_()
        y = y + s @ w  # another value
        assert len(calls) == 2
    y.sum().backward()
    other = spikes((64, 64))
    expected = torch.autograd.grad((other @ w + (other @ (2 * w)) * other).sum(), w)[0]
    assert torch.equal(w.grad, expected)


def test_changes_in_place() -> None:
    s, r, w = spikes((64, 64)), torch.rand(64, 64), torch.rand(64, 64, requires_grad=True)
    expected = s.sum(0, keepdim=True).t().expand(64, 64)
    y = saved(lambda: s @ w)
    s.fill_(7.0)
    y.sum().backward()
    assert torch.equal(w.grad, expected)  # of what it was
    y = saved(lambda: r @ w)
    r.fill_(7.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = saved(lambda: (w * 1).exp().mul_(2))  # exp saved its output
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = saved(lambda: torch.relu_(w * 1 - 0.5))  # which saves what it made
    y.sum().backward()


def test_others_are_left_alone_and_graphs_die() -> None:
    w = torch.rand(64, 64, requires_grad=True)
    x = torch.rand(64, 64)
    y = saved(lambda: (x @ w).exp())
    assert y.grad_fn.next_functions[0][0]._saved_self.data_ptr() == x.data_ptr()  # type: ignore[union-attr]
    assert y.grad_fn._saved_result.data_ptr() == y.data_ptr()  # type: ignore[union-attr]
    storages = [StorageWeakRef(t.untyped_storage()) for t in (x, y)]
    del y, x
    assert [storage.expired() for storage in storages] == [True, True]
    x = torch.rand(64, 64)
    ones = torch.ones(64, 64, requires_grad=True)  # a weight that happens to be one everywhere
    y = saved(lambda: x.requires_grad_() @ ones)
    assert y.grad_fn._saved_mat2.data_ptr() == ones.data_ptr()  # type: ignore[union-attr]


def test_second_derivatives() -> None:
    results = []
    for packed in (False, True):
        w = torch.rand((32, 32), generator=torch.Generator().manual_seed(0)).requires_grad_()
        s = spikes((32, 32)).requires_grad_()
        with packed_spikes(smallest=16) if packed else nullcontext():
            y = ((s * 1) @ w).pow(3).sum()
        (grad,) = torch.autograd.grad(y, w, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), (w, s)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(not HAVE, reason="no kernels")
def test_every_instruction_set_gives_the_same_bits() -> None:
    code = """
import hashlib, torch
from snnrobust.kernels.bits import pack, unpack
digest, generator = hashlib.sha256(), torch.Generator().manual_seed(0)
for n in (1, 7, 8, 31, 33, 100, 4095, 4097, 10001):
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.rand(n + 1, generator=generator) < 0.3).to(dtype)[1:]
        bits = pack(x)
        assert torch.equal(unpack(bits, x.shape, dtype), x)
        digest.update(bits.numpy().tobytes())
        for i in range(0, n, 1 + n // 50):
            y = x.clone()
            y[i] = -0.0
            assert pack(y) is None
print(digest.hexdigest())
"""
    found = set()
    for isa in (*native.ISAS, "off"):
        environment = {**os.environ, "SNNROBUST_KERNELS": isa}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
