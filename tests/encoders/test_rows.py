"""Images read row by row."""

from __future__ import annotations

import re

import pytest
import torch

from snnrobust.encoders import Rows


def test_a_row_with_all_its_channels_at_each_step():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sequence = Rows(4)(x)
    assert sequence.shape == (4, 2, 15)
    for t in range(4):
        for b in range(2):
            assert sequence[t, b].tolist() == [v for c in range(3) for v in x[b, c, t].tolist()]


def test_gradient_is_exact():
    x = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    assert torch.autograd.gradcheck(lambda x: Rows(3)(x).sin(), (x.requires_grad_(),))


@pytest.mark.parametrize("shape", [(1, 8, 7), (8, 7), (2, 1, 7, 8)])
def test_other_images(shape):
    message = f"time_steps is 7, but a sample has the shape {shape}: it must be an image [C, H, W] of height H = 7"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Rows(7)(torch.rand(3, *shape))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Rows(7).output_shape(shape)
