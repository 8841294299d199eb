"""Constants of the neurons: numbers, one per channel, wrong ones; how they are kept and shown."""

from __future__ import annotations

import re

import pytest
import torch

from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Neuron


@pytest.mark.parametrize("make", [LIF, IF, CuBaLIF, ALIF], ids=lambda kind: kind.__name__)
def test_values_per_channel_have_to_fit(make):
    neuron = make([0.5, 0.5])
    for x in (torch.ones(4, 2, 3), torch.ones(4, 2), torch.ones(4, 3, 1, 2)):
        message = re.escape(
            f"2 values, one per channel, which do not fit an input [B, C, ...] of shape {(*x.shape[1:],)}"
        )
        with pytest.raises(ValueError, match=message):
            neuron(x)
        with pytest.raises(ValueError, match=message):
            neuron.step(x[0], neuron.initial_state(x[0]))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([], ValueError, "must be a number or one number per channel [C], got []"),
        ([[0.5]], ValueError, "must be a number or one number per channel [C], got [[0.5]]"),
        (torch.tensor([[0.5]]), ValueError, "must be a number or one number per channel [C], got tensor([[0.5000]])"),
        (torch.tensor(-0.5), ValueError, "got -0.5"),
        (None, TypeError, "must be a number or one number per channel, got None"),
        ([0.5, "a"], TypeError, "must be a number, got 'a'"),
        ([0.5, -1.0], ValueError, "got -1.0"),
        (torch.tensor([0.5, float("nan")]), ValueError, "got nan"),
        (True, TypeError, "must be a number, got True"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LIF, "decay"),
        (LIF, "threshold"),
        (IF, "threshold"),
        (CuBaLIF, "current_decay"),
        (CuBaLIF, "decay"),
        (CuBaLIF, "threshold"),
        (ALIF, "decay"),
        (ALIF, "threshold"),
        (ALIF, "adaptation"),
        (ALIF, "adaptation_decay"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_bad_constants(kind, name, value, error, message):
    with pytest.raises(error, match=f"^{name} .*{re.escape(message)}"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "arguments", "ok"),
    [
        (ALIF, {"adaptation_decay": 1.0, "adaptation": 0.0, "decay": 0.0}, True),
        (ALIF, {"adaptation_decay": 1.01}, False),
        (ALIF, {"adaptation": -0.01}, False),
        (ALIF, {"threshold": 0.0}, False),
        (ALIF, {"decay": 1.01}, False),
        (CuBaLIF, {"current_decay": 1.0, "decay": 0.0}, True),
        (CuBaLIF, {"current_decay": 0.0, "decay": 1.0}, True),
        (CuBaLIF, {"current_decay": 1.01}, False),
        (CuBaLIF, {"decay": 1.01}, False),
        (CuBaLIF, {"threshold": 0.0}, False),
        (IF, {"threshold": [1.0, 0.0]}, False),
    ],
)
def test_borders(kind, arguments, ok):
    if ok:
        kind(**arguments)
    else:
        with pytest.raises(ValueError, match=r"must be in [\[\(]0, "):
            kind(**arguments)


def test_constants_become_buffers_and_numbers_stay_attributes():
    neuron = LIF(torch.tensor([0, 1, 1]), [0.5, 1, 2])
    assert dict(neuron.named_buffers()).keys() == {"decay", "threshold"}
    assert neuron.decay.dtype == neuron.threshold.dtype == torch.float32
    assert neuron.decay.tolist() == [0.0, 1.0, 1.0]
    assert LIF(torch.tensor([0.5], dtype=torch.float64)).decay.dtype == torch.float64
    assert (LIF(1).decay, LIF(1, 2).threshold) == (1.0, 2.0)
    assert LIF(torch.tensor(0.5), torch.tensor(2)).decay == 0.5
    assert not list(LIF(torch.tensor(0.5)).buffers())
    given = torch.tensor([0.5, 0.5])
    neuron = LIF(given)
    given.zero_()
    assert neuron.decay.tolist() == [0.5, 0.5]  # a copy
    assert not list(LIF(0.5, 1.0).buffers())


def test_the_buffers_travel_with_the_state_dict():
    first, second = LIF([0.5, 0.25], [1.0, 2.0]), LIF([0.1, 0.1], [0.1, 0.1])
    second.load_state_dict(first.state_dict())
    x = torch.rand(6, 3, 2)
    assert torch.equal(second(x), first(x))


@pytest.mark.parametrize(
    ("neuron", "text"),
    [
        (LIF(0.5), "LIF(decay=0.5, threshold=1.0, reset='soft', surrogate=ATan(alpha=2.0))"),
        (
            LIF([0.5, 0.25], detach_reset=False, refractory=2),
            "LIF(decay=2 values, threshold=1.0, reset='soft', surrogate=ATan(alpha=2.0), detach_reset=False, refractory=2)",
        ),
        (IF(2.0, "hard"), "IF(threshold=2.0, reset='hard', surrogate=ATan(alpha=2.0))"),
        (
            PLIF(decay_input=True),
            "PLIF(decay=0.5, features=None, decay_input=True, threshold=1.0, reset='soft', surrogate=ATan(alpha=2.0))",
        ),
        (
            LearnableThresholdLIF(features=3),
            "LearnableThresholdLIF(decay=0.95, threshold=1.0, features=3, reset='soft', surrogate=ATan(alpha=2.0))",
        ),
        (
            LearnableThresholdLIF([0.5, 0.6], learn_decay=True),
            "LearnableThresholdLIF(decay=2 values, threshold=1.0, features=None, learn_decay=True, "
            "reset='soft', surrogate=ATan(alpha=2.0))",
        ),
        (CuBaLIF(), "CuBaLIF(current_decay=0.5, decay=0.95, threshold=1.0, reset='soft', surrogate=ATan(alpha=2.0))"),
        (
            ALIF(),
            "ALIF(decay=0.95, threshold=1.0, adaptation=0.2, adaptation_decay=0.98, reset='soft', surrogate=ATan(alpha=2.0))",
        ),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Neuron) else "",
)
def test_repr(neuron, text):
    assert repr(neuron) == text
