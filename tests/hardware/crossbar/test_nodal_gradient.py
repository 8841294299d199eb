"""The adjoint gradient of effective conductances against finite differences."""

import pytest
import torch

from snnrobust.hardware.crossbar import Wires, effective_conductance
from snnrobust.hardware.crossbar import nodal as module

WIRES = Wires(driver=500.0, row=20.0, column=40.0, sense=300.0)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (3, 3), (2, 4, 4), (5, 7)])
def test_gradcheck(shape):
    G = (draw(0, *shape) * 1e4).requires_grad_()  # of order one, for the steps of gradcheck
    torch.autograd.gradcheck(lambda g: effective_conductance(g * 1e-4, WIRES) * 1e4, G)


@pytest.mark.parametrize("shape", [(16, 16), (9, 40), (33, 20), (3, 64)])
def test_directional_derivatives(shape):
    G, generator = draw(1, *shape), torch.Generator().manual_seed(2)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    direction = G * torch.randn(*shape, generator=generator, dtype=torch.float64)
    G.requires_grad_()
    (effective_conductance(G, WIRES) * x).sum().backward()
    h = 1e-5
    with torch.no_grad():
        ahead, behind = (effective_conductance(G + s * h * direction, WIRES) for s in (1, -1))
    expected = ((ahead - behind) * x).sum() / (2 * h)
    torch.testing.assert_close((G.grad * direction).sum(), expected, rtol=1e-7, atol=0)


def test_at_open_and_shorted_cells():
    G = draw(3, 6, 6)
    G[1, 2], G[4, 4] = 0.0, 1e3
    leaf = G.clone().requires_grad_()
    effective_conductance(leaf, WIRES)[0].sum().backward()
    for (i, j), h in {(1, 2): 1e-9, (4, 4): 1e1}.items():
        ahead = G.clone()
        ahead[i, j] += h
        expected = (effective_conductance(ahead, WIRES)[0] - effective_conductance(G, WIRES)[0]).sum() / h
        torch.testing.assert_close(leaf.grad[i, j], expected, rtol=2e-2, atol=1e-15)
    assert leaf.grad[1, 2].abs() > 1e-3  # an open cell has a gradient: it can be learnt


def test_chunks_and_dtypes(monkeypatch):
    G, x = draw(4, 5, 8, 8), torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    leaf = G.clone().requires_grad_()
    (effective_conductance(leaf, WIRES) * x).sum().backward()
    single = G.float().requires_grad_()
    (effective_conductance(single, WIRES) * x.float()).sum().backward()
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad.double(), leaf.grad, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(module, "CHUNK", 1)
    chunked = G.clone().requires_grad_()
    (effective_conductance(chunked, WIRES) * x).sum().backward()
    torch.testing.assert_close(chunked.grad, leaf.grad, rtol=1e-12, atol=0)


def test_only_once():
    G = draw(5, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(effective_conductance(G, WIRES).sum(), G, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
