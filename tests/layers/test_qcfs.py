"""QCFS against its equation, and against the neurons that it stands for."""

import pytest
import torch
from torch import nn

from snnrobust.layers import QCFS
from snnrobust.neurons import PrechargedIF


def literal(x, levels, threshold):
    return torch.tensor([
        threshold / levels * min(max((v * levels / threshold + 0.5) // 1, 0), levels) for v in x.tolist()
    ], dtype=x.dtype)  # fmt: skip


@pytest.mark.parametrize(("levels", "threshold"), [(1, 1.0), (4, 2.0), (5, 0.7), (8, 4.0)])
def test_the_equation(levels, threshold):
    layer = QCFS(levels, threshold).double()
    with torch.no_grad():
        layer.log_threshold.copy_(torch.tensor(threshold, dtype=torch.float64).log())
    x = torch.linspace(-1, 1.5, 999, dtype=torch.float64) * threshold
    torch.testing.assert_close(layer(x), literal(x, levels, threshold))
    assert len(layer(x).detach().unique()) == levels + 1


def test_it_is_the_rate_of_a_neuron_after_so_many_steps():
    levels, threshold = 8, 2.0
    x = torch.linspace(-1, 3, 401)
    spikes = PrechargedIF(threshold)(x.expand(levels, 1, 401))
    torch.testing.assert_close(spikes.mean(0)[0] * threshold, QCFS(levels, threshold)(x).detach())


@pytest.mark.parametrize("T", [3, 8, 20])
def test_for_other_time_steps_in_expectation(T):
    """Inputs spread evenly below the threshold: the mean error is zero whatever T and levels (Bu et al. 2022, theorem 2)."""
    levels, threshold = 4, 1.0
    x = (torch.arange(24000, dtype=torch.float64) + 0.5) / 24000
    rates = PrechargedIF(threshold)(x.expand(T, 1, -1)).mean(0)[0]
    error = rates - QCFS(levels, threshold).double()(x)
    assert error.abs().max() > 0.02
    assert error.mean().abs() < 1e-3


def test_gradients():
    layer = QCFS(4, 2.0)
    x = torch.tensor([-1.0, -0.3, 0.6, 1.4, 1.99, 3.0], requires_grad=True)
    y = layer(x)
    assert y.detach().tolist() == pytest.approx([0.0, 0.0, 0.5, 1.5, 2.0, 2.0])
    of_x, of_log = torch.autograd.grad(y.sum(), [x, layer.log_threshold])
    assert of_x.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    # (y - x) / threshold where the floor passes the gradient, 1 above; by the logarithm times the threshold
    assert of_log.item() == pytest.approx((0.5 - 0.6) + (1.5 - 1.4) + (2.0 - 1.99) + 2.0, abs=1e-6)


def test_its_threshold_is_learnt_and_stays_positive():
    torch.manual_seed(0)
    layer = QCFS(4, 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.rand(256) * 3
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), x).backward()
        optimizer.step()
    assert 2.4 < layer.threshold.item() < 3.6


def test_arguments():
    assert repr(QCFS(4, 2.5)) == "QCFS(levels=4, threshold=2.5)"
    assert QCFS(4).to(torch.bfloat16)(torch.rand(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    for wrong in ({"levels": 0}, {"levels": 1.5}, {"threshold": 0.0}, {"threshold": -1.0}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            QCFS(**wrong)
