"""The C code against its fallback, bit for bit; the published vectors; Box-Muller against float64."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.draws import Stochastic, draws
from snnrobust.kernels import native, philox

KEY = torch.tensor([0x9ABCDEF0, 0x12345678])
needs_kernels = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def _levels():
    library = native._library()[0]
    return native.ISAS[: library.snn_level() + 1] if library is not None else ()


@pytest.fixture(params=_levels() or ["none"])
def isa(request, monkeypatch):
    """Every instruction set of this processor, one after the other."""
    if request.param == "none":
        pytest.skip("no compiled kernels")
    library = native._library()[0]
    monkeypatch.setattr(native, "_library", lambda: (library, request.param, ""))
    philox._compiled.cache_clear()
    yield request.param
    philox._compiled.cache_clear()


def same(a, b):
    """The same bits: the sign of a zero counts, and so does a NaN."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(kind), b.view(kind))


words = st.integers(0, 2**32 - 1)
keys = st.tuples(words, words).map(torch.tensor)
identities = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5), st.just(2**32), st.just(2**32 - 1))
shapes = st.tuples(
    st.integers(0, 3),
    st.lists(identities, max_size=4),
    st.one_of(st.just(()), st.tuples(st.integers(0, 70)), st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 400))),
)  # fmt: skip
starts = st.one_of(st.integers(0, 40), st.integers(0, 2**40))


# --- kernel and fallback --------------------------------------------------------------------------------------


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(keys, shapes, starts)
@example(KEY, (2, [0, -3], (1023,)), 3)
@example(KEY, (1, [7], (1025,)), 0)
@example(KEY, (2, [7, 8], (0,)), 0)
@example(KEY, (2, [2**32 + 5], (2, 2048)), 2**32 - 1)
def test_uniform_and_normal_are_those_of_the_fallback(key, shape, start):
    steps, ids, rest = shape
    ids, shape = torch.tensor(ids, dtype=torch.int64), (steps, len(ids), *rest)
    for compiled, fallback in ((philox.uniform, philox._uniform), (philox.normal, philox._normal)):
        assert same(compiled(key, ids, shape, start), fallback(key, ids, shape, start))


VALUES = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.3, 2.0, 2.0**-24, 1 - 2.0**-24, 1e-42, float("nan"), float("inf"), -float("inf")]
)


