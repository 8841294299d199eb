"""Keyed randomness against the published Philox vectors, a plain integer loop, and statistics with fixed keys."""

from __future__ import annotations

import pickle
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import snnrobust.draws as draws_module
import snnrobust.kernels.philox as philox_module
from snnrobust.draws import (
    Stochastic,
    Stream,
    derive,
    draws,
    fresh_key,
    held,
    is_stochastic,
    keyed,
    normal,
    one_key,
    philox,
    uniform,
)
from snnrobust.encoders import Direct, Poisson
from snnrobust.kernels import native

SIGNIFICANCE = 1e-6  # of every statistical test; the keys are fixed, so each passes or fails for good
KEY = torch.tensor([0x9ABCDEF0, 0x12345678])


class Noise(Stochastic):
    """Its own draws, ``[1, B, 8]``."""

    def forward(self, x):
        return self.uniform((1, len(x), 8))[0]


class Jitter(nn.Module):
    """Draws that are not ours, also in eval mode."""

    def forward(self, x):
        return x + torch.rand_like(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Noise(), Noise()

    def forward(self, x):
        return torch.stack([self.first(x), self.second(x)])


# --- the generator --------------------------------------------------------------------------------------------


def plain_philox(counter, key):
    """Philox4x32-10 on Python integers, as in section 3.4 of the paper."""
    (r0, l0, r1, l1), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(r0 * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(r1 * 0xCD9E8D57, 1 << 32)
        r0, l0, r1, l1 = high1 ^ l0 ^ k0, low1, high0 ^ l1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return r0, l0, r1, l1


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, expected):
    def words(text):
        return [int(word, 16) for word in text.split()]

    computed = philox(torch.tensor(words(key)), tuple(torch.tensor([w]) for w in words(counter)))
    assert [int(w) for w in computed] == words(expected)
    assert list(plain_philox(words(counter), words(key))) == words(expected)


def test_draws_are_philox_of_block_step_and_sample():
    ids, start, shape = torch.tensor([0, 7, 2**32 + 5, 2**40 - 1, -3]), 3, (2, 5, 2, 3)
    key = [int(k) for k in KEY]
    u, z = uniform(KEY, ids, shape, start).flatten(2), normal(KEY, ids, shape, start).flatten(2)
    for t in range(2):
        for b, sample in enumerate(ids.tolist()):
            for e in range(6):
                words = plain_philox((e // 4, start + t, sample % 2**32, (sample >> 32) % 2**32), key)
                assert float(u[t, b, e]) == (words[e % 4] >> 8) / 2**24
                radius, angle = words[e % 4 // 2 * 2 : e % 4 // 2 * 2 + 2]
                r, a = np.sqrt(-2 * np.log((radius + 0.5) / 2**32)), 2 * np.pi * angle / 2**32
                assert float(z[t, b, e]) == pytest.approx(r * (np.cos(a), np.sin(a))[e % 2], abs=2e-6)


# --- a draw depends on nothing else ---------------------------------------------------------------------------

FULL = (5, 12, 3, 7)


@pytest.fixture(params=[uniform, normal], ids=["uniform", "normal"])
def draw(request):
    return request.param


@pytest.fixture
def fallback(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)


@pytest.mark.parametrize("chunk", [1, 11, 50, 1 << 20])
def test_draws_do_not_depend_on_the_chunk(draw, chunk, monkeypatch, fallback):
    expected = draw(KEY, torch.arange(12), FULL)
    monkeypatch.setattr(philox_module, "_CHUNK", chunk)
    assert torch.equal(draw(KEY, torch.arange(12), FULL), expected)


@pytest.mark.parametrize("ids", [[0], [11, 3], [5, 5, 0, 9, 1], list(range(11, -1, -1))], ids=str)
@pytest.mark.parametrize("start", [0, 1, 4])
def test_draws_do_not_depend_on_batch_order_or_start(draw, ids, start):
    expected = draw(KEY, torch.arange(12), FULL)[start:, ids]
    assert torch.equal(draw(KEY, torch.tensor(ids), (5 - start, len(ids), 3, 7), start), expected)


def test_draws_do_not_depend_on_threads(draw):
    threads, shape = torch.get_num_threads(), (4, 64, 1000)
    try:
        torch.set_num_threads(1)
        expected = draw(KEY, torch.arange(64), shape)
        torch.set_num_threads(4)
        assert torch.equal(draw(KEY, torch.arange(64), shape), expected)
    finally:
        torch.set_num_threads(threads)


def test_shapes_and_type(draw):
    for shape in [(1, 1), (3, 2), (2, 3, 5), (1, 2, 4, 4)]:
        drawn = draw(KEY, torch.arange(shape[1]), shape)
        assert drawn.shape == shape
        assert drawn.dtype == torch.float32
    assert draw(KEY, torch.arange(0), (3, 0, 5)).shape == (3, 0, 5)


# --- distributions --------------------------------------------------------------------------------------------


def test_uniform_is_uniform():
    u = uniform(KEY, torch.arange(64), (8, 64, 512)).double().numpy().ravel()
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert stats.kstest(u, "uniform").pvalue > SIGNIFICANCE
    bits = (u * 2**24).astype(np.int64)
    assert np.array_equal(bits / 2**24, u)  # 24 bits, none lost
    for shift in (0, 8, 16):
        assert stats.chisquare(np.bincount(bits >> shift & 0xFF, minlength=256)).pvalue > SIGNIFICANCE


def test_normal_is_normal():
    z = normal(KEY, torch.arange(64), (8, 64, 512)).double().numpy().ravel()
    assert np.isfinite(z).all()
    assert stats.kstest(z, "norm").pvalue > SIGNIFICANCE
    width = stats.norm.isf(SIGNIFICANCE / 2) / np.sqrt(len(z))
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < width * np.sqrt(variance)
    for bound in (-4.0, -3.0, -2.0, 2.0, 3.0, 4.0):  # the tails
        beyond = int((z < bound).sum() if bound < 0 else (z > bound).sum())
        assert stats.binomtest(beyond, len(z), stats.norm.sf(abs(bound))).pvalue > SIGNIFICANCE
    far = np.abs(z[np.abs(z) > 2.5])
    assert stats.kstest(stats.norm.sf(far) / stats.norm.sf(2.5), "uniform").pvalue > SIGNIFICANCE
    quarters = np.histogram(np.arctan2(z[1::2], z[::2]), 64, (-np.pi, np.pi))[0]  # every angle, of independent pairs
    assert stats.chisquare(quarters).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("word", [0, 1, 0xFFFFFFFF])
def test_extreme_words(word, monkeypatch, fallback):
    """They come once in 2**32 draws: never 1, never infinite."""
    monkeypatch.setattr(philox_module, "philox", lambda key, counter: [torch.full((1, 1), word)] * 4)
    assert uniform(KEY, torch.arange(1), (1, 1, 4)).unique().item() == (word >> 8) / 2**24 < 1.0
    z = normal(KEY, torch.arange(1), (1, 1, 4))
    r, a = np.sqrt(-2 * np.log((word + 0.5) / 2**32)), 2 * np.pi * word / 2**32
    assert z.flatten().tolist() == pytest.approx([r * np.cos(a), r * np.sin(a)] * 2, rel=5e-7, abs=1e-6)


def _correlation(a, b):
    return abs(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


def test_streams_are_independent(draw):
    elements = 20_000
    drawn = draw(KEY, torch.arange(2), (2, 2, elements))
    by_path = [
        draw(draws_module._words(derive(5, path)), torch.arange(1), (1, 1, elements)) for path in ("a", "b", "a.b", "")
    ]
    keys = [draw(torch.tensor(key), torch.arange(1), (1, 1, elements)) for key in ([0, 0], [1, 0], [0, 1])]
    groups = [[drawn[0, 0], drawn[1, 0], drawn[0, 1], drawn[1, 1]], by_path, keys]
    lanes = [drawn[0, 0, i::4] for i in range(4)]
    bound = stats.norm.isf(SIGNIFICANCE / 2) / np.sqrt(elements)
    for group in groups:
        for i, a in enumerate(group):
            assert all(_correlation(a, b) < bound for b in group[:i])
    for i, a in enumerate(lanes):
        assert all(_correlation(a, b) < 2 * bound for b in lanes[:i])


# --- keys -----------------------------------------------------------------------------------------------------


def test_derive_separates_labels_and_stays_what_it_is():
    labels = [(), ("a",), ("b",), (0,), ("0",), (0, 1), ((0, 1),), (1, 0), ("a", "b"), ("ab",)]
    keys = [derive(key, *label) for key in (0, 1) for label in labels]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    digest = "6a76ea156e0e5250"  # printf "(7, 'judge', 3)" | b2sum -l 64; stored results depend on it
    assert derive(7, "judge", 3) == int.from_bytes(bytes.fromhex(digest), "little") // 2


def test_stream():
    stream = Stream(7, torch.tensor([4, 5, 6]))
    fork = stream.fork("judge", 3)
    assert fork.key == derive(7, "judge", 3)
    assert fork.sample_ids is stream.sample_ids
    chosen = stream.select(torch.tensor([True, False, True]))
    assert (chosen.key, chosen.sample_ids.tolist()) == (7, [4, 6])


# --- the context ----------------------------------------------------------------------------------------------


def test_same_key_same_draws():
    model, x = Noisy(), torch.zeros(3, 1)
    with draws(model, 5):
        first, again = model(x), model(x)
    with draws(model, 5):
        later = model(x)
    with draws(model, 6):
        other = model(x)
    assert torch.equal(first, again)
    assert torch.equal(first, later)
    assert not torch.isin(other, first).all(-1).any()
    assert not torch.equal(first[0], first[1])  # a stream for each module path


def test_sample_ids_follow_their_samples():
    model = Noisy()
    with draws(model, 5):
        everyone = model(torch.zeros(4, 1))
    with draws(model, 5, sample_ids=torch.tensor([3, 1])):
        some = model(torch.zeros(2, 1))
    assert torch.equal(some, everyone[:, [3, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Noisy(), 1.0), "key must be an integer, got 1.0"),
        ((Noisy(), True), "key must be an integer, got True"),
        ((Noisy(), "1"), "key must be an integer, got '1'"),
        ((Noisy(), None), "key must be an integer, got None"),
        ((lambda x: x, 1), "model must be a torch.nn.Module from inputs to logits, got function"),
        ((Noisy(), 1, [0, 1]), "sample_ids must be an int64 tensor [B], got list: use torch.tensor([...])"),
        ((Noisy(), 1, torch.rand(3)), "sample_ids must be an int64 tensor [B], got torch.float32 of shape (3,)"),
        ((Noisy(), 1, torch.tensor(3)), "sample_ids must be an int64 tensor [B], got torch.int64 of shape ()"),
        (
            (Noisy(), 1, torch.zeros(3, 1).long()),
            "sample_ids must be an int64 tensor [B], got torch.int64 of shape (3, 1)",
        ),
    ],
)
def test_bad_draws(arguments, message):
    with pytest.raises(TypeError, match="^" + re.escape(message)), draws(*arguments):
        pass


def test_held_draws_are_those_of_the_call():
    model, x = Noisy(), torch.zeros(3, 1)
    with draws(model, 9, torch.arange(3) + 5):
        expected, again = model(x), held(model)
    for t in (0, 1):
        with again(t):
            assert torch.equal(model(x), expected)
    torch.manual_seed(3)
    again = held(model)
    state = torch.get_rng_state()
    with again(0):
        first, foreign = model(x), torch.rand(4)
    with again(1):
        assert torch.equal(model(x), first)
        assert not torch.equal(torch.rand(4), foreign)
    with again(0):
        assert torch.equal(torch.rand(4), foreign)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.first._key is None


def test_key_is_of_the_path_in_the_model():
    inner = Noisy()
    with draws(nn.Sequential(inner), 5):
        outer = inner(torch.zeros(2, 1))
    with draws(inner, 5):
        assert not torch.equal(inner(torch.zeros(2, 1)), outer)


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 2, 3]])
def test_wrong_number_of_sample_ids(ids):
    model = Noisy()
    with (
        draws(model, 5, sample_ids=torch.tensor(ids)),
        pytest.raises(ValueError, match=re.escape(f"Noise got a batch of 3 under {len(ids)} sample_ids")),
    ):
        model(torch.zeros(3, 1))


def test_context_restores_after_an_exception():
    model, x = Noisy(), torch.zeros(3, 1)
    state = torch.get_rng_state()

    def fail():
        torch.rand(5)
        raise RuntimeError("boom")

    with draws(model, 1):
        expected = model(x)
        with pytest.raises(RuntimeError, match="boom"), draws(model, 2, sample_ids=torch.arange(9)):
            fail()
        assert torch.equal(model(x), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m._key is None and m._sample_ids is None for m in (model.first, model.second))


def test_context_is_per_model():
    mine, yours, x = Noisy(), Noisy(), torch.zeros(3, 1)
    with draws(mine, 1):
        expected = mine(x)
        assert not torch.equal(yours(x), yours(x))
        with draws(yours, 2):
            other = yours(x)
            assert torch.equal(mine(x), expected)
        assert not torch.equal(other, expected)


def test_dropout_is_keyed_and_leaves_the_generator():
    model, x = nn.Sequential(nn.Dropout(0.5)).train(), torch.ones(4, 100)
    state = torch.get_rng_state()
    outputs = []
    for key in (3, 3, 4):
        with draws(model, key):
            outputs.append(model(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_without_context_each_forward_differs_and_consumes_the_generator():
    model, x = Noisy(), torch.zeros(3, 1)
    torch.manual_seed(0)
    first, second = model(x), model(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    assert not torch.equal(first, second)


def test_keyed_generator():
    state = torch.get_rng_state()
    with keyed(11):
        first = torch.rand(4)
    with keyed(11):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_key_holds_for_a_forward():
    model, x = Noisy(), torch.zeros(3, 1)
    with draws(model, 9):
        expected = model(x)
        state = torch.get_rng_state()
        with one_key(model):  # a key that is set stays
            assert torch.equal(model(x), expected)
        assert fresh_key(model) is None
        assert fresh_key(Direct(4)) is None  # draws nothing
        assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    key = fresh_key(model)
    assert key is not None
    torch.manual_seed(3)
    with draws(model, key):
        expected = model(x)
    with one_key(model):
        assert torch.equal(model(x), expected)
    with one_key(model):
        first, again = model(x), model(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, expected)


def test_asking_whether_a_model_is_random_leaves_it_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert is_stochastic(model, torch.rand(6, 4)) is False
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True]


def test_a_copy_made_under_a_key_is_free_of_it():
    model = Noisy()
    with draws(model, 9, torch.arange(3)):
        copy, restored = deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (copy, restored):
        assert not torch.equal(other(torch.zeros(5, 1)), other(torch.zeros(5, 1)))


def test_draws_that_are_not_ours_differ_between_batches():
    model, x = Jitter(), torch.zeros(2, 3)
    found = []
    for ids in ([0, 1], [2, 3], [0, 1]):
        with draws(model, 9, torch.tensor(ids)):
            found.append(model(x))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (Poisson(4), None, True),
        (Direct(4), None, False),
        (nn.Dropout(0.5).train(), torch.ones(2, 50), False),  # it is asked about in eval mode
        (Jitter(), torch.ones(2, 50), True),
        (nn.Linear(50, 2), torch.ones(2, 50), False),
    ],
)
def test_is_stochastic(model, x, expected):
    state = torch.get_rng_state()
    assert is_stochastic(model, x) is expected
    assert torch.equal(torch.get_rng_state(), state)
