"""What holds for every encoder, in each of its forms."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnrobust.draws import draws
from snnrobust.encoders import (
    ENCODERS,
    Delta,
    Direct,
    Encoder,
    Frames,
    Latency,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)


@dataclass(frozen=True)
class Case:
    """``make(T)`` is the encoder; a sample is ``[*before, *shape]``, its values are in [low, high]."""

    make: Callable[[int], Encoder]
    kind: type[Encoder]
    draws: bool = False
    low: float = 0.0
    high: float = 1.0
    layout: str = "any"  # or "frames": [T, *], or "rows": [C, T, W]
    blunt: bool = False

    def shape(self, T: int, rest: tuple[int, ...] = (2, 3)) -> tuple[int, ...]:
        return {"any": rest, "frames": (T, *rest), "rows": (rest[0], T, rest[-1])}[self.layout]

    def input(
        self, T: int, batch: int, rest: tuple[int, ...] = (2, 3), seed: int = 0, dtype: Any = torch.float32
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand((batch, *self.shape(T, rest)), generator=generator, dtype=dtype)
        return self.low + (self.high - self.low) * x


_MOVING = {"low": -1.0, "high": 1.0, "layout": "frames"}

CASES = {
    "Poisson": Case(Poisson, Poisson, draws=True),
    "Poisson, none": Case(lambda T: Poisson(T, "none"), Poisson, draws=True, blunt=True),
    "Direct": Case(Direct, Direct),
    "SignedPoisson": Case(SignedPoisson, SignedPoisson, draws=True, low=-1.0, high=2.0),
    "SignedPoisson, channels": Case(
        lambda T: SignedPoisson(T, (0.1, 0.5), [0.2, 0.3], scale=2.0), SignedPoisson, draws=True, low=-1.0, high=2.0
    ),
    "SignedPoisson, none": Case(lambda T: SignedPoisson(T, gradient="none"), SignedPoisson, draws=True, blunt=True),
    "Latency": Case(Latency, Latency),
    "Latency, logarithmic": Case(lambda T: Latency(T, "logarithmic"), Latency),
    "Phase": Case(lambda T: Phase(T, 3), Phase),
    "Phase, unweighted": Case(lambda T: Phase(T, weighted=False), Phase),
    "Delta": Case(Delta, Delta, **_MOVING),
    "Delta, first": Case(lambda T: Delta(T, 0.5, before="first"), Delta, **_MOVING),
    "Delta, channels": Case(lambda T: Delta(T, 0.5, polarity="channels"), Delta, **_MOVING),
    "LevelCrossing": Case(LevelCrossing, LevelCrossing, **_MOVING),
    "LevelCrossing, first": Case(lambda T: LevelCrossing(T, 0.3, "first", "channels"), LevelCrossing, **_MOVING),
    "Population": Case(Population, Population, draws=True),
    "Population, wide": Case(lambda T: Population(T, 2, 0.7), Population, draws=True),
    "Frames": Case(Frames, Frames, low=-3.0, high=3.0, layout="frames"),
    "Rows": Case(Rows, Rows, layout="rows"),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(lambda rest: (2, *rest))
keys = st.integers(0, 2**63 - 1)


def _pieces(T, cuts):
    edges = [0, *sorted(cuts), T]
    return [(a, b - a) for a, b in pairwise(edges) if b > a]


def test_the_table_is_complete():
    assert {case.kind for case in CASES.values()} == set(ENCODERS.values())
    assert all(ENCODERS[case.kind.__name__] is case.kind for case in CASES.values())


@every
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    T=st.integers(2, 9),
    batch=st.integers(1, 4),
    rest=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    key=keys,
    data=st.data(),
)
def test_chunks_and_steps_are_the_whole(case, T, batch, rest, dtype, key, data):
    encoder, x = case.make(T), case.input(T, batch, rest, key, dtype)
    cuts = data.draw(st.lists(st.integers(1, T - 1), max_size=4))
    with draws(encoder, key):
        whole = encoder(x)
        assert torch.equal(torch.cat([encoder.encode(x, *piece) for piece in _pieces(T, cuts)]), whole)
        assert torch.equal(torch.stack([encoder.step(x, t) for t in range(T)]), whole)
        assert torch.equal(torch.stack(list(encoder.stream(x))), whole)
    assert whole.shape == (T, batch, *encoder.output_shape(x.shape[1:]))
    assert whole.dtype == dtype
    assert whole.isfinite().all()


@every
@settings(max_examples=8, deadline=None, derandomize=True)
@given(T=st.integers(2, 6), rest=shapes, key=keys, data=st.data())
def test_a_sample_does_not_depend_on_its_batch(case, T, rest, key, data):
    encoder, x = case.make(T), case.input(T, 5, rest, key)
    some = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)))
    ids = torch.arange(5) * 1000 + 7
    with draws(encoder, key, ids):
        everyone = encoder(x)
    with draws(encoder, key, ids[some]):
        assert torch.equal(encoder(x[some]), everyone[:, some])


@every
def test_neither_threads_nor_strides_matter(case):
    T = 6
    encoder, x = case.make(T), case.input(T, 40, (2, 30, 30))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            with draws(encoder, 3):
                found.append(encoder(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    strided = torch.empty(*x.shape, 2)[..., 0].transpose(0, -1).contiguous().transpose(0, -1).copy_(x)
    assert not strided.is_contiguous()
    with draws(encoder, 3):
        assert torch.equal(encoder(strided), found[0])


@every
def test_it_draws_if_it_says_so(case):
    T = 6
    encoder, x = case.make(T), case.input(T, 3, (2, 20))
    assert encoder.stochastic == case.draws
    state = torch.get_rng_state()
    found = []
    for key in (1, 2, 1):
        with draws(encoder, key):
            found.append(encoder(x))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1]) != case.draws
    assert torch.equal(torch.get_rng_state(), state)
    encoder(x)
    assert torch.equal(torch.get_rng_state(), state) != case.draws  # without a key it takes one from torch


@every
def test_fewer_steps_are_the_first_ones_where_it_says_so(case):
    long, short, x = case.make(9), case.make(4), case.input(9, 5, (2, 9))
    with draws(long, 1), draws(short, 1):
        if case.layout != "any":
            with pytest.raises(ValueError, match=r"^time_steps is 4, but a sample has the shape"):
                short(x)
            assert not long.truncatable
        else:
            assert torch.equal(short(x), long(x)[:4]) == long.truncatable


@every
def test_the_input_is_left_alone(case):
    x = case.input(4, 2).requires_grad_()
    before = x.detach().clone()
    case.make(4)(x).sum().backward()
    assert torch.equal(x, before)


# --- gradients ------------------------------------------------------------------------------------------------


def _gradient(encoder, x, weight, pieces, key=5):
    x = x.detach().requires_grad_()
    with draws(encoder, key):
        output = torch.cat([encoder.encode(x, *piece) for piece in pieces])
    return torch.autograd.grad((output * weight).sum(), x)[0]


@every
def test_the_gradient_of_chunks_is_that_of_the_whole_and_linear(case):
    """As for every backward pass: linear in the gradient at the output, and the chunks' share adds up."""
    T = 7
    encoder, x = case.make(T), case.input(T, 3, dtype=torch.float64)
    shape = (T, 3, *encoder.output_shape(x.shape[1:]))
    v, w = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_v, of_w = (_gradient(encoder, x, u, [(0, T)]) for u in (v, w))
    torch.testing.assert_close(_gradient(encoder, x, 2 * v - w, [(0, T)]), 2 * of_v - of_w)
    torch.testing.assert_close(_gradient(encoder, x, v, [(0, 2), (2, 1), (3, 4)]), of_v)
    assert of_v.isfinite().all()
    assert of_v.dtype == torch.float64
    assert (of_v == 0).all() if case.blunt else (of_v != 0).all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case, dtype):
    encoder, x = case.make(4), case.input(4, 3).to(dtype).clamp(case.low, case.high).requires_grad_()
    output = encoder(x)
    assert output.dtype == dtype
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# --- bad input ------------------------------------------------------------------------------------------------


