"""What every temporal module promises: ``step`` is ``forward``, no state stays behind, and the cost is linear in T."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snnrobust.encoders import Poisson
from snnrobust.layers import BNTT, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF
from snnrobust.temporal import Temporal

LONGEST = 9


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _dyadic(network):
    """Weights in eighths: sums of spikes are exact, whatever the batch size and the order of summation."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for p in module.parameters():
                    p.copy_(torch.randint(-8, 9, p.shape, generator=_generator()) / 8)
            elif isinstance(module, BNTT):
                module.weight.uniform_(0.5, 2.0, generator=_generator())
                module.running_mean.normal_(0.0, 0.2, generator=_generator())
                module.running_var.uniform_(0.2, 1.0, generator=_generator())
    return network.eval()


def _convolutional():
    return Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        BNTT(4, LONGEST),
        LIF(0.9),
        nn.AvgPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Sequential(LIF(0.7, reset="hard"), nn.Linear(6, 3))),
    )


MODULES = {
    "LIF": lambda: LIF(0.9),
    "LIF hard": lambda: LIF(0.9, 0.7, "hard"),
    "IF": IF,
    "BNTT": lambda: BNTT(2, LONGEST),
    "Sequential": _convolutional,
    "Sequential in Sequential": lambda: Sequential(_convolutional(), IF()),
}


def _step_by_step(module, x):
    state, outputs = module.initial_state(x[0]), []
    for x_t in x:
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    return torch.stack(outputs)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(T=st.integers(1, LONGEST), batch=st.integers(1, 5), double=st.booleans(), seed=st.integers(0, 2**32))
def test_step_is_forward_bit_for_bit(make, T, batch, double, seed):
    dtype = torch.float64 if double else torch.float32
    module = _dyadic(make()).to(dtype)
    x = torch.randint(0, 17, (T, batch, 2, 2, 2), generator=_generator(seed)).to(dtype) / 8
    y = module(x)
    assert torch.equal(_step_by_step(module, x), y)
    assert torch.equal(module(x), y)  # nothing stays behind
    shorter = x[: (T + 1) // 2]
    assert torch.equal(module(shorter), y[: len(shorter)])  # and nothing looks ahead


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_step_is_forward(kind):
    """To float64 rounding only: their matrix products have another shape step by step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Sequential(nn.Linear(3, 4), kind(4, 5, num_layers=2), nn.Linear(5, 2), nn.Tanh()).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64, generator=_generator())
    torch.testing.assert_close(_step_by_step(network, x), network(x), rtol=1e-12, atol=1e-14)


# --- cost -----------------------------------------------------------------------------------------------------


class Elements(TorchDispatchMode):
    """Counts the elements of all tensors that operations return."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


def _cost(run, x):
    x = x.clone().requires_grad_()
    with Elements() as elements:
        torch.autograd.grad(run(x).sum(), x)
    return elements.count


def _nodes(y):
    """Nodes of the autograd graph behind ``y``."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


class Indexes(Temporal):
    """The mistake: indexing makes the backward pass quadratic in T."""

    def forward(self, x):
        return torch.stack([x[t] for t in range(len(x))])


COSTS = {
    "LIF": lambda: LIF(),
    "LIF hard": lambda: LIF(reset="hard"),
    "BNTT training": lambda: BNTT(3, LONGEST),
    "BNTT eval": lambda: BNTT(3, LONGEST).eval(),
    "MeanMembrane": MeanMembrane,
    "MeanOutput": MeanOutput,
    "SpikeCount": SpikeCount,
    "Sequential": lambda: Sequential(nn.Linear(3, 4), BNTT(4, LONGEST), LIF(), nn.Linear(4, 2)),
}


def _quadratic_part(cost):
    return cost(LONGEST) - 2 * cost(LONGEST * 2 // 3) + cost(LONGEST // 3)


@pytest.mark.parametrize("make", COSTS.values(), ids=COSTS)
def test_cost_is_linear_in_time(make):
    module = make()
    assert _quadratic_part(lambda T: _cost(module, torch.rand(T, 5, 3))) == 0
    assert _quadratic_part(lambda T: _nodes(module(torch.rand(T, 5, 3, requires_grad=True)))) == 0


def test_cost_of_a_classifier_is_linear_in_time():
    network = Sequential(nn.Linear(3, 4), BNTT(4, LONGEST), LIF(), nn.Linear(4, 2))
    assert _quadratic_part(lambda T: _cost(SpikingClassifier(Poisson(T), network, MeanOutput()), torch.rand(5, 3))) == 0


def test_the_measure_finds_a_quadratic_cost():
    assert _quadratic_part(lambda T: _cost(Indexes(), torch.rand(T, 5, 3))) > 0


def test_neurons_are_one_node_for_any_time():
    assert {_nodes(LIF()(torch.rand(T, 2, 3, requires_grad=True))) for T in (1, 5, 50)} == {2}  # and the input's own


def test_base_class_names_what_is_missing():
    with pytest.raises(NotImplementedError):
        Temporal()(torch.ones(2, 3))