def _rates(batch, rest, dtype, layout, seed):
    """Ordinary rates among special ones, in a layout."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(batch, *rest, generator=generator) * 2 - 1
    special = VALUES[torch.randint(len(VALUES), p.shape, generator=generator)]
    p = torch.where(torch.rand(p.shape, generator=generator) < 0.3, special, p).to(dtype)
    if layout == "misaligned":
        room = torch.empty(p.numel() + 1, dtype=dtype)
        return room[1:].view(p.shape).copy_(p)
    if layout == "reversed":
        return p.mT.contiguous().mT if p.dim() > 2 else torch.stack([p, p], -1)[..., 0]
    return p


@needs_kernels
@settings(max_examples=80, deadline=None)
@given(
    keys, shapes, starts, st.booleans(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
    st.sampled_from(["contiguous", "misaligned", "reversed"]),
)  # fmt: skip
def test_spikes_are_those_of_the_fallback(key, shape, start, signed, dtype, layout):
    steps, ids, rest = shape
    p, ids = _rates(len(ids), rest, dtype, layout, steps), torch.tensor(ids, dtype=torch.int64)
    u = philox._uniform(key, ids, (steps, *p.shape), start)
    expected = (p.sign().nan_to_num() * (u < p.abs())).to(dtype) if signed else (u < p).to(dtype)
    found = philox.bernoulli(key, ids, p, steps, start, signed)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert same(found, philox._bernoulli(key, ids, p, steps, start, signed))


def test_every_instruction_set_gives_the_bits_of_the_fallback(isa):
    ids = torch.tensor([0, 7, 2**32 + 5, 2**40 - 1, -3])
    for elements in (*range(1, 36), 1000, 1027, 2049):
        shape = (2, 5, elements)
        u, z = philox._uniform(KEY, ids, shape, 9), philox._normal(KEY, ids, shape, 9)
        assert same(philox.uniform(KEY, ids, shape, 9), u)
        assert same(philox.normal(KEY, ids, shape, 9), z)
        for dtype in (torch.float32, torch.bfloat16):
            p = z[0].mul(0.5).to(dtype)
            assert torch.equal(philox.bernoulli(KEY, ids, p, 2, 9), (u < p).to(dtype))
            assert torch.equal(philox.bernoulli(KEY, ids, p, 2, 9, signed=True), (p.sign() * (u < p.abs())).to(dtype))


@pytest.mark.parametrize("elements", [784, 1000, 1027])
@pytest.mark.parametrize("signed", [False, True])
def test_spikes_that_go_past_the_cache(isa, elements, signed):
    batch, steps = 16, 1 + (1 << 20) // (16 * elements)
    p = torch.linspace(-1.2, 1.2, elements).expand(batch, -1)
    u = philox.uniform(KEY, torch.arange(batch), (steps, batch, elements))
    expected = p.sign() * (u < p.abs()) if signed else (u < p).float()
    assert torch.equal(philox.bernoulli(KEY, torch.arange(batch), p, steps, signed=signed), expected)


def test_threads_change_nothing(isa, monkeypatch):
    ids, shape, p = torch.arange(40) - 3, (3, 40, 1500), torch.linspace(0, 1, 60_000).view(40, 1500)
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda n=threads: n)
        drawn = philox.uniform(KEY, ids, shape), philox.normal(KEY, ids, shape), philox.bernoulli(KEY, ids, p, 3)
        found.append(torch.stack(drawn))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


SCRIPT = """
import hashlib, torch
from snnrobust.kernels import native, philox
key, ids, shape, p = torch.tensor([1, 2]), torch.tensor([-1, 2**33, 5]), (2, 3, 333), torch.full((3, 333), 0.3)
drawn = [philox.uniform(key, ids, shape), philox.normal(key, ids, shape), philox.bernoulli(key, ids, p, 2)]
print(native.available(), hashlib.sha256(torch.stack(drawn).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow  # five processes
@needs_kernels
def test_a_process_without_kernels_draws_the_same():
    found = {}
    for choice in ("", "off", *_levels()):
        environment = os.environ | {"SNNROBUST_KERNELS": choice}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        found[choice] = result.stdout.split()
    assert len({digest for _, digest in found.values()}) == 1
    assert [available for available, _ in found.values()] == ["True", "False"] + ["True"] * len(_levels())


# --- the generator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_vectors(isa, counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    found = _words(key, counter, 300)
    assert found[0].tolist() == expected
    first = torch.arange(300) + counter[0] & 0xFFFFFFFF  # each lane counts on, and wraps
    blocks = philox.philox(torch.tensor(key), (first, *(torch.tensor([word]) for word in counter[1:])))
    assert torch.equal(torch.from_numpy(found.astype(np.int64)), torch.stack(blocks, -1))


def _words(key, counter, blocks):
    out = np.empty((blocks, 4), np.uint32)
    function = native.function("philox_words", native.P, native.P, native.I64, native.P)
    function((ctypes.c_uint32 * 2)(*key), (ctypes.c_uint32 * 4)(*counter), blocks, out.ctypes.data)
    return out


# --- Box-Muller -----------------------------------------------------------------------------------------------


def _edges():
    """Words near every place where the computation turns: ends, powers of two, sqrt(1/2), eighths of a turn."""
    places = [0, 2**32 - 1, 0xB504F334, *(1 << i for i in range(32)), *(i << 29 for i in range(8))]
    near = np.array(places)[:, None] + np.arange(-40, 41)
    return np.unique(near[(near >= 0) & (near < 2**32)])


def _pairs():
    edges, random = _edges(), np.random.default_rng(0).integers(0, 1 << 32, (2, 100_000))
    every = np.concatenate([edges, random[0]]), np.concatenate([np.random.default_rng(1).permutation(edges), random[1]])
    grid = np.meshgrid(edges[::29], edges[::29])
    return np.stack([np.concatenate([a, b.ravel()]) for a, b in zip(every, grid, strict=True)])


def test_normal_numbers_of_any_words(isa):
    radius, angle = _pairs()
    interleaved = np.stack([radius, angle], -1).astype(np.uint32)
    out = np.empty(interleaved.shape, np.float32)
    native.function("philox_box_muller", native.P, native.I64, native.P)(
        interleaved.ctypes.data, len(interleaved), out.ctypes.data
    )
    expected = torch.stack(philox._box_muller(torch.from_numpy(radius), torch.from_numpy(angle)), -1)
    assert same(torch.from_numpy(out), expected)


def test_normal_numbers_are_accurate():
    """Against float64: r to 2.5 half units in the last place, cosine and sine to one unit of 1."""
    radius, angle = _pairs()
    r = np.sqrt(-2 * np.log1p(-(2**32 - radius - 0.5) / 2**32))
    turn = 2 * np.pi * angle / 2**32
    found = philox._radius(torch.from_numpy(radius)).double().numpy()
    assert np.abs(found / r - 1).max() < 2.5 * 2.0**-24
    cosine, sine = (v.double().numpy() for v in philox._turn(torch.from_numpy(angle)))
    assert np.abs(cosine - np.cos(turn)).max() < 2.0**-23
    assert np.abs(sine - np.sin(turn)).max() < 2.0**-23
    assert np.abs(cosine**2 + sine**2 - 1).max() < 2.0**-22
    z = philox._box_muller(torch.from_numpy(radius), torch.from_numpy(angle))
    for computed, exact in zip(z, (r * np.cos(turn), r * np.sin(turn)), strict=True):
        assert np.abs(computed.double().numpy() - exact).max() < 1e-6


def test_the_functions_of_torch_are_close():
    """The formula of the first version, by torch's log, cos and sin: float32 where it loses nothing."""
    radius, angle = torch.from_numpy(_pairs())
    radius, angle = radius[radius < 1 << 30], angle[radius < 1 << 30]
    r = radius.float().add(0.5).mul(2.0**-32).log().mul(-2.0).sqrt()
    a = angle.double().mul(2.0 * torch.pi * 2.0**-32).float()
    for computed, before in zip(philox._box_muller(radius, angle), (r * a.cos(), r * a.sin()), strict=True):
        torch.testing.assert_close(computed, before, rtol=0, atol=3e-6)


# --- the operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [philox.uniform, philox.normal])
def test_another_number_of_ids_is_refused(draw):
    message = re.escape("key must be two words and sample_ids 3, one a sample: got the shapes (2,) and (1,)")
    with pytest.raises(ValueError, match=message):
        draw(KEY, torch.arange(1), (1, 3, 4))
    with pytest.raises(ValueError, match=message):
        philox.bernoulli(KEY, torch.arange(1), torch.rand(3, 4), 2)


def test_keys_and_ids_of_any_layout_and_integer_type():
    ids, key = torch.arange(12), torch.stack([KEY, KEY], -1)
    expected = philox.uniform(KEY, ids[::3], (2, 4, 5))
    assert torch.equal(philox.uniform(key[:, 0], ids[::3], (2, 4, 5)), expected)
    assert torch.equal(philox.uniform(KEY, ids[::3].int(), (2, 4, 5)), expected)


def test_shapes_without_data():
    """The meta implementations, which the compiler asks."""
    key, ids = KEY.to("meta"), torch.arange(3, device="meta")
    assert philox.uniform(key, ids, (2, 3, 5)).shape == (2, 3, 5)
    assert philox.normal(key, ids, (2, 3)).dtype == torch.float32
    p = torch.rand(3, 7, dtype=torch.bfloat16, device="meta")
    spikes = philox.bernoulli(key, ids, p, 4)
    assert (spikes.shape, spikes.dtype, spikes.device.type) == ((4, 3, 7), torch.bfloat16, "meta")


@pytest.mark.parametrize("compiled", [True, False])
def test_the_default_type_of_torch_changes_nothing(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    torch.set_default_dtype(torch.float64)
    try:
        for draw in (philox.uniform, philox.normal):
            assert draw(KEY, torch.arange(3), (2, 3, 5)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_declared_gradient():
    p = torch.rand(3, 4, requires_grad=True)
    value = p**2
    spikes = philox.bernoulli(KEY, torch.arange(3), p, 5, value=value)
    weight = torch.arange(60.0).view(5, 3, 4)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), p, create_graph=True)
    torch.testing.assert_close(gradient, 2 * p * weight.sum(0))
    (second,) = torch.autograd.grad(gradient.sum(), p)
    torch.testing.assert_close(second, 2 * weight.sum(0))
    with torch.no_grad():
        assert not philox.bernoulli(KEY, torch.arange(3), p, 5).requires_grad
    assert not philox.bernoulli(KEY, torch.arange(3), p, 5, value=torch.zeros(3, 4)).requires_grad
    philox.bernoulli(KEY, torch.arange(3), p, 5).mul_(2.0).sum().backward()  # it may be changed in place
    assert torch.equal(p.grad, torch.full((3, 4), 10.0))


class Spikes(Stochastic):
    def forward(self, x):
        return self.bernoulli(x - 0.5, 3, 2, signed=True), self.normal((2, len(x), 5)), self.uniform((2, len(x), 5))


@pytest.mark.slow
def test_a_compiled_graph_has_the_same_bits():
    torch.compiler.reset()
    model, x = nn.Sequential(Spikes()), torch.rand(4, 9, requires_grad=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with draws(model, 8):
        for found, expected in zip(compiled(x), model(x), strict=True):
            assert same(found.detach(), expected.detach())
        assert torch.equal(*(torch.autograd.grad(m(x)[0].sum(), x)[0] for m in (compiled, model)))
