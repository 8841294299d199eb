"""Readouts against their closed forms and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnrobust.layers import READOUTS, LastOutput, MeanMembrane, MeanOutput, SpikeCount


def _weights(readout, T):
    """logits = sum_t w_t x_t: the closed form of each readout."""
    if isinstance(readout, SpikeCount):
        return [1.0] * T
    if isinstance(readout, LastOutput):
        return [0.0] * (T - 1) + [1.0]
    if isinstance(readout, MeanOutput):
        return [1 / T] * T
    return [sum(readout.decay**k for k in range(T - t)) / T for t in range(T)]


CASES = [
    MeanMembrane(),
    MeanMembrane(0.0),
    MeanMembrane(0.5),
    MeanMembrane(1.0),
    MeanOutput(),
    SpikeCount(),
    LastOutput(),
]


@pytest.mark.parametrize("readout", CASES, ids=str)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(T=st.integers(1, 9), batch=st.integers(1, 4), classes=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_equals_the_closed_form(readout, T, batch, classes, seed):
    x = torch.randn(T, batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    state = readout.initial_state(x[0])
    for t in range(1, T + 1):
        logits, state = readout.step(x[t - 1], state)
        expected = torch.einsum("t,tbk->bk", torch.tensor(_weights(readout, t), dtype=torch.float64), x[:t])
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(logits, readout(x[:t]))  # the same order of summation
    assert logits.shape == (batch, classes)


@pytest.mark.parametrize("readout", CASES, ids=str)
def test_gradient(readout):
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(readout, (x,))
    (gradient,) = torch.autograd.grad(readout(x).sum(), x)
    expected = torch.tensor(_weights(readout, 5), dtype=torch.float64).view(5, 1, 1).expand(5, 2, 3)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_numbers_by_hand():
    x = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    assert MeanMembrane(0.5)(x).item() == (1 + 0.5 + 2.25) / 3
    assert MeanMembrane(1.0)(x).item() == (1 + 1 + 3) / 3
    assert MeanOutput()(x).item() == 1.0
    assert SpikeCount()(x).item() == 3.0
    assert LastOutput()(x).item() == 2.0
    assert MeanMembrane().decay == 0.95


def test_every_readout_is_tested_and_registered():
    assert {type(c).__name__ for c in CASES} == {n for n, r in READOUTS.items() if "snnrobust" in r.__module__}


@pytest.mark.parametrize("readout", CASES, ids=str)
@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.ones(3, 2), ValueError), (torch.ones(0, 2, 3), ValueError), (torch.ones(2, 2, 3).long(), TypeError)],
)
def test_bad_input(readout, x, error):
    with pytest.raises(error, match="x must be"):
        readout(x)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\], got {decay}"):
        MeanMembrane(decay)
