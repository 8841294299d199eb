"""Spikes forward, the gradient of what they stand for backward."""

import pytest
import torch

from snnrobust.encoders.straight_through import straight_through


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_and_backward(dtype: torch.dtype) -> None:
    x = torch.tensor([0.2, 0.7, -0.1], dtype=dtype, requires_grad=True)
    spikes = torch.tensor([1, 0, -1], dtype=torch.int8)
    out = straight_through(x**2, spikes)
    assert out.dtype == dtype
    assert out.tolist() == [1, 0, -1]
    (gradient,) = torch.autograd.grad((out * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)).sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach() * torch.tensor([1.0, 2.0, 3.0], dtype=dtype))


def test_it_can_be_differentiated_twice() -> None:
    x = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((straight_through(x**3, torch.tensor([True])) * x).sum(), x, create_graph=True)
    assert gradient.item() == pytest.approx(1.0 + 0.5 * 3 * 0.25)  # s + x * 3 x^2, the spike being 1
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.item() == pytest.approx(3 * 0.25 + 9 * 0.25)  # ds = 3 x^2, and the derivative of 3 x^3


def test_the_output_may_be_changed_in_place() -> None:
    x = torch.rand(3, requires_grad=True)
    straight_through(x, torch.ones(3, dtype=torch.bool)).mul_(2.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
