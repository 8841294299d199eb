"""Level crossings: spikes follow the signal, from any step on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.encoders import Delta, LevelCrossing


def _by_hand(values, threshold, before):
    reference, spikes = values[0] if before == "first" else 0.0, []
    for v in values:
        d = v - reference
        s = (d >= threshold) - (d <= -threshold)
        reference += threshold * s
        spikes.append(s)
    return spikes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-2, 2), min_size=1, max_size=20),
    threshold=st.floats(0.01, 1),
    before=st.sampled_from(["zero", "first"]),
)
def test_against_a_loop_over_numbers(values, threshold, before):
    x = torch.tensor([values], dtype=torch.float64)
    assert LevelCrossing(len(values), threshold, before)(x).flatten().tolist() == _by_hand(values, threshold, before)


def test_slow_changes_are_not_lost():
    x = torch.linspace(0, 1, 33)[None]  # 1/32 a step, exactly
    assert Delta(33, 0.25)(x).abs().sum() == 0
    spikes = LevelCrossing(33, 0.25)(x).flatten()
    assert spikes.nonzero().flatten().tolist() == [8, 16, 24, 32]
    assert (spikes.cumsum(0) * 0.25 - x[0]).abs().max() < 0.25


def test_a_jump_arrives_one_level_a_step():
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    assert LevelCrossing(6, 0.25)(x).flatten().tolist() == [1, 1, 1, 1, 0, -1]
    assert LevelCrossing(6, 0.25, before="first")(x).flatten().tolist() == [0, 0, 0, 0, 0, -1]


def test_channels_are_on_and_off():
    x = torch.randn(3, 9, 2, 4, generator=torch.Generator().manual_seed(0))
    on, off = LevelCrossing(9, 0.3, polarity="channels")(x).split(2, 2)
    assert torch.equal(on - off, LevelCrossing(9, 0.3)(x))
    assert torch.equal(on * off, torch.zeros_like(on))


@pytest.mark.parametrize("before", ["zero", "first"])
@pytest.mark.parametrize("polarity", ["signed", "channels"])
def test_the_gradient_is_that_of_the_deviation_with_spikes_as_constants(before, polarity):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, dtype=torch.float64, generator=generator).requires_grad_()
    threshold, smooth = 0.4, []
    ours = LevelCrossing(7, threshold, before, polarity)(x)
    sent = LevelCrossing(7, threshold, before)(x).detach()
    reference = x[:, 0] if before == "first" else torch.zeros_like(x[:, 0])
    for x_t, s_t in zip(x.unbind(1), sent, strict=True):
        on, off = (torch.atan(torch.pi * (sign * (x_t - reference) / threshold - 1)) / torch.pi for sign in (1, -1))
        smooth.append(on - off if polarity == "signed" else torch.cat([on, off], 1))
        reference = reference + threshold * s_t
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, torch.stack(smooth)))
    torch.testing.assert_close(found, expected)
