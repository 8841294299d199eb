"""Plasticity against literal sums over pairs, and competition against a loop over neurons."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.learning_rules.plasticity import bounded, compete, pair_sums, traces
from snnrobust.neurons.lif import lif


def spikes(*shape, p=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=g) < p).double()


@pytest.mark.parametrize(("tau_plus", "tau_minus"), [(5.0, 5.0), (2.0, 7.0), (0.1, 30.0)])
@pytest.mark.parametrize("analog", [False, True])
def test_pair_sums_are_sums_over_pairs(tau_plus, tau_minus, analog):
    pre, post = spikes(7, 3, 4), spikes(7, 3, 5, seed=1)
    if analog:
        pre = pre * torch.rand(pre.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    potentiation, depression = torch.zeros(5, 4).double(), torch.zeros(5, 4).double()
    for b in range(3):
        for j in range(5):
            for i in range(4):
                for t_post in range(7):
                    for t_pre in range(7):
                        pair = float(pre[t_pre, b, i] * post[t_post, b, j])
                        if t_pre <= t_post:
                            potentiation[j, i] += pair * math.exp(-(t_post - t_pre) / tau_plus)
                        else:
                            depression[j, i] += pair * math.exp(-(t_pre - t_post) / tau_minus)
    found = pair_sums(pre, post, tau_plus, tau_minus)
    torch.testing.assert_close(found, (potentiation, depression), rtol=0, atol=1e-12)
    assert potentiation.all()
    assert depression.all()


def test_one_pair():
    """Input before output strengthens, after it weakens; by hand."""
    early, late = torch.zeros(4, 1, 1), torch.zeros(4, 1, 1)
    early[0] = late[3] = 1.0
    up, nothing = pair_sums(early, late, 2.0, 4.0)
    nothing_too, down = pair_sums(late, early, 2.0, 4.0)
    assert up.item() == pytest.approx(math.exp(-1.5))
    assert down.item() == pytest.approx(math.exp(-0.75))
    assert nothing.item() == nothing_too.item() == 0.0
    together = pair_sums(early, early, 2.0, 4.0)
    assert [t.item() for t in together] == [1.0, 0.0]


def test_traces_decay():
    s = torch.zeros(5, 1, 1)
    s[1], s[3] = 1.0, 2.0
    d = math.exp(-1 / 3)
    expected = torch.tensor([0.0, 1.0, d, d**2 + 2, d**3 + 2 * d])
    torch.testing.assert_close(traces(s, 3.0).flatten(), expected)


# --- competition --------------------------------------------------------------------------------------------------


def by_hand(current, decay, threshold, reset, inhibition):
    steps, batch, neurons = current.shape
    out = torch.zeros_like(current)
    for b in range(batch):
        v = [0.0] * neurons
        for t in range(steps):
            h = [float(decay * v[j] + current[t, b, j]) for j in range(neurons)]
            ratios = [h[j] / float(threshold[j]) for j in range(neurons)]
            winner = max(range(neurons), key=lambda j: ratios[j])
            v = list(h)
            if ratios[winner] >= 1:
                out[t, b, winner] = 1.0
                v = [(1 - inhibition) * h[j] for j in range(neurons)]
                v[winner] = 0.0 if reset == "hard" else h[winner] - float(threshold[winner])
    return out


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("inhibition", [0.0, 0.3, 1.0])
def test_competition_equals_a_loop_over_neurons(reset, inhibition):
    g = torch.Generator().manual_seed(4)
    current = torch.rand(12, 3, 5, generator=g, dtype=torch.float64)
    threshold = 0.8 + torch.rand(5, generator=g, dtype=torch.float64)
    found = compete(current, 0.9, threshold, reset, inhibition)
    assert torch.equal(found, by_hand(current, 0.9, threshold, reset, inhibition))
    assert found.sum() > 10
    assert found.sum(2).max() == 1


def test_alone_a_neuron_is_a_lif_neuron():
    current = torch.rand(20, 6, 1, generator=torch.Generator().manual_seed(5))
    for reset in ("soft", "hard"):
        found = compete(current, 0.9, torch.tensor([1.2]), reset, 1.0)
        assert torch.equal(found, lif(current, 0.9, 1.2, reset))


def test_inhibition_lets_one_neuron_win():
    """Equal neurons but for a little more current of one: without inhibition the others fire in between."""
    current = torch.full((30, 1, 4), 0.3)
    current[..., 2] = 0.31
    threshold = torch.ones(4)
    winners = compete(current, 0.95, threshold, "hard", 1.0).sum((0, 1))
    assert winners[2] > 5
    assert winners.sum() == winners[2]
    assert (compete(current, 0.95, threshold, "hard", 0.0).sum((0, 1)) > 0).all()


# --- bounds -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(0.05, 0.9), st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_weights_are_within_bounds_and_of_one_mean(seed, mean, spread):
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, 9, generator=g, dtype=torch.float64) * spread + mean
    found = bounded(weights, mean)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    torch.testing.assert_close(found.mean(1), torch.full((4,), mean, dtype=torch.float64), rtol=0, atol=1e-12)
    order = weights.clamp(0, 1).argsort(dim=1, stable=True)
    assert (found.gather(1, order).diff(dim=1) >= -1e-12).all()  # no two change places
    torch.testing.assert_close(bounded(found, mean), found, rtol=0, atol=1e-12)


def test_all_zero_and_all_one():
    weights = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert torch.equal(bounded(weights, 0.25), torch.full((2, 2), 0.25))
