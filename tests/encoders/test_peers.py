"""What README and demo say of other libraries' Poisson encoders: no gradient passes."""

import pytest
import torch

from snnrobust.encoders import Poisson


def test_spikingjelly_cuts_the_path() -> None:
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    spikes = encoding.PoissonEncoder()(torch.rand(3, 4, requires_grad=True))
    assert not spikes.requires_grad


def test_snntorch_passes_a_gradient_of_exactly_zero() -> None:
    spikegen = pytest.importorskip("snntorch.spikegen")
    x = torch.rand(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(spikegen.rate(x, num_steps=5).sum(), x)
    assert (gradient == 0).all()


@pytest.mark.parametrize(("gradient", "slope"), [("straight_through", 5.0), ("none", 0.0)])
def test_ours_passes_what_it_declares(gradient: str, slope: float) -> None:
    x = torch.rand(3, 4, requires_grad=True)
    (found,) = torch.autograd.grad(Poisson(5, gradient)(x).sum(), x)  # type: ignore[arg-type]
    assert (found == slope).all()
