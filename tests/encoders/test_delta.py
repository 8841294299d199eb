"""Changes between frames: spikes, and the gradient of ON and OFF."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.encoders import Delta

X = torch.tensor([[0.0, 0.5, 0.25, 0.25, 1.0, 0.0]])  # [1, T]; every number is exact


def test_by_hand():
    assert Delta(6, 0.25)(X).flatten().tolist() == [0, 1, -1, 0, 1, -1]  # at the threshold it spikes
    assert Delta(6, 0.3)(X).flatten().tolist() == [0, 1, 0, 0, 1, -1]
    assert Delta(6, 0.25)(X + 0.5).flatten().tolist() == [1, 1, -1, 0, 1, -1]
    assert Delta(6, 0.25, before="first")(X + 0.5).flatten().tolist() == [0, 1, -1, 0, 1, -1]


def test_channels_are_on_and_off():
    x = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    signed, parted = Delta(5, 0.3)(x), Delta(5, 0.3, polarity="channels")(x)
    on, off = parted.split(2, 2)
    assert torch.equal(on - off, signed)
    assert torch.equal(on * off, torch.zeros_like(on))
    assert set(parted.unique().tolist()) == {0.0, 1.0}
    assert Delta(5, polarity="channels").output_shape((5, 2, 4)) == (4, 4)


# --- gradients ------------------------------------------------------------------------------------------------


def _smooth(x, threshold, before, polarity):
    """What the spikes stand for, written out."""
    past = torch.cat([x[:, :1] if before == "first" else torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    d = ((x - past) / threshold).movedim(1, 0)
    return d if polarity == "signed" else torch.cat([d.clamp(min=0), (-d).clamp(min=0)], 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 5),
    threshold=st.floats(0.05, 3),
    before=st.sampled_from(["zero", "first"]),
    polarity=st.sampled_from(["signed", "channels"]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_gradient_of_the_change_over_the_threshold(T, threshold, before, polarity, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, T, 3, dtype=torch.float64, generator=generator).requires_grad_()
    output, smooth = Delta(T, threshold, before, polarity)(x), _smooth(x, threshold, before, polarity)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    if before == "first":  # there the change is 0 for good, and nothing depends on which half it takes
        weight[0] = 0
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (output, smooth))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("polarity", ["signed", "channels"])
def test_neighbouring_frames_only(polarity):
    x = torch.full((1, 4, 1), 0.5).requires_grad_()  # no change after the first: ON and OFF have half each
    s = Delta(4, 0.2, polarity=polarity)(x)
    (gradient,) = torch.autograd.grad(s[2, 0, 0], x)
    half = 1.0 if polarity == "signed" else 0.5
    torch.testing.assert_close(gradient.flatten(), half * torch.tensor([0.0, -5.0, 5.0, 0.0]))
    if polarity == "channels":
        s = Delta(4, 0.2, polarity=polarity)(x)
        (gradient,) = torch.autograd.grad(s[2, 0, 1], x)
        torch.testing.assert_close(gradient.flatten(), 0.5 * torch.tensor([0.0, 5.0, -5.0, 0.0]))


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold must be in (0, inf], got 0"),
        ({"threshold": None}, TypeError, "threshold must be a number, got None"),
        ({"before": "last"}, ValueError, "before must be one of zero, first; got 'last'"),
        ({"polarity": "sign"}, ValueError, "polarity must be one of signed, channels; got 'sign' (did you mean 'signed'?)"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Delta(4, **arguments)


def test_other_samples_than_declared():
    with pytest.raises(ValueError, match=r"^time_steps is 4, but a sample has the shape \(3, 2\)"):
        Delta(4)(torch.rand(1, 3, 2))
    with pytest.raises(ValueError, match=r"^polarity='channels' needs samples \[T, C, ...\], got the shape \(4,\)"):
        Delta(4, polarity="channels")(torch.rand(1, 4))
