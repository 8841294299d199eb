"""NaN, infinite and huge potentials: a number that is none must not turn into a confident one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from snnrobust import SpikingClassifier, checks
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Recurrent
from snnrobust.neurons.surrogate import ATan, spike

FUSED = [lambda: LIF(0.5), lambda: LIF(0.5, reset="hard"), IF, PLIF, LearnableThresholdLIF, CuBaLIF]
STEPPED = [ALIF, lambda: ALIF(reset="hard"), lambda: Recurrent(1)]


@pytest.mark.parametrize("make", [*FUSED, *STEPPED, lambda: LIF(refractory=1), lambda: ALIF(refractory=1)])
@pytest.mark.parametrize("when", [0, 2, 3])
def test_nan_stays_and_shows_at_the_last_step(make, when):
    """Checking each value would cost a pass over the sequence; NaN stays in a membrane, so one look at the end is enough."""
    neuron, x = make(), torch.full((4, 2, 1), 0.25)
    x[when, 0] = math.nan
    with torch.no_grad():
        spikes, clean = neuron(x), neuron(torch.full((4, 2, 1), 0.25))
    assert spikes[-1, 0].isnan().all()
    assert torch.equal(spikes[:, 1], clean[:, 1])  # the other sample
    assert torch.equal(spikes[:when], clean[:when])


@pytest.mark.parametrize("make", [*FUSED, *STEPPED])
def test_a_stream_is_nan_from_then_on(make):
    neuron, x = make(), torch.full((4, 1, 1), 0.25)
    x[1] = math.nan
    state, shown = neuron.initial_state(x[0]), []
    for x_t in x:
        s, state = neuron.step(x_t, state)
        shown.append(s.isnan().item())
    assert shown == [False, True, True, True]


def test_spike_keeps_nan_only():
    u = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30])
    s = spike(u, ATan())
    assert s[0].isnan()
    assert s[1:].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("make", [*FUSED, ALIF])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("value", [1e30, -1e30])
def test_huge_values_are_ordinary_ones(make, value, reset):
    neuron, x = make(), torch.full((5, 1, 1), value, requires_grad=True)
    neuron.reset = reset
    spikes = neuron(x)
    assert (spikes == (1.0 if value > 0 else 0.0)).all()
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert gradient.isfinite().all()


def test_infinite_input():
    x = torch.tensor([math.inf, 0.0, 0.0]).view(3, 1, 1)
    assert IF()(x).flatten().tolist() == [1, 1, 1]  # inf - 1 is inf
    assert IF()(-x).flatten().tolist() == [0, 0, 0]
    hard = IF(reset="hard")
    assert hard(x)[-1].isnan().all()  # inf * 0
    assert hard(x[:1]).item() == hard.step(x[0], hard.initial_state(x[0]))[0].item() == 1  # it fired before that
    assert IF(refractory=1)(torch.tensor([1.0, math.inf, 0.0]).view(3, 1, 1))[-1].isnan().all()  # inf * 0


def _model(encoder, readout):
    torch.manual_seed(0)
    return SpikingClassifier(encoder, Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3), IF()), readout)


@pytest.mark.parametrize("readout", [MeanOutput, MeanMembrane, SpikeCount])
@pytest.mark.parametrize("encoder", [Direct, Poisson])
def test_a_classifier_is_never_confident_about_nan(encoder, readout):
    model, x = _model(encoder(4), readout()), torch.rand(2, 4)
    assert model(x).isfinite().all()
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="x contains NaN"):
        model(x)
    with pytest.raises(ValueError, match="x contains NaN"):
        next(iter(model.stream(x)))


@pytest.mark.parametrize("readout", [MeanOutput, MeanMembrane, SpikeCount])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_weight_that_is_nan_reaches_the_logits(layer, readout):
    """A diverged weight makes NaN logits, which attacks and evaluations refuse, instead of a silent neuron."""
    model, x = _model(Direct(4), readout()), torch.rand(2, 4)
    with torch.no_grad():
        model.network[layer].weight[0, 0] = math.nan
        assert model(x).isnan().any(1).all()
        assert list(model.stream(x))[-1].isnan().any(1).all()
        with pytest.raises(ValueError, match="the model returned NaN logits"):
            checks.call(model, x, torch.tensor([0, 1]))


@pytest.mark.parametrize("make", [lambda: PLIF(), lambda: LearnableThresholdLIF()])
def test_a_learnt_value_that_is_nan_is_named(make):
    neuron = make()
    with torch.no_grad():
        next(iter(neuron.parameters())).fill_(math.nan)
    with pytest.raises(ValueError, match="must be in"):
        neuron(torch.ones(2, 1, 1))
