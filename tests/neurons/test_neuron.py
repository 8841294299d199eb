"""What holds for every neuron: equal to a plain float64 loop, forward and backward; ``step``, ``membrane``, types, shapes."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.neurons import (
    ALIF,
    IF,
    LIF,
    NEURONS,
    PLIF,
    CuBaLIF,
    LearnableThresholdLIF,
    Neuron,
    PrechargedIF,
    Recurrent,
)
from snnrobust.neurons.surrogate import SURROGATES, SpikeTime

properties = settings(max_examples=40, deadline=None, derandomize=True)

C = 3
LEAKS, THRESHOLDS, OTHERS = [0.5, 0.9, 1.0], [0.7, 1.0, 1.4], [0.25, 0.0, 0.6]


def _channels(*values):
    return torch.tensor(values, dtype=torch.float64)


# name: (make it with the common arguments, its parameters for the reference loop)
CASES = {
    "IF": (lambda **k: IF(0.8, **k), lambda n: {"decay": 1.0, "threshold": 0.8}),
    "IF, channels": (lambda **k: IF(THRESHOLDS, **k), lambda n: {"decay": 1.0, "threshold": n.threshold}),
    "PrechargedIF": (
        lambda **k: PrechargedIF(0.8, 0.75, **k),
        lambda n: {"decay": 1.0, "threshold": 0.8, "initial": 0.75},
    ),
    "PrechargedIF, channels": (
        lambda **k: PrechargedIF(THRESHOLDS, **k),
        lambda n: {"decay": 1.0, "threshold": n.threshold, "initial": 0.5},
    ),
    "LIF": (lambda **k: LIF(0.9, 0.8, **k), lambda n: {"decay": 0.9, "threshold": 0.8}),
    "LIF, channels": (
        lambda **k: LIF(LEAKS, THRESHOLDS, **k),
        lambda n: {"decay": n.decay, "threshold": n.threshold},
    ),
    "PLIF": (lambda **k: PLIF(0.7, 0.8, **k), lambda n: {"decay": n.logit_decay.sigmoid(), "threshold": 0.8}),
    "PLIF, channels": (
        lambda **k: PLIF(0.7, features=C, **k),
        lambda n: {"decay": n.logit_decay.sigmoid(), "threshold": 1.0},
    ),
    "PLIF, decayed input": (
        lambda **k: PLIF(0.4, 0.5, features=C, decay_input=True, **k),
        lambda n: {"decay": n.logit_decay.sigmoid(), "threshold": 0.5, "scale": 1 - n.logit_decay.sigmoid()},
    ),
    "LearnableThresholdLIF": (
        lambda **k: LearnableThresholdLIF(0.9, 0.8, **k),
        lambda n: {"decay": 0.9, "threshold": n.log_threshold.exp()},
    ),
    "LearnableThresholdLIF, both, channels": (
        lambda **k: LearnableThresholdLIF(0.9, 0.8, features=C, learn_decay=True, **k),
        lambda n: {"decay": n.logit_decay.sigmoid(), "threshold": n.log_threshold.exp()},
    ),
    "ALIF": (
        lambda **k: ALIF(0.9, 0.8, 0.3, 0.7, **k),
        lambda n: {"decay": 0.9, "threshold": 0.8, "adaptation": 0.3, "adaptation_decay": 0.7},
    ),
    "ALIF, channels": (
        lambda **k: ALIF(LEAKS, THRESHOLDS, OTHERS, LEAKS[::-1], **k),
        lambda n: {
            "decay": n.decay,
            "threshold": n.threshold,
            "adaptation": n.adaptation,
            "adaptation_decay": n.adaptation_decay,
        },
    ),
    "CuBaLIF": (
        lambda **k: CuBaLIF(0.6, 0.9, 0.8, **k),
        lambda n: {"decay": 0.9, "threshold": 0.8, "current_decay": 0.6},
    ),
    "CuBaLIF, channels": (
        lambda **k: CuBaLIF(OTHERS, LEAKS, THRESHOLDS, **k),
        lambda n: {"decay": n.decay, "threshold": n.threshold, "current_decay": n.current_decay},
    ),
    "Recurrent": (
        lambda **k: Recurrent(C, LIF(0.9, 0.8, **k)),
        lambda n: {"decay": 0.9, "threshold": 0.8, "weight": n.recurrent.weight},
    ),
    "Recurrent ALIF": (
        lambda **k: Recurrent(C, ALIF(0.9, 0.8, 0.3, 0.7, **k)),
        lambda n: {
            "decay": 0.9,
            "threshold": 0.8,
            "adaptation": 0.3,
            "adaptation_decay": 0.7,
            "weight": n.recurrent.weight,
        },
    ),
}
rules = st.fixed_dictionaries(
    {
        "reset": st.sampled_from(["soft", "hard"]),
        "detach_reset": st.booleans(),
        "refractory": st.sampled_from([0, 0, 1, 2, 5]),
    }
)


def _make(case, seed=0, dtype=torch.float64, **rule):
    """A neuron of this case whose learnt values differ from where they start."""
    torch.manual_seed(seed)
    neuron = CASES[case][0](**rule).to(dtype)
    for p in neuron.parameters():
        nn.init.uniform_(p, p.min().item() - 0.4, p.min().item() + 0.4)
    return neuron


def _input(*shape, seed=0, low=-0.4, high=1.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator).to(dtype)


def _streamed(neuron, x):
    state, outputs = neuron.initial_state(x[0]), []
    for x_t in x:
        s, state = neuron.step(x_t, state)
        outputs.append(s)
    return torch.stack(outputs)


def _gradients(spikes, weights, x, neuron):
    parameters = list(neuron.parameters())
    return torch.autograd.grad((spikes * weights).sum(), [x, *parameters])


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def test_there_is_a_case_for_every_neuron():
    assert {*NEURONS, "Recurrent"} == {name.split()[0].strip(",") for name in CASES}
    assert all(issubclass(kind, Neuron) and kind.__name__ == name for name, kind in NEURONS.items())


# --- against the loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_spikes_and_gradients_are_those_of_a_plain_loop(case, reset, detach_reset, name, reference):
    surrogate, slope = reference.slopes[name]
    for refractory in (0, 2):
        rule = {"reset": reset, "detach_reset": detach_reset, "refractory": refractory}
        neuron = _make(case, surrogate=surrogate, **rule)
        x, weights = _input(13, 2, C).requires_grad_(), _input(13, 2, C, seed=1, low=-1.0, high=1.0)
        expected, _ = reference.run(x, slope, **CASES[case][1](neuron), **rule)
        spikes = neuron(x)
        assert torch.equal(spikes, expected)
        assert spikes.sum() > 4
        ours, theirs = (_gradients(s, weights, x, neuron) for s in (spikes, expected))
        stepped = _gradients(_streamed(neuron, x), weights, x, neuron)
        for g, by_step, g_expected in zip(ours, stepped, theirs, strict=True):
            assert g_expected.abs().max() > 1e-4
            torch.testing.assert_close(g, g_expected, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(by_step, g_expected, rtol=1e-9, atol=1e-11)


@properties
@given(
    case=st.sampled_from(sorted(CASES)),
    rule=rules,
    T=st.integers(1, 9),
    B=st.integers(0, 3),
    rest=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_step_is_forward_to_the_bit(case, rule, T, B, rest, dtype, seed):
    rest = [] if case.startswith("Recurrent") else rest
    neuron, x = _make(case, seed, dtype, **rule), _input(T, B, C, *rest, seed=seed, dtype=dtype)
    before, spikes = x.clone(), neuron(x)
    assert spikes.shape == x.shape
    assert spikes.dtype == dtype
    assert ((spikes == 0) | (spikes == 1)).all()
    assert torch.equal(x, before)
    assert torch.equal(_streamed(neuron, x), spikes)


@properties
@given(case=st.sampled_from(sorted(CASES)), rule=rules, T=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_spikes_and_membranes_of_images_are_those_of_a_plain_loop(reference, case, rule, T, seed):
    shape = (T, 2, C) if case.startswith("Recurrent") else (T, 2, C, 2, 1)
    neuron, x = _make(case, seed, **rule), _input(*shape, seed=seed)
    spikes, potentials = reference.run(x, reference.slopes["ATan"][1], **CASES[case][1](neuron), **rule)
    assert torch.equal(neuron(x), spikes)
    torch.testing.assert_close(neuron.membrane(x), potentials, rtol=1e-12, atol=1e-12)


def test_the_membrane_has_no_gradient_and_shows_the_reset(case):
    neuron = _make(case, reset="hard")
    x = _input(8, 2, C).requires_grad_()
    v, spikes = neuron.membrane(x), neuron(x)
    assert not v.requires_grad
    assert v.shape == x.shape
    assert (v[spikes == 1] == 0).all()
    assert (v[spikes == 0] != 0).any()


def test_neurons_of_a_batch_do_not_see_each_other(case):
    neuron, x = _make(case), _input(6, 4, C)
    assert torch.equal(neuron(x)[:, 1:3], neuron(x[:, 1:3]))


def test_two_forwards_are_equal(case):
    neuron, x = _make(case, refractory=1), _input(6, 2, C)
    assert torch.equal(neuron(x), neuron(x))


# --- dtypes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_another_dtype_leave_the_type_of_the_input(case, dtype):
    neuron = _make(case, dtype=torch.float32)
    if isinstance(neuron, Recurrent):
        pytest.skip("its weight is an nn.Linear, which takes its own dtype")
    x = _input(6, 2, C, dtype=dtype).requires_grad_()
    spikes = neuron(x)
    assert spikes.dtype == dtype
    stepped = _streamed(neuron, x)
    assert stepped.dtype == dtype
    assert torch.equal(stepped, spikes)
    for gradient, p in zip(_gradients(spikes, torch.ones_like(x), x, neuron), [x, *neuron.parameters()], strict=True):
        assert gradient.dtype == p.dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: IF(refractory=300), lambda: ALIF(1.0, 1.0, 0.0, refractory=300)])
def test_half_precision_counts_long_refractory_periods(make, dtype):
    """bfloat16 has no 257: a count kept in it would never end the period."""
    spikes = make()(torch.ones(700, 1, 1, dtype=dtype)).flatten()
    assert spikes.nonzero().flatten().tolist() == [0, 301, 602]


def test_long_silence_is_timed_in_half_precision():
    x = torch.zeros(400, 1, 1, dtype=torch.bfloat16)
    x[0] = 1.0
    x.requires_grad_()
    neuron = LIF(0.0, surrogate=SpikeTime(1.0, 0.01))
    for forward in (neuron, lambda x: _streamed(neuron, x)):
        (gradient,) = torch.autograd.grad(forward(x).sum(), x)
        assert gradient[-1].item() == pytest.approx(2.718281828 ** (-0.01 * 399), rel=0.02)


# --- shapes and values ----------------------------------------------------------------------------------------


def test_empty_batch(case):
    neuron, x = _make(case), torch.zeros(4, 0, C, dtype=torch.float64, requires_grad=True)
    assert neuron(x).shape == (4, 0, C)
    assert _streamed(neuron, x).shape == (4, 0, C)
    for gradient in _gradients(neuron(x), x.detach(), x, neuron):
        assert (gradient == 0).all()


def test_non_contiguous(case):
    neuron, x, weights = _make(case, detach_reset=False), _input(6, 4, C), _input(6, 4, C, seed=1)
    expected = _gradients(neuron(x.requires_grad_()), weights, x, neuron)
    for mangle in (
        lambda a: a.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        lambda a: a.repeat_interleave(2, 1)[:, ::2],
        lambda a: a.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        y, w = mangle(x.detach()).requires_grad_(), mangle(weights)
        assert not y.is_contiguous()
        assert torch.equal(neuron(y), neuron(x))
        for ours, theirs in zip(_gradients(neuron(y), w, y, neuron), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    still = x.detach()[:1].expand(6, -1, -1)
    assert torch.equal(neuron(still), neuron(still.contiguous()))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.tensor(1.0), ValueError),
        (torch.ones(3), ValueError),
        (torch.ones(0, 2, C), ValueError),
        (torch.ones(2, 2, C, dtype=torch.long), TypeError),
        (torch.ones(2, 2, C, dtype=torch.bool), TypeError),
        ([1.0], TypeError),
    ],
    ids=lambda v: str(tuple(v.shape)) if isinstance(v, torch.Tensor) else "",
)
def test_bad_input(case, x, error):
    neuron = _make(case)
    for function in (neuron, neuron.membrane):
        with pytest.raises(error, match=r"^x must be "):
            function(x)


def test_a_stream_of_integers_is_refused(case):
    neuron, x_t = _make(case), torch.ones(2, C, dtype=torch.long)
    with pytest.raises(TypeError, match=r"x_t must be floating, got torch.int64: convert with x_t.float\(\)"):
        neuron.initial_state(x_t)


def test_a_state_of_another_batch_is_refused(case):
    neuron = _make(case)
    for one, other in ((1, 4), (4, 1), (2, 3)):
        state = neuron.initial_state(torch.zeros(one, C, dtype=torch.float64))
        with pytest.raises(ValueError, match=rf"^the state is one of inputs \({one}, 3\) .*: begin with initial_state"):
            neuron.step(torch.zeros(other, C, dtype=torch.float64), state)
    with pytest.raises(
        ValueError, match=r"^the state is one of inputs \(2, 3\) of torch.float64, and .* of torch.float32"
    ):
        neuron.step(torch.zeros(2, C), neuron.initial_state(torch.zeros(2, C, dtype=torch.float64)))


def test_a_rule_that_was_set_to_nonsense_is_noticed(case):
    x = _input(4, 2, C)
    for name, value in (("reset", "none"), ("surrogate", None), ("detach_reset", 1), ("refractory", -1)):
        neuron = _make(case)
        setattr(neuron.neuron if isinstance(neuron, Recurrent) else neuron, name, value)
        for run in (neuron, lambda x, neuron=neuron: neuron.initial_state(x[0])):
            with pytest.raises((ValueError, TypeError), match=f"^{name} must be"):
                run(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reset": "none"}, ValueError, "reset must be one of soft, hard; got 'none'"),
        ({"surrogate": "ATan"}, TypeError, "surrogate must be a Surrogate such as ATan(2.0), got 'ATan'"),
        ({"detach_reset": 1}, TypeError, "detach_reset must be True or False, got 1"),
        ({"refractory": -1}, ValueError, "refractory must be at least 0, got -1"),
        ({"refractory": 1.0}, TypeError, "refractory must be an integer, got 1.0"),
        ({"refractory": 1000}, ValueError, "refractory must be below 1000 steps, got 1000: use a shorter period"),
    ],
)
def test_bad_rules(case, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        CASES[case][0](**arguments)


def test_the_longest_refractory_period_lets_the_first_spike_through(case):
    spikes = _make(case, refractory=999)(torch.full((30, 1, C), 2.0, dtype=torch.float64))
    assert (spikes.sum(0) == 1).all()
