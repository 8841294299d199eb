"""Noise in one pass against the draws and torch's arithmetic, bit for bit, and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snnrobust.kernels import native, noise, philox
from snnrobust.kernels.noise import gaussian_noise

KEY = torch.tensor([0x9ABCDEF0, 0x12345678])
needs_kernels = pytest.mark.skipif(not native.available(), reason="no compiled kernels")
SIGMAS = [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)]


@pytest.fixture(params=native.ISAS)
def isa(request, monkeypatch):
    library = native._library()[0]
    if library is None or native.ISAS.index(request.param) > library.snn_level():
        pytest.skip(f"no compiled kernels for {request.param}")
    monkeypatch.setattr(native, "_library", lambda: (library, request.param, ""))
    noise._compiled.cache_clear()
    yield request.param
    noise._compiled.cache_clear()


def products(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(y, ids, rows, start, m, a):
    """The formula, from draws that lie side by side."""
    kinds = (m > 0) + (a > 0)
    xi = philox._normal(KEY, ids, (*rows, *y.shape[2:], kinds), start).to(y.dtype)
    if m > 0:
        y = y * (1.0 + m * xi[..., 0])
    return y + a * xi[..., -1] if a > 0 else y


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4), st.integers(0, 3), st.sampled_from([(), (0,), (1,), (3,), (511,), (513,), (1025,), (2, 3, 5)]),
    st.sampled_from(["step", "inference", "chip"]), st.integers(0, 2**33), st.sampled_from(SIGMAS),
)  # fmt: skip
@example(3, 2, (2049,), "inference", 0, (0.3, 0.2))
@example(3, 2, (2049,), "chip", 0, (0.3, 0.0))
def test_noise_is_that_of_the_fallback(same_bits, steps, batch, rest, drawn, start, sigmas):
    y = products(steps, batch, *rest)
    rows = {"step": (steps, batch), "inference": (1, batch), "chip": (1, 1)}[drawn]
    ids = torch.arange(rows[1]) * 2**31 - 5
    found = gaussian_noise(y, KEY, ids, rows, start, *sigmas)
    assert same_bits(found, noise._in_torch(y, KEY, ids, rows, start, *sigmas))
    assert same_bits(found, reference(y, ids, rows, start, *sigmas))


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_every_instruction_set_gives_the_bits_of_the_fallback(isa, same_bits, sigmas):
    for elements in (*range(1, 36), 511, 512, 1000, 1027, 2049):
        y = products(2, 3, elements)
        for rows in ((2, 3), (1, 3), (1, 1)):
            ids = torch.arange(rows[1])
            assert same_bits(gaussian_noise(y, KEY, ids, rows, 9, *sigmas), reference(y, ids, rows, 9, *sigmas))


def test_threads_change_nothing(isa, monkeypatch):
    y, found = products(2, 40, 1500), []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda n=threads: n)
        found.append(gaussian_noise(y, KEY, torch.arange(40), (2, 40), 0, 0.3, 0.2))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("rows", [(3, 2), (1, 2), (1, 1)])
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_the_gradient_is_that_of_the_formula(same_bits, sigmas, rows):
    ids, grads = torch.arange(rows[1]), []
    for function in (gaussian_noise, noise._in_torch):
        y = products(3, 2, 700).requires_grad_()
        out = function(y, KEY, ids, rows, 4, *sigmas)
        (grad,) = torch.autograd.grad(out, y, products(3, 2, 700, seed=1), create_graph=True)
        grads.append(grad)
    assert same_bits(*grads)


def test_the_gradient_of_the_gradient():
    """The gradient by y is linear in the outer one: its own gradient is the same factor."""
    ids = torch.arange(2)
    y, g = products(3, 2, 50).requires_grad_(), products(3, 2, 50, seed=1).requires_grad_()
    (grad,) = torch.autograd.grad(gaussian_noise(y, KEY, ids, (3, 2), 0, 0.3, 0.2), y, g, create_graph=True)
    (again,) = torch.autograd.grad(grad, g, torch.ones_like(grad))
    torch.testing.assert_close(again, reference(torch.ones(3, 2, 50), ids, (3, 2), 0, 0.3, 1e-30), rtol=1e-6, atol=0)


def test_no_gradient_is_kept_where_none_is_asked_for():
    y = products(1, 2, 5)
    assert not gaussian_noise(y, KEY, torch.arange(2), (1, 2), 0, 0.3, 0.0).requires_grad
    y.requires_grad_()
    with torch.no_grad():
        assert not gaussian_noise(y, KEY, torch.arange(2), (1, 2), 0, 0.3, 0.0).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_layouts_run_in_torch(dtype):
    y, ids = products(2, 3, 4, 5, 6), torch.arange(3)
    converted = y.to(dtype)
    found = gaussian_noise(converted, KEY, ids, (2, 3), 0, 0.3, 0.2)
    assert found.dtype == dtype
    assert torch.equal(found, reference(converted, ids, (2, 3), 0, 0.3, 0.2))
    strided = y.transpose(-1, -3).contiguous().transpose(-1, -3)
    assert torch.equal(gaussian_noise(strided, KEY, ids, (2, 3), 0, 0.3, 0.2), reference(y, ids, (2, 3), 0, 0.3, 0.2))


def test_transformations_of_torch_func_pass():
    ids = torch.arange(2)

    def f(y):
        return gaussian_noise(y, KEY, ids, (1, 2), 0, 0.3, 0.2)

    y, v = products(1, 2, 6), products(1, 2, 6, seed=1)
    factor = torch.autograd.functional.jacobian(f, y).reshape(12, 12).diagonal().view(1, 2, 6)
    torch.testing.assert_close(torch.func.grad(lambda y: f(y).sum())(y), factor)
    torch.testing.assert_close(torch.func.vmap(f)(torch.stack([y, v]))[1], f(v))


@needs_kernels
@pytest.mark.parametrize(("rows", "ids"), [((2, 3), 2), ((3, 3), 3), ((2, 1), 1), ((1, 2), 2)])
def test_draws_of_another_shape_are_refused(rows, ids):
    with pytest.raises(ValueError, match="noise for 2 steps of 3 samples cannot be drawn for"):
        gaussian_noise(products(2, 3, 4), KEY, torch.arange(ids), rows, 0, 0.3, 0.0)
