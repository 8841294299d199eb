"""Direct coding; what holds for every encoder is in test_encoder.py."""

from __future__ import annotations

import torch

from snnrobust.draws import draws
from snnrobust.encoders import Direct


def test_the_image_at_every_step():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sequence = Direct(5)(x)
    assert torch.equal(sequence, torch.stack([x] * 5))
    assert sequence.untyped_storage().nbytes() == x.untyped_storage().nbytes()  # a view: T copies cost nothing


def test_gradient_is_exact():
    x = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Direct(4)(x).sin(), (x,))


def test_it_draws_nothing():
    encoder, x = Direct(3), torch.rand(2, 3)
    state = torch.get_rng_state()
    first = encoder(x)
    with draws(encoder, 1, torch.arange(99)):  # the number of sample_ids is nothing to it
        assert torch.equal(encoder(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.stochastic
