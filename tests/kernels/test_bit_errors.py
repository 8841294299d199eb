"""The C code against its fallback, bit for bit; rates, independence and gaps against the exact distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from snnrobust.kernels import bit_errors as module
from snnrobust.kernels import native
from snnrobust.kernels.bit_errors import RUN, bit_errors

KEY = torch.tensor([0x9ABCDEF0, 0x12345678])
ALPHA = 1e-3  # of each test, two-sided where it has sides


@pytest.fixture(params=native.ISAS)
def isa(request, monkeypatch):
    """Every instruction set of this processor, one after the other."""
    library = native._library()[0]
    if library is None or native.ISAS.index(request.param) > library.snn_level():
        pytest.skip(f"no compiled kernels for {request.param}")
    monkeypatch.setattr(native, "_library", lambda: (library, request.param, ""))
    module._compiled.cache_clear()
    yield request.param
    module._compiled.cache_clear()


def zeros(n):
    return torch.zeros(n, dtype=torch.uint8)


def planes(words, bits=8):
    """``[bits, n]`` booleans."""
    return torch.stack([(words.flatten() >> b) & 1 for b in range(bits)]).bool()


# --- kernel and fallback --------------------------------------------------------------------------------------

rates = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 0.01, 1e-4, 1e-12, 5e-324, 1 - 2**-53]), st.floats(0, 1, allow_subnormal=False)
)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), st.lists(rates, max_size=8),
    st.one_of(st.integers(0, 300), st.sampled_from([RUN - 1, RUN, RUN + 1, 2 * RUN + 77])),
    st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 3)),
)  # fmt: skip
@example((0, 0), [1.0] * 8, RUN + 1, 0)
@example((1, 2), [0.999, 0.0, 5e-324, 0.3], 2 * RUN, 2**33 + 1)
def test_errors_are_those_of_the_fallback(key, rates, n, id):
    words = torch.arange(n).to(torch.uint8)
    key = torch.tensor(key)
    assert torch.equal(bit_errors(words, rates, key, id), module._in_torch(words, rates, key, id))


def test_every_instruction_set_gives_the_bits_of_the_fallback(isa):
    words = (torch.arange(3 * RUN + 5) * 7).to(torch.uint8)
    rates = [0.3, 1e-2, 1e-3, 1e-4, 0.0, 1.0, 0.05, 1e-6]
    assert torch.equal(bit_errors(words, rates, KEY, 3), module._in_torch(words, rates, KEY, 3))


def test_without_kernels_the_fallback_runs(monkeypatch):
    words = torch.arange(1000).to(torch.uint8)
    compiled = bit_errors(words, [0.1] * 8, KEY)
    monkeypatch.setattr(native, "available", lambda: False)
    assert torch.equal(bit_errors(words, [0.1] * 8, KEY), compiled)


def test_threads_change_nothing(isa, monkeypatch):
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda n=threads: n)
        found.append(bit_errors(zeros(40 * RUN + 9), [0.01] * 8, KEY))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_logarithm_is_accurate():
    """To 2e-15, relative, over the whole range of u, the ends included."""
    u = (torch.arange(1, 1 << 12).double() - 0.5) / (1 << 12)
    u = torch.cat([u, 2.0 ** -torch.arange(1, 54).double(), 1 - 2.0 ** -torch.arange(2, 54).double(), u**3, 1 - u**4])
    u = u[(u > 0) & (u < 1)]
    expected = np.log(u.numpy().astype(np.longdouble))
    error = np.abs(module._logarithm(u).numpy() / expected - 1)
    assert error.max() < 2e-15


# --- distributions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.1, 1e-2, 1e-3, 1e-4])
def test_each_bit_has_its_rate(p):
    """Chi-square over the eight positions, and over the words' halves and runs."""
    n = 60 * RUN
    wrong = planes(bit_errors(zeros(n), [p] * 8, KEY))
    for counts, trials in ((wrong.sum(1), n), (wrong.view(8, 60, RUN).sum((0, 2)), 8 * RUN)):
        z = (counts.double() - trials * p) / (trials * p * (1 - p)) ** 0.5
        assert stats.chi2.sf(float((z**2).sum()), len(counts)) > ALPHA


