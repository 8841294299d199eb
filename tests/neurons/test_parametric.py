"""Learnt leaks and thresholds: by hand, at their borders, in training, and against SpikingJelly."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import spikingjelly.activation_based.neuron
import spikingjelly.activation_based.surrogate
import torch

from snnrobust.evaluation.fingerprint import fingerprint
from snnrobust.models.description import build, describe
from snnrobust.neurons import LIF, PLIF, LearnableThresholdLIF
from snnrobust.neurons.surrogate import ATan, Triangle

jelly, JellyATan = spikingjelly.activation_based.neuron, spikingjelly.activation_based.surrogate.ATan


def _column(*values):
    return torch.tensor(values).view(-1, 1, 1)


def _input(*shape, seed=0, low=-0.5, high=1.2):
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


def test_plif_by_hand():
    """h: .5 | .25+.75=1 fires | .5; with a decayed input of half the size the same from twice the input."""
    x = _column(0.5, 0.75, 0.5)
    assert PLIF(0.5)(x).flatten().tolist() == [0, 1, 0]
    assert PLIF(0.5).membrane(x).flatten().tolist() == [0.5, 0.0, 0.5]
    assert PLIF(0.5, decay_input=True)(2 * x).flatten().tolist() == [0, 1, 0]
    assert PLIF(0.5, decay_input=True).membrane(2 * x).flatten().tolist() == [0.5, 0.0, 0.5]


def test_learnable_threshold_by_hand():
    """Threshold 1; h: .5 | .25+1=1.25, v=.25 | .125. A threshold e^b of 2^-1: every step but the last fires."""
    x = _column(0.5, 1.0, 0.0)
    neuron = LearnableThresholdLIF(0.5)
    assert neuron(x).flatten().tolist() == [0, 1, 0]
    assert neuron.membrane(x).flatten().tolist() == [0.5, 0.25, 0.125]
    with torch.no_grad():
        neuron.log_threshold.fill_(-1.0)  # .3679
    assert neuron(x).flatten().tolist() == [1, 1, 0]  # h: .5, v=.1321 | 1.0661, v=.6982 | .3491


def test_gradients_by_hand():
    """Triangle(1, 4) gives 1 - |h - 1| / 4; x = .5, 1, so h = .5, 1.25.

    ds_2 / d beta = slope_2 v_1, and d beta / d a = beta (1 - beta). ds_t / d theta = -slope_t, and d theta / d b = theta.
    """
    x, slopes = _column(0.5, 1.0), [1 - 0.5 / 4, 1 - 0.25 / 4]
    neuron = LearnableThresholdLIF(0.5, learn_decay=True, surrogate=Triangle(1.0, 4.0))
    neuron(x).sum().backward()
    assert neuron.logit_decay.grad.item() == slopes[1] * 0.5 * 0.25
    assert neuron.log_threshold.grad.item() == -sum(slopes)
    plif = PLIF(0.5, surrogate=Triangle(1.0, 4.0))
    plif(x).sum().backward()
    assert plif.logit_decay.grad.item() == slopes[1] * 0.5 * 0.25


def test_one_value_per_channel():
    neuron, x = PLIF(0.5, features=3), _input(6, 2, 3, 2).float()
    assert neuron.logit_decay.shape == (3,)
    with torch.no_grad():
        neuron.logit_decay.copy_(torch.tensor([-200.0, 0.0, 200.0]))
    assert neuron.decay.tolist() == [0.0, 0.5, 1.0]  # both borders are reached by rounding, and work
    for channel, decay in enumerate([0.0, 0.5, 1.0]):
        assert torch.equal(neuron(x)[:, :, channel], LIF(decay)(x[:, :, channel]))
    threshold = LearnableThresholdLIF(0.5, features=3)
    with torch.no_grad():
        threshold.log_threshold.copy_(torch.tensor([0.5, 1.0, 2.0]).log())
    for channel, value in enumerate(threshold.threshold.tolist()):
        assert torch.equal(threshold(x)[:, :, channel], LIF(0.5, value)(x[:, :, channel]))
    with pytest.raises(ValueError, match="decay has 3 values"):
        neuron(x[:, :, :2])
    with pytest.raises(ValueError, match="threshold has 3 values"):
        threshold(x[:, :, :2])


@pytest.mark.parametrize("value", [1e-6, 0.3, 0.5, 0.95, 0.999])
def test_it_starts_where_it_is_told(value):
    assert PLIF(value).decay.item() == pytest.approx(value, rel=1e-4)
    assert LearnableThresholdLIF(value, learn_decay=True).decay.item() == pytest.approx(value, rel=1e-4)
    assert LearnableThresholdLIF(value).decay == value
    assert LearnableThresholdLIF(threshold=value).threshold.item() == pytest.approx(value, rel=1e-5)
    assert LearnableThresholdLIF(threshold=100 * value).threshold.item() == pytest.approx(100 * value, rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PLIF([0.3, 0.6, 0.9], [0.5, 1.0, 1.5]),
        lambda: PLIF((0.3, 0.6, 0.9), torch.tensor([0.5, 1.0, 1.5]), features=3),
        lambda: PLIF(np.array([0.3, 0.6, 0.9]), np.array([0.5, 1.0, 1.5])),
        lambda: LearnableThresholdLIF([0.3, 0.6, 0.9], [0.5, 1.0, 1.5]),
        lambda: LearnableThresholdLIF(torch.tensor([0.3, 0.6, 0.9]), [0.5, 1.0, 1.5], learn_decay=True),
    ],
)
def test_starts_per_channel(make):
    neuron, x = make(), _input(12, 4, 3, high=1.4).float()
    spikes = neuron(x)
    for channel, (decay, threshold) in enumerate([(0.3, 0.5), (0.6, 1.0), (0.9, 1.5)]):
        assert torch.equal(spikes[:, :, channel], LIF(decay, threshold)(x[:, :, channel]))
    for p in neuron.parameters():
        assert p.shape == (3,)
    state = neuron.initial_state(x[0])
    assert torch.equal(neuron.step(x[0], state)[0], spikes[0])
    again = build(json.loads(json.dumps(describe(neuron))))
    assert repr(again) == repr(neuron)
    again.load_state_dict(neuron.state_dict())
    assert torch.equal(again(x), spikes)


@pytest.mark.parametrize("make", [PLIF, LearnableThresholdLIF, lambda d: LearnableThresholdLIF(d, learn_decay=True)])
def test_another_leak_is_another_model(make):
    """Also where it is no parameter: a stored result is read back by this digest."""
    for one, other in ((0.5, 0.9), ([0.5, 0.5], [0.5, 0.9])):
        assert fingerprint(make(one)) != fingerprint(make(other))
        assert fingerprint(make(one)) == fingerprint(make(one))


def test_what_is_learnt():
    assert [name for name, _ in PLIF().named_parameters()] == ["logit_decay"]
    assert [name for name, _ in LearnableThresholdLIF().named_parameters()] == ["log_threshold"]
    assert {n for n, _ in LearnableThresholdLIF(learn_decay=True).named_parameters()} == {
        "logit_decay",
        "log_threshold",
    }
    assert PLIF(0.3).arguments() == {"decay": 0.3}
    assert LearnableThresholdLIF(0.3, 2.0).arguments() == {"decay": 0.3, "threshold": 2.0}


@pytest.mark.parametrize(
    ("make", "threshold_only"),
    [
        (lambda: PLIF(0.7), False),
        (lambda: LearnableThresholdLIF(0.7, 2.0), True),
        (lambda: LearnableThresholdLIF(0.7, 2.0, features=4, learn_decay=True), False),
    ],
)
def test_learning_brings_the_rate_to_its_aim(make, threshold_only):
    """From a rate that is far off, by gradient descent on the neuron's own values alone."""
    neuron, x = make(), _input(30, 16, 4, low=0.0, high=0.6).float()
    optimiser = torch.optim.Adam(neuron.parameters(), lr=0.05)
    far = (neuron(x).mean() - 0.2).abs().item()
    for _ in range(60):
        loss = (neuron(x).mean(dim=(0, 1)) - 0.2).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    near = (neuron(x).mean() - 0.2).abs().item()
    assert near < 0.01
    assert near < far / 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PLIF(0.0), ValueError, "decay must be in (0, 1], got 0.0"),
        (
            lambda: PLIF(1.0),
            ValueError,
            "decay must be between 0 and 1, and not round to either, to be learnt, got 1.0",
        ),
        (lambda: PLIF(1 - 1e-12), ValueError, "decay must be between 0 and 1, and not round to either"),
        (lambda: PLIF(1e-50), ValueError, "decay must be between 0 and 1, and not round to either"),
        (lambda: PLIF(1.5), ValueError, "decay must be in (0, 1], got 1.5"),
        (
            lambda: PLIF([0.5, 1.0]),
            ValueError,
            "decay must be between 0 and 1, and not round to either, to be learnt, got 1.0",
        ),
        (lambda: PLIF([]), ValueError, "decay must be a number or one number per channel [C], got []"),
        (lambda: PLIF([[0.5]]), TypeError, "decay must be a number, got [0.5]"),
        (lambda: PLIF(None), TypeError, "decay must be a number, got None"),
        (
            lambda: PLIF([0.5, 0.5], features=3),
            ValueError,
            "all must be for the same channels, but decay has 2, features has 3",
        ),
        (
            lambda: PLIF(threshold=[1.0, 2.0], features=3),
            ValueError,
            "all must be for the same channels, but threshold has 2",
        ),
        (
            lambda: LearnableThresholdLIF([0.5, 0.5], [1.0, 1.0, 1.0]),
            ValueError,
            "all must be for the same channels, but decay has 2, threshold has 3",
        ),
        (lambda: LearnableThresholdLIF([0.5, 1.5]), ValueError, "decay must be in [0, 1], got 1.5: use decay=1.0"),
        (lambda: LearnableThresholdLIF(threshold=[1.0, 0.0]), ValueError, "threshold must be in (0, inf], got 0.0"),
        (lambda: PLIF(threshold=0.0), ValueError, "threshold must be in (0, inf], got 0.0"),
        (lambda: PLIF(features=0), ValueError, "features must be at least 1, got 0"),
        (lambda: PLIF(features=2.0), TypeError, "features must be an integer, got 2.0"),
        (lambda: PLIF(decay_input=1), TypeError, "decay_input must be True or False, got 1"),
        (lambda: LearnableThresholdLIF(1.5), ValueError, "decay must be in [0, 1], got 1.5: use decay=1.0"),
        (lambda: LearnableThresholdLIF(1.0, learn_decay=True), ValueError, "decay must be between 0 and 1"),
        (lambda: LearnableThresholdLIF(threshold=0.0), ValueError, "threshold must be in (0, inf], got 0.0"),
        (lambda: LearnableThresholdLIF(threshold=1e-60), ValueError, "threshold must be between 0 and inf"),
        (lambda: LearnableThresholdLIF(threshold=1e60), ValueError, "threshold must be between 0 and inf"),
        (lambda: LearnableThresholdLIF(learn_decay=None), TypeError, "learn_decay must be True or False, got None"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_a_threshold_learnt_down_to_zero_is_named():
    neuron = LearnableThresholdLIF()
    with torch.no_grad():
        neuron.log_threshold.fill_(-200.0)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, inf\]"):
        neuron(torch.ones(2, 1, 1))


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_plif_equals_spikingjelly(tau, decay_input, reset, detach_reset):
    """Their 1 / tau = sigmoid(w) is our 1 - beta = sigmoid(-a), so a = -w, and so are the gradients."""
    theirs = jelly.ParametricLIFNode(
        init_tau=tau,
        decay_input=decay_input,
        v_threshold=0.75,
        v_reset=None if reset == "soft" else 0.0,
        surrogate_function=JellyATan(2.0),
        detach_reset=detach_reset,
        step_mode="m",
    ).double()
    ours = PLIF(1 - 1 / tau, 0.75, None, decay_input, reset, ATan(2.0), detach_reset).double()
    with torch.no_grad():
        ours.logit_decay.copy_(-theirs.w)  # the same rounding
    x, weights = _input(20, 4, 10, high=2.0), _input(20, 4, 10, seed=1, low=-1.0)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, expected = ours(a), theirs(b)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.logit_decay.grad, -theirs.w.grad, rtol=1e-9, atol=1e-12)