def _with(value):
    def spoil(x):
        x = x.clone()
        x.view(-1)[-1] = value
        return x

    return spoil


@every
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_with(math.nan), ValueError, "x contains NaN"),
        (_with(math.inf), ValueError, "x contains infinity"),
        (_with(-math.inf), ValueError, "x contains infinity"),
        (lambda x: (x * 255).to(torch.int32), TypeError, "x must be floating, got torch.int32"),
        (lambda x: x.sum(), ValueError, "x must be a batch [B, ...] that is not empty, got shape ()"),
        (lambda x: x.flatten(), ValueError, "x must be a batch [B, ...] that is not empty"),
        (lambda x: x[:0], ValueError, "x must be a batch [B, ...] that is not empty"),
        (lambda x: x[:, :0], ValueError, "x must be a batch [B, ...] that is not empty"),
        (lambda x: x.tolist(), TypeError, "x must be a tensor [B, ...], got list"),
    ],
)
def test_bad_input(case, spoil, error, message):
    encoder, x = case.make(3), spoil(case.input(3, 2))
    for call in (
        lambda: encoder(x),
        lambda: encoder.step(x, 0),
        lambda: encoder.encode(x, 0, 1),
        lambda: encoder.stream(x),
    ):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()


@every
def test_values_outside_the_bounds(case):
    encoder, x = case.make(3), case.input(3, 2)
    low, high = encoder.bounds
    if (low, high) == (0.0, 1.0):
        for value in (-1e-6, 1.000001):
            with pytest.raises(ValueError, match=r"^x must lie in \[0, 1\]"):
                encoder(_with(value)(x))
    else:
        assert encoder(_with(3e38)(x)).isfinite().all()
        assert encoder(_with(-3e38)(x)).isfinite().all()


