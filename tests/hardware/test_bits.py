"""Words against Python's integers, NumPy's int8 and enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.hardware.bits import bit_values, flip_bits, flip_deltas, from_words, store, to_words
from snnrobust.quantization import uniform

WIDTHS = range(2, 9)


def all_codes(bits):
    return torch.arange(-(1 << (bits - 1)), 1 << (bits - 1))


def in_python(word, bits):
    return word - (1 << bits) if word >> (bits - 1) & 1 else word


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_word_is_its_integer(bits):
    words = torch.arange(1 << bits, dtype=torch.uint8)
    codes = from_words(words, bits)
    assert codes.tolist() == [in_python(w, bits) for w in range(1 << bits)]
    assert torch.equal(to_words(codes, bits), words)
    assert sorted(codes.tolist()) == all_codes(bits).tolist()
    sums = [sum(int(v) for i, v in enumerate(bit_values(bits)) if w >> i & 1) for w in range(1 << bits)]
    assert codes.tolist() == sums


def test_eight_bits_are_those_of_int8():
    codes = np.arange(-128, 128, dtype=np.int8)
    assert to_words(torch.from_numpy(codes), 8).numpy().tolist() == codes.view(np.uint8).tolist()


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_flip_of_every_word(bits):
    codes = all_codes(bits)
    words = to_words(codes, bits)
    deltas = flip_deltas(words, bits)
    assert deltas.shape == (1 << bits, bits)
    everything = torch.arange(1 << bits)
    for bit in range(bits):
        flipped = flip_bits(words, everything, torch.full_like(everything, bit), bits)
        assert flipped.tolist() == [int(w) ^ (1 << bit) for w in words]
        assert torch.equal(from_words(flipped, bits) - codes, deltas[:, bit])
        assert deltas[:, bit].abs().unique().tolist() == [1 << bit]
        assert torch.equal(flip_bits(flipped, everything, torch.full_like(everything, bit), bits), words)


@settings(deadline=None)
@given(st.data(), st.integers(2, 8))
def test_many_flips_are_flips_one_by_one(data, bits):
    words = torch.tensor(
        data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=6)), dtype=torch.uint8
    )
    pair = st.tuples(st.integers(0, len(words) - 1), st.integers(0, bits - 1))
    pairs = data.draw(st.lists(pair, max_size=12))
    before, expected = words.clone(), words.tolist()
    for index, bit in pairs:
        expected[index] ^= 1 << bit
    index, bit = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    once = flip_bits(words, index, bit, bits)
    assert once.tolist() == expected
    assert once.dtype == torch.uint8
    assert torch.equal(words, before)
    assert torch.equal(flip_bits(once, index.flip(0), bit.flip(0), bits), words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", WIDTHS)
def test_stored_values_are_those_of_the_quantizer(bits, dtype):
    w = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(bits), dtype=torch.float64).to(dtype)
    stored = store(w, bits)
    assert torch.equal(stored.values(dtype), uniform(w, bits))
    assert torch.allclose(stored.codes * stored.step, stored.values(), rtol=1e-14, atol=0)
    levels = 2 ** (bits - 1) - 1
    assert stored.codes.abs().max() == levels
    assert (stored.values() - w.double()).abs().max() <= stored.step / 2 * (1 + 1e-12)
    rows = store(w, bits, axis=1)
    assert rows.largest.shape == (1, 5, 1)
    for j in range(5):
        assert torch.equal(rows.values(dtype)[:, j], uniform(w[:, j], bits))
    some = torch.tensor([3, 104, 3, 50])
    assert torch.equal(rows.at(some), rows.values().flatten()[some])
    assert torch.equal(stored.at(some), stored.values().flatten()[some])


def test_a_flip_changes_the_weight_by_its_delta_and_no_other():
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    stored = store(w, 8, axis=0)
    change = stored.flip(torch.tensor([13]), torch.tensor([7])).values() - stored.values()
    assert change.flatten().nonzero().flatten().tolist() == [13]
    expected = flip_deltas(stored.words, 8)[2, 1, 7] * stored.step[2, 0]
    torch.testing.assert_close(change[2, 1], expected, rtol=1e-12, atol=0)
    assert change.abs().max() == pytest.approx(128 * float(stored.step[2, 0]))


def test_the_sign_bit_of_zero_reaches_one_step_beyond_the_range():
    stored = store(torch.tensor([0.0, 1.0]), 8).flip(torch.tensor([0]), torch.tensor([7]))
    assert stored.codes.tolist() == [-128, 127]
    assert stored.values().tolist() == [-128 / 127, 1.0]


def test_zeros_and_tiny_weights_have_the_code_zero():
    for w in (torch.zeros(3), torch.full((3,), 5e-324, dtype=torch.float64)):
        stored = store(w, 8)
        assert stored.codes.tolist() == [0, 0, 0]
        assert stored.values().tolist() == [0.0, 0.0, 0.0]
    assert store(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 4, axis=0).codes.tolist() == [[0, 0], [4, -7]]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: store(torch.ones(2), 9), ValueError, r"bits must be in 2\.\.8, got 9"),
        (lambda: store(torch.ones(2), 1), ValueError, r"bits must be in 2\.\.8, got 1"),
        (lambda: store(torch.tensor([1.0, torch.nan])), ValueError, "w contains NaN or infinity"),
        (lambda: store(torch.ones(2, dtype=torch.int64)), TypeError, "w must be a floating tensor"),
        (lambda: store(torch.ones(0)), TypeError, "at least one element"),
        (lambda: store(torch.ones(2), axis=1), ValueError, "axis must be one of the 1 of w"),
        (lambda: to_words(torch.tensor([8]), 4), ValueError, r"codes of 4 bits must lie in -8\.\.7, got 8\.\.8"),
        (lambda: to_words(torch.tensor([-9]), 4), ValueError, r"must lie in -8\.\.7"),
        (lambda: to_words(torch.tensor([1.0]), 4), TypeError, "codes must be integers"),
        (lambda: from_words(torch.tensor([1]), 4), TypeError, "words must be uint8"),
        (lambda: flip_deltas(torch.tensor([1]), 4), TypeError, "words must be uint8"),
        (lambda: flips([2], [0]), ValueError, r"index must lie in 0\.\.1, got 2\.\.2"),
        (lambda: flips([-1], [0]), ValueError, r"index must lie in 0\.\.1"),
        (lambda: flips([0], [4]), ValueError, r"bit must lie in 0\.\.3, got 4\.\.4"),
        (lambda: flips([0, 1], [0]), TypeError, r"bit must be int64 \[N\]"),
        (lambda: flips([0.0], [0]), TypeError, r"index must be int64 \[N\]"),
        (lambda: flip_bits(torch.ones(2), torch.tensor([0]), torch.tensor([0]), 4), TypeError, "words must be uint8"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def flips(index, bit):
    return flip_bits(torch.zeros(2, dtype=torch.uint8), torch.tensor(index), torch.tensor(bit), 4)
