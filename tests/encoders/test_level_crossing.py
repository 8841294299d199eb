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
def test_the_declared_gradient_is_straight_through_unrolled(before):
    """Written with the reference in the graph: s = d / theta in the backward pass, at every step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, dtype=torch.float64, generator=generator).requires_grad_()
    threshold, spikes = 0.4, []
    reference = x[:, 0] if before == "first" else torch.zeros_like(x[:, 0])
    for x_t in x.unbind(1):
        d = x_t - reference
        s = d / threshold + (d.sign() * (d.abs() >= threshold) - d / threshold).detach()
        reference = reference + threshold * s
        spikes.append(s)
    unrolled = torch.stack(spikes)
    ours = LevelCrossing(7, threshold, before)(x)
    torch.testing.assert_close(ours, unrolled)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, unrolled))
    torch.testing.assert_close(found, expected)


def test_on_and_off_share_it_by_the_sign_of_the_deviation():
    x = torch.tensor([[[0.0], [0.9], [0.8]]], requires_grad=True)  # deviations 0, 0.9 and 0.3: still rising
    encoder = LevelCrossing(3, 0.5, polarity="channels")
    (on,) = torch.autograd.grad(encoder(x)[2, 0, 0], x)
    (off,) = torch.autograd.grad(encoder(x)[2, 0, 1], x)
    torch.testing.assert_close(on.flatten(), torch.tensor([0.0, -2.0, 2.0]))
    assert (off == 0).all()
