"""Changes between frames: spikes, and the gradient of ON and OFF."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.encoders import Delta
from snnrobust.neurons.surrogate import ATan

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
    """What the spikes stand for, written out: a step of height 1 at each threshold."""
    past = torch.cat([x[:, :1] if before == "first" else torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    d = (x - past).movedim(1, 0)
    on, off = (torch.atan(torch.pi * (sign * d - threshold) / threshold) / torch.pi for sign in (1, -1))
    return on - off if polarity == "signed" else torch.cat([on, off], 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 5),
    threshold=st.floats(0.05, 3),
    before=st.sampled_from(["zero", "first"]),
    polarity=st.sampled_from(["signed", "channels"]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_gradient_of_an_arc_tangent_at_each_threshold(T, threshold, before, polarity, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, T, 3, dtype=torch.float64, generator=generator).requires_grad_()
    output, smooth = Delta(T, threshold, before, polarity)(x), _smooth(x, threshold, before, polarity)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (output, smooth))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("polarity", ["signed", "channels"])
def test_by_the_surrogate_of_the_neurons(polarity):
    """d = 0.5, 0.1, -0.2, 0: the first two frames and no later one reach s_1."""
    x, threshold, g = torch.tensor([[[0.5], [0.6], [0.4], [0.4]]], requires_grad=True), 0.2, ATan(2.0).derivative
    s = Delta(4, threshold, polarity=polarity)(x)[1, 0]
    on, off = (g(torch.tensor((0.1 + c) / threshold)) / threshold for c in (-threshold, threshold))
    expected = (on + off,) if polarity == "signed" else (on, -off)
    for channel, slope in enumerate(expected):
        (gradient,) = torch.autograd.grad(s[channel], x, retain_graph=True)
        torch.testing.assert_close(gradient.flatten(), slope * torch.tensor([-1.0, 1.0, 0.0, 0.0]))


def test_a_readout_that_sums_over_time_feels_every_frame():
    """What is 1 / theta everywhere adds up to the last frame's alone."""
    x = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(Delta(5, 0.3)(x).sum(), x)
    assert (gradient != 0).all()


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