def test_rates_may_differ():
    n, given = 50 * RUN, [0.0, 1e-3, 0.3, 0.0, 1e-2, 1.0]
    wrong = planes(bit_errors(zeros(n), given, KEY)).sum(1).double()
    assert wrong[[0, 3, 6, 7]].sum() == 0
    assert wrong[5] == n
    p = torch.tensor([1e-3, 0.3, 1e-2], dtype=torch.float64)
    z = (wrong[[1, 2, 4]] - n * p) / (n * p * (1 - p)).sqrt()
    assert stats.chi2.sf(float((z**2).sum()), 3) > ALPHA


def test_gaps_are_geometric():
    """Those of one bit, over the borders of runs: chi-square of the gap in 20 classes of about equal probability."""
    p, n = 0.02, 100 * RUN
    places = planes(bit_errors(zeros(n), [p], KEY), 1)[0].nonzero().flatten().numpy()
    gaps = np.diff(places) - 1
    edges = np.unique(np.concatenate([[0], stats.geom.ppf(np.arange(1, 20) / 20, p).astype(int)]))
    probability = np.diff(np.concatenate([1 - (1 - p) ** edges, [1.0]]))
    observed = np.histogram(gaps, [*edges, np.inf])[0]
    assert stats.chisquare(observed, probability * len(gaps)).pvalue > ALPHA


def test_places_are_uniform_within_a_run():
    n = 200 * RUN
    places = planes(bit_errors(zeros(n), [0.003], KEY), 1)[0].nonzero().flatten() % RUN
    assert stats.chisquare(np.histogram(places.numpy(), 64, (0, RUN))[0]).pvalue > ALPHA


def test_bits_of_a_word_are_independent():
    """The number of errors in a word is binomial."""
    p, n = 0.1, 30 * RUN
    counts = np.bincount(planes(bit_errors(zeros(n), [p] * 8, KEY)).sum(0).numpy(), minlength=9)
    expected = stats.binom.pmf(np.arange(9), 8, p) * n
    observed = np.append(counts[:5], counts[5:].sum())
    assert stats.chisquare(observed, np.append(expected[:5], expected[5:].sum())).pvalue > ALPHA


def test_neighbours_ids_and_keys_are_independent():
    """Coincidences of two maps are as many as chance gives."""
    p, n = 0.05, 20 * RUN
    one = planes(bit_errors(zeros(n), [p] * 8, KEY))
    others = [
        planes(bit_errors(zeros(n), [p] * 8, KEY, 1)),
        planes(bit_errors(zeros(n), [p] * 8, KEY, 1 << 32)),
        planes(bit_errors(zeros(n), [p] * 8, KEY + torch.tensor([0, 1]))),
        one.roll(1, 0),
        one.roll(1, 1),
        one.roll(RUN, 1),
    ]
    for other in others:
        both, trials = float((one & other).sum()), one.numel()
        z = (both - trials * p * p) / (trials * p * p * (1 - p * p)) ** 0.5
        assert abs(z) < stats.norm.isf(ALPHA / 2)


# --- what is asked for ----------------------------------------------------------------------------------------


def test_errors_do_not_depend_on_the_words_and_are_undone_by_themselves():
    words = torch.randint(0, 256, (3, 1000), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = words.clone()
    wrong = bit_errors(words, [0.1] * 8, KEY)
    assert torch.equal(words, before)
    assert wrong.shape == words.shape
    assert torch.equal(wrong ^ words, bit_errors(torch.zeros_like(words), [0.1] * 8, KEY))
    assert torch.equal(bit_errors(wrong, [0.1] * 8, KEY), words)
    assert torch.equal(bit_errors(words.T, [0.1] * 8, KEY), bit_errors(words.T.contiguous(), [0.1] * 8, KEY))


def test_no_errors_and_only_errors():
    words = torch.arange(256).to(torch.uint8)
    assert torch.equal(bit_errors(words, [0.0] * 8, KEY), words)
    assert torch.equal(bit_errors(words, [], KEY), words)
    assert torch.equal(bit_errors(words, [1.0] * 8, KEY), ~words)
    assert bit_errors(words[:0], [0.5], KEY).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((zeros(3), [1.5], KEY), ValueError, r"rates must be at most 8 probabilities, got \[1.5\]"),
        ((zeros(3), [float("nan")], KEY), ValueError, "rates must be"),
        ((zeros(3), [0.1] * 9, KEY), ValueError, "at most 8"),
        ((zeros(3).int(), [0.1], KEY), TypeError, "words must be uint8, got torch.int32"),
        ((zeros(3), [0.1], KEY[:1]), ValueError, "key must be two words"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        bit_errors(*arguments)
