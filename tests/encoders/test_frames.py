"""Sequences as they are."""

from __future__ import annotations

import re

import pytest
import torch

from snnrobust.encoders import Frames


def test_frames_come_time_first_and_as_a_view():
    x = torch.randn(3, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sequence = Frames(5)(x)
    assert torch.equal(sequence, x.transpose(0, 1))
    assert sequence.data_ptr() == x.data_ptr()


def test_samples_may_be_bare_sequences():
    assert torch.equal(Frames(4)(torch.arange(8.0).view(2, 4)), torch.arange(8.0).view(2, 4).T)


def test_gradient_is_exact():
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Frames(3)(x).sin(), (x,))
    assert torch.autograd.gradcheck(lambda x: Frames(3).step(x, 1).sin(), (x,))


def test_another_number_of_frames():
    message = "time_steps is 4, but a sample has the shape (5, 2, 8, 8): its first axis must be its 4 frames"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Frames(4)(torch.rand(3, 5, 2, 8, 8))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Frames(4).output_shape((5, 2, 8, 8))
    with pytest.raises(ValueError, match=r"^time_steps is 4, but a sample has the shape \(\)"):
        Frames(4).output_shape(())