@every
@pytest.mark.parametrize("t", [-1, 3, 100])
def test_a_step_that_does_not_exist(case, t):
    with pytest.raises(ValueError, match=f"^t must be one of the 3 time steps from 0 on, got {t}$"):
        case.make(3).step(case.input(3, 2), t)


@every
@pytest.mark.parametrize(
    ("start", "steps", "error", "message"),
    [
        (-1, 2, ValueError, "start must be at least 0, got -1"),
        (0, 0, ValueError, "steps must be at least 1, got 0"),
        (2, 2, ValueError, "start + steps must be at most the 3 time steps, got 2 + 2 = 4"),
        (0.0, 1, TypeError, "start must be an integer, got 0.0"),
        (0, True, TypeError, "steps must be an integer, got True"),
    ],
)
def test_a_piece_that_does_not_exist(case, start, steps, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        case.make(3).encode(case.input(3, 2), start, steps)


@every
def test_a_stream_reads_its_input_once(meter, case):
    """Kernels and bytes are linear in T, forward and backward."""
    costs = []
    for T in (16, 32, 64):
        encoder, x = case.make(T), case.input(T, 2).requires_grad_()
        with draws(encoder, 1):
            with meter() as forward:
                steps = list(encoder.stream(x))
            with meter() as backward:
                sum((s * (t + 1)).sum() for t, s in enumerate(steps)).backward()
        costs.append(torch.tensor([forward.kernels, forward.bytes, backward.kernels, backward.bytes]))
    grown = (costs[2] - costs[1]) - 2 * (costs[1] - costs[0])
    assert (grown <= 0.02 * costs[0]).all(), costs


def test_population_needs_channels():
    with pytest.raises(ValueError, match=r"^Population needs samples \[C, ...\], got the shape \(\)"):
        Population(2).output_shape(())


def test_a_name_that_is_taken_is_refused():
    before = dict(ENCODERS)
    with pytest.raises(
        TypeError, match=r"^the name Poisson is taken by snnrobust.encoders.poisson.Poisson: give .*<locals>.Poisson"
    ):
        type("Poisson", (Encoder,), {"__qualname__": "test.<locals>.Poisson"})
    assert before == ENCODERS


@pytest.mark.parametrize("kind", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize(
    ("time_steps", "error", "message"),
    [
        (0, ValueError, "time_steps must be at least [12], got 0"),
        (-3, ValueError, "time_steps must be at least [12], got -3"),
        (4.0, TypeError, "time_steps must be an integer, got 4.0"),
        (True, TypeError, "time_steps must be an integer, got True"),
        ("8", TypeError, "time_steps must be an integer, got '8'"),
    ],
)
def test_bad_time_steps(kind, time_steps, error, message):
    with pytest.raises(error, match="^" + message):
        kind(time_steps)


# --- rebuilding -----------------------------------------------------------------------------------------------


@every
def test_it_is_rebuilt_from_its_attributes(case):
    """As checkpoints and experiment files do it: JSON and TOML have lists for tuples."""
    encoder, x = case.make(5), case.input(5, 3)
    arguments = {name: getattr(encoder, name) for name in inspect.signature(case.kind).parameters}
    assert all(isinstance(value, int | float | str | tuple | None) for value in arguments.values())
    again = case.kind(**{name: list(v) if isinstance(v, tuple) else v for name, v in arguments.items()})
    with draws(encoder, 1), draws(again, 1):
        assert torch.equal(encoder(x), again(x))
    assert repr(again) == repr(encoder)


def test_a_repr_shows_the_arguments():
    assert repr(CASES["Poisson, none"].make(3)) == "Poisson(time_steps=3, gradient='none')"
    assert repr(CASES["Population"].make(3)) == "Population(time_steps=3, neurons=8, sigma=None)"
    assert "mean=(0.1, 0.5), std=(0.2, 0.3)" in repr(CASES["SignedPoisson, channels"].make(3))


def test_a_new_encoder_is_one_small_class():
    class Constant(Encoder):
        def _encode(self, x, start, steps):
            return torch.stack([x * (t + 1) for t in range(start, start + steps)])

    try:
        assert Constant(3)(torch.ones(1, 2)).tolist() == [[[1, 1]], [[2, 2]], [[3, 3]]]
        assert Constant(3).output_shape([4, 5]) == (4, 5)
    finally:
        assert ENCODERS.pop("Constant") is Constant
