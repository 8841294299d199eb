"""The steps of L1."""

import math

import pytest
import torch

from snnrobust.attacks import L1


def gradients(x, seed=5):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_an_l1_step_shares_its_length_among_the_largest_gradients(density):
    x = torch.full((6, 40), 0.5, dtype=torch.float64)
    g = gradients(x)
    k = math.ceil(density * 40)
    v = L1(1, density=density).step(x, g, 0.3) - x
    assert ((v * g).sum(1) - 0.3 / k * g.abs().topk(k).values.sum(1)).abs().max() < 1e-12
    assert (v != 0).sum(1).tolist() == [k] * 6


@pytest.mark.parametrize(("dtype", "bounds"), [(torch.float64, (0.0, 1.0)), (torch.float32, (0.1, 0.3))])
def test_an_l1_step_passes_over_what_the_box_stops(dtype, bounds):
    x = torch.tensor([[bounds[1], bounds[0], 0.2, 0.25]], dtype=dtype)
    ends = [torch.tensor(b, dtype=dtype) for b in bounds]
    top = ends[1] if float(ends[1]) <= bounds[1] else torch.nextafter(ends[1], torch.tensor(0.0, dtype=dtype))
    bottom = ends[0] if float(ends[0]) >= bounds[0] else torch.nextafter(ends[0], torch.tensor(1.0, dtype=dtype))
    x[0, 0], x[0, 1] = top, bottom
    for g, moved in (
        ([9.0, -8.0, 0.5, -1.0], 3),
        ([-9.0, -8.0, 0.5, -1.0], 0),
        ([9.0, 8.0, 0.5, -1.0], 1),
    ):
        v = L1(0.1, bounds, density=0).step(x, torch.tensor([g], dtype=dtype), 0.01) - x
        assert v[0].nonzero()[:, 0].tolist() == [moved]
    threat = L1(0.1, bounds)
    assert torch.equal(threat.project(threat.step(x, torch.tensor([[9.0, -8.0, 0.0, 0.0]], dtype=dtype), 0.01), x), x)


def test_an_l1_step_prefers_elements_with_room():
    """What is gained is the gradient times the way that the box leaves free."""
    x = torch.tensor([[0.95, 0.5, 0.5]], dtype=torch.float64)
    g = torch.tensor([[3.0, 1.0, 0.5]], dtype=torch.float64)
    for size, moved in ((0.1, 0), (0.3, 1)):
        v = L1(1, density=0).step(x, g, size) - x
        assert v[0].nonzero()[:, 0].tolist() == [moved]


def test_an_l1_step_does_not_depend_on_roundings_of_equal_gradients():
    x = torch.full((1, 50), 0.5, dtype=torch.float64)
    g = torch.ones_like(x)
    other = g * (1 + 1e-15 * gradients(x))
    assert torch.equal(L1(1, density=0.1).step(x, g, 0.3), L1(1, density=0.1).step(x, other, 0.3))
