"""The loop over time costs time and memory in proportion to T, forward and backward: counted, not clocked."""

from __future__ import annotations

import pytest
import torch

from snnrobust.layers import Sequential
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Recurrent
from snnrobust.neurons.surrogate import SpikeTime


def _cost(meter, module, T):
    x = torch.rand(T, 2, 3, requires_grad=True)
    with meter() as forward:
        spikes = module(x)
    with meter() as backward:
        spikes.sum().backward()
    return [forward.kernels, forward.bytes, backward.kernels, backward.bytes]


@pytest.mark.parametrize(
    "module",
    [
        LIF(0.9),
        LIF([0.9] * 3, detach_reset=False, refractory=2, surrogate=SpikeTime()),
        IF(reset="hard"),
        PLIF(features=3, decay_input=True),
        LearnableThresholdLIF(learn_decay=True),
        CuBaLIF(),
        ALIF(refractory=1),
        Recurrent(3),
        Sequential(torch.nn.Linear(3, 3), LIF(0.9), torch.nn.Linear(3, 3), ALIF()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_cost_is_linear_in_time(meter, module):
    costs = [torch.tensor(_cost(meter, module, T)) for T in (16, 32, 64)]
    assert (costs[0] > 0).all()
    assert torch.equal(costs[2] - costs[1], 2 * (costs[1] - costs[0])), costs


def test_the_meter_sees_what_indexing_costs(meter):
    """Each ``x[t]`` allocates a gradient of the size of ``x``."""

    class Indexed(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[t] * 2.0 for t in range(len(x))])

    costs = [_cost(meter, Indexed(), T)[3] for T in (16, 32, 64)]
    assert costs[2] - costs[1] > 3 * (costs[1] - costs[0])
