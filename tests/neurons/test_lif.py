"""LIF and IF against traces worked out by hand, a plain Python loop, SpikingJelly and snnTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import snntorch
import spikingjelly.activation_based.neuron
import spikingjelly.activation_based.surrogate
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch.surrogate import atan

from snnrobust.neurons import IF, LIF, lif
from snnrobust.neurons.surrogate import SURROGATES, ATan, Sigmoid, Surrogate, Triangle

jelly, JellyATan = spikingjelly.activation_based.neuron, spikingjelly.activation_based.surrogate.ATan
properties = settings(max_examples=60, deadline=None, derandomize=True)


def _input(*shape, seed=0, low=-0.5, high=1.2, dtype=torch.float32):
    """Synaptic currents around the threshold 1."""
    return torch.empty(shape, dtype=dtype).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


def _gradient(function, x, weights):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((function(x) * weights).sum(), x)[0]


# --- by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neuron", "x", "spikes"),
    [
        # h: .5 | .25+.75=1 exactly at the threshold, v=0 | .25 | .125+1.5=1.625, v=.625 | .3125
        (LIF(0.5), [0.5, 0.75, 0.25, 1.5, 0.0], [0, 1, 0, 1, 0]),
        # h: 1.5, v=.5 | .25+.75=1 fires; hard: 1.5, v=0 | .75
        (LIF(0.5), [1.5, 0.75], [1, 1]),
        (LIF(0.5, reset="hard"), [1.5, 0.75], [1, 0]),
        # h: .75 | 1.5, v=.5 | 1.25, v=.25 | 1, v=0 | .75; hard: .75 | 1.5, v=0 | .75 | 1.5, v=0 | .75
        (IF(), [0.75] * 5, [0, 1, 1, 1, 0]),
        (IF(reset="hard"), [0.75] * 5, [0, 1, 0, 1, 0]),
        # h: 3, v=2 | 2, v=1 | 1, v=0 | 0: at most one spike a step
        (IF(), [3.0, 0.0, 0.0, 0.0], [1, 1, 1, 0]),
        # h: -1 | -.5+1.5=1 | 0
        (LIF(0.5), [-1.0, 1.5, 0.0], [0, 1, 0]),
        # decay 0 has no memory; h = x
        (LIF(0.0), [0.9, 0.9, 1.0, -5.0, 1.1], [0, 0, 1, 0, 1]),
        # threshold 2, h: 1.5 | 1.5+.75=2.25, v=.25 | 1.75 | 2, v=0
        (IF(threshold=2.0), [1.5, 0.75, 1.5, 0.25], [0, 1, 0, 1]),
    ],
)
def test_membrane_traces_by_hand(neuron, x, spikes):
    assert neuron(torch.tensor(x).view(-1, 1, 1)).flatten().tolist() == spikes


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_gradient_by_hand(reset):
    """Triangle(1, 4) gives 1 - |h - 1| / 4. Soft: h = .5, 1.25 (spike, v = .25), .875. Hard: v = 0, so h_3 = .75."""
    x = torch.tensor([0.5, 1.0, 0.75], dtype=torch.float64).view(3, 1, 1)
    gradient = _gradient(LIF(0.5, reset=reset, surrogate=Triangle(1.0, 4.0)), x, torch.ones_like(x)).flatten().tolist()
    first, second = 1 - 0.5 / 4, 1 - 0.25 / 4
    if reset == "soft":
        third = 1 - 0.125 / 4
        expected = [first + 0.5 * (second + 0.5 * third), second + 0.5 * third, third]
    else:  # the spike at step 2 cuts the path through v_2
        third = 1 - 0.25 / 4
        expected = [first + 0.5 * second, second, third]
    assert gradient == expected


@pytest.mark.parametrize(
    ("neuron", "x", "spikes", "potentials"),
    [
        # leaks go on, input is ignored: h 1.5, v=.5 | .25 | .125 | .0625+1=1.0625, v=.0625 | .03125
        (LIF(0.5, refractory=2), [1.5, 4, 4, 1, 0.5], [1, 0, 0, 1, 0], [0.5, 0.25, 0.125, 0.0625, 0.03125]),
        # what is left above the threshold fires after the period: h 3, v=2 | 2 | 2, v=1 | 1 | 1, v=0
        (IF(refractory=1), [3, 0, 0, 0, 0], [1, 0, 1, 0, 1], [2, 2, 1, 1, 0]),
        # h 1.5, v=0 | 0 | .75 | .375+.75=1.125, v=0
        (LIF(0.5, reset="hard", refractory=1), [1.5, 9, 0.75, 0.75], [1, 0, 0, 1], [0, 0, 0.75, 0]),
    ],
)
def test_refractory_period_and_membrane_by_hand(neuron, x, spikes, potentials):
    x = torch.tensor(x).float().view(-1, 1, 1)
    assert neuron(x).flatten().tolist() == spikes
    assert neuron.membrane(x).flatten().tolist() == potentials


def test_values_per_channel_by_hand():
    """Leaks 0, .5, 1 and thresholds 1, 1, 2. h: (.75, .75, .75) | (.75, 1.125, 1.5) | (.75, .8125, 2.25)."""
    neuron, x = LIF([0.0, 0.5, 1.0], [1.0, 1.0, 2.0]), torch.full((3, 1, 3, 1), 0.75)
    assert neuron(x)[:, 0, :, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert neuron.membrane(x)[:, 0, :, 0].tolist() == [[0.75, 0.75, 0.75], [0.75, 0.125, 1.5], [0.75, 0.8125, 0.25]]


@pytest.mark.parametrize(("reset", "expected"), [("soft", 0.5 * (1 - 0.9375)), ("hard", 0.5 * (0 - 0.9375 * 1.25))])
def test_gradient_of_a_reset_that_is_not_detached_by_hand(reset, expected):
    """Triangle(1, 4) at h = 1.25 is .9375; dv_1/dh_1 = 1 - .9375 (soft), 0 - .9375 h (hard)."""
    x = torch.tensor([1.25, 0.0], dtype=torch.float64).view(2, 1, 1)
    neuron = LIF(0.5, reset=reset, surrogate=Triangle(1.0, 4.0), detach_reset=False)
    last = 1 - (1 - (0.125 if reset == "soft" else 0.0)) / 4
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    assert _gradient(neuron, x, weights).flatten().tolist() == [last * expected, last]


# --- finite differences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize(
    ("surrogate", "primitive"),
    [(ATan(2.0), lambda u: torch.atan(torch.pi * u) / torch.pi), (Sigmoid(3.0), lambda u: torch.sigmoid(3 * u))],
)
def test_gradient_is_a_finite_difference_of_the_primitive(surrogate, primitive, reset, refractory):
    """Given the spikes that reset it, the membrane is smooth in input, leaks and thresholds, and with the surrogate's primitive
    for a spike so is the output: its numerical derivative is the gradient with the reset detached."""
    x, weights = _input(7, 2, 3, low=0.0, dtype=torch.float64), _input(7, 2, 3, seed=1, low=-1.0, dtype=torch.float64)
    decay, threshold = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.8, 1.0], [0.7, 0.9, 1.1]))
    spikes = lif(x, decay, threshold, reset, surrogate, refractory=refractory)
    assert spikes.sum() > 6

    def smooth(x, decay, threshold):
        total, v, since = 0.0, torch.zeros_like(x[0]), torch.full_like(x[0], 99.0)
        for x_t, s_t, w_t in zip(x, spikes, weights, strict=True):
            free = since > refractory
            h = decay * v + torch.where(free, x_t, 0.0)
            total += (torch.where(free, primitive(h - threshold), 0.0) * w_t).sum()
            v = h - threshold * s_t if reset == "soft" else h * (1 - s_t)
            since = torch.where(s_t == 1, 1.0, since + 1)
        return total

    inputs = [v.requires_grad_() for v in (x, decay, threshold)]
    total = (lif(*inputs, reset, surrogate, refractory=refractory) * weights).sum()
    gradients = torch.autograd.grad(total, inputs)
    with torch.no_grad():
        for i, (value, gradient) in enumerate(zip(inputs, gradients, strict=True)):
            for index in range(value.numel()):
                sides = []
                for shift in (1e-6, -1e-6):
                    moved = [v.clone() for v in inputs]
                    moved[i].view(-1)[index] += shift
                    sides.append(smooth(*moved))
                difference = (sides[0] - sides[1]) / 2e-6
                assert gradient.view(-1)[index].item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-8)


# --- a plain loop ---------------------------------------------------------------------------------------------


def plain_lif(x, decay, threshold, hard):
    """One neuron on Python floats: membranes before the reset, and spikes."""
    v, membranes, spikes = 0.0, [], []
    for current in x:
        h = decay * v + current
        fires = h >= threshold
        v = (0.0 if hard else h - threshold) if fires else h
        membranes.append(h)
        spikes.append(float(fires))
    return membranes, spikes


def plain_gradient(weights, membranes, spikes, decay, threshold, hard, alpha):
    """sum over k >= t of g_k s'(h_k - threshold) times the leak (and the cuts) of all steps from t to k."""
    gradient = []
    for t in range(len(weights)):
        total, path = 0.0, 1.0
        for k in range(t, len(weights)):
            u = membranes[k] - threshold
            total += weights[k] * path * (alpha / 2) / (1 + (3.141592653589793 / 2 * alpha * u) ** 2)
            path *= decay * (1 - spikes[k] if hard else 1)
        gradient.append(total)
    return gradient


neurons = st.fixed_dictionaries(
    {
        "decay": st.one_of(st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.floats(0, 1)),
        "threshold": st.floats(0.1, 4.0),
        "reset": st.sampled_from(["soft", "hard"]),
    }
)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@properties
@given(neuron=neurons, T=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_equals_a_plain_loop(neuron, T, seed):
    x = _input(T, 2, 3, seed=seed, high=2.0, dtype=torch.float64)
    weights = _input(T, 2, 3, seed=seed + 1, low=-1.0, dtype=torch.float64)
    hard = neuron["reset"] == "hard"
    spikes = lif(x, **neuron)
    gradient = _gradient(lambda x: lif(x, **neuron), x, weights)
    for b in range(2):
        for i in range(3):
            h, s = plain_lif(x[:, b, i].tolist(), neuron["decay"], neuron["threshold"], hard)
            assert spikes[:, b, i].tolist() == s
            g = plain_gradient(weights[:, b, i].tolist(), h, s, neuron["decay"], neuron["threshold"], hard, 2.0)
            assert gradient[:, b, i].tolist() == pytest.approx(g, rel=1e-12, abs=1e-14)


@properties
@given(
    neuron=neurons,
    T=st.integers(1, 8),
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)
def test_shape_type_values_and_step(neuron, T, shape, dtype, seed):
    module, x = LIF(**neuron), _input(T, *shape, seed=seed, high=2.0, dtype=dtype)
    before, spikes = x.clone(), module(x)
    assert spikes.shape == x.shape
    assert spikes.dtype == dtype
    assert ((spikes == 0) | (spikes == 1)).all()
    assert torch.equal(x, before)

    def streamed(x):
        state, outputs = module.initial_state(x[0]), []
        for x_t in x:
            s, state = module.step(x_t, state)
            outputs.append(s)
        return torch.stack(outputs)

    assert torch.equal(streamed(x), spikes)
    weights = _input(T, *shape, seed=seed + 1, low=-1.0, dtype=dtype)
    torch.testing.assert_close(_gradient(streamed, x, weights), _gradient(module, x, weights), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_step_is_forward_in_half_precision(reset, dtype):
    module, x = LIF(0.9, 0.7, reset), _input(10, 4, 50).to(dtype)
    state = module.initial_state(x[0])
    for x_t, expected in zip(x, module(x), strict=True):
        s, state = module.step(x_t, state)
        assert torch.equal(s, expected)


def test_views_give_the_same():
    x = _input(6, 5, 4, 3)
    expected = lif(x, 0.9)
    assert torch.equal(lif(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), 0.9), expected)
    assert torch.equal(
        lif(x.movedim(2, -1).contiguous(memory_format=torch.channels_last).movedim(-1, 2), 0.9), expected
    )
    still = x[:1].expand(6, -1, -1, -1)
    assert torch.equal(lif(still, 0.9), lif(still.contiguous(), 0.9))
    weights = _input(6, 5, 4, 3, seed=1)
    mixed = weights.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert torch.equal(_gradient(lambda x: lif(x, 0.9), x, mixed), _gradient(lambda x: lif(x, 0.9), x, weights))


def test_if_is_lif_without_leak():
    x = _input(9, 4, 4)
    for reset in ("soft", "hard"):
        assert torch.equal(IF(0.8, reset)(x), LIF(1.0, 0.8, reset)(x))
    assert IF().decay == 1.0


# --- other libraries ------------------------------------------------------------------------------------------


def _jelly(node):
    def forward(x):
        node.reset()
        return node(x)

    return forward


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("tau", [None, 2.0, 4.0], ids=str)  # powers of two: 1 - 1/tau and v - v/tau round alike
@pytest.mark.parametrize("threshold", [1.0, 0.75])
def test_equals_spikingjelly(reset, tau, threshold, detach_reset):
    common = {
        "v_threshold": threshold,
        "v_reset": None if reset == "soft" else 0.0,
        "surrogate_function": JellyATan(2.0),
        "detach_reset": detach_reset,
        "step_mode": "m",
    }
    theirs = jelly.IFNode(**common) if tau is None else jelly.LIFNode(tau=tau, decay_input=False, **common)
    ours = LIF(1.0 if tau is None else 1 - 1 / tau, threshold, reset, ATan(2.0), detach_reset)
    x, weights = _input(20, 8, 30), _input(20, 8, 30, seed=1, low=-1.0)
    spikes = ours(x)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, _jelly(theirs)(x))
    torch.testing.assert_close(_gradient(ours, x, weights), _gradient(_jelly(theirs), x, weights))
    if tau is not None:  # by default they scale the input too: h = v + (x - v) / tau
        scaled = jelly.LIFNode(tau=tau, decay_input=True, **common)
        assert torch.equal(ours(x), _jelly(scaled)(tau * x))
        expected = _gradient(_jelly(scaled), tau * x, weights)
        torch.testing.assert_close(_gradient(ours, x, weights), tau * expected)


def _snntorch(node):
    def forward(x):
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, mem = node(x_t, mem)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


@pytest.mark.parametrize(
    ("decay", "reset", "options", "detach_reset"),
    [
        # snnTorch resets at the next step by default: u_t = decay * u_{t-1} + x_t - threshold * s_{t-1} (soft), which is
        # ours without leak; decay * (1 - s_{t-1}) * u_{t-1} + x_t (hard), which is ours.
        (1.0, "soft", {"reset_mechanism": "subtract"}, True),
        (0.9, "hard", {"reset_mechanism": "zero"}, True),
        (1.0, "hard", {"reset_mechanism": "zero"}, True),
        # With reset_delay=False the spikes are ours, and the reset is differentiated.
        (0.9, "soft", {"reset_mechanism": "subtract", "reset_delay": False}, False),
        (0.9, "hard", {"reset_mechanism": "zero", "reset_delay": False}, False),
    ],
)
def test_equals_snntorch(decay, reset, options, detach_reset):
    theirs = _snntorch(snntorch.Leaky(beta=decay, spike_grad=atan(2.0), **options))
    ours = LIF(decay, 1.0, reset, ATan(2.0), detach_reset)
    x, weights = _input(20, 8, 30, high=0.9), _input(20, 8, 30, seed=1, low=-1.0)
    spikes = ours(x)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, theirs(x))
    torch.testing.assert_close(_gradient(ours, x, weights), _gradient(theirs, x, weights))


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 1.3}, ValueError, "decay must be in [0, 1], got 1.3: use decay=1.0 for integrate-and-fire"),
        ({"decay": -0.1}, ValueError, "decay must be in [0, 1], got -0.1"),
        ({"decay": float("nan")}, ValueError, "decay must be in [0, 1], got nan"),
        ({"decay": "0.9"}, TypeError, "decay must be a number, got '0.9'"),
        ({"decay": 0.9, "threshold": 0.0}, ValueError, "threshold must be in (0, inf], got 0.0"),
        ({"decay": 0.9, "threshold": -1}, ValueError, "threshold must be in (0, inf], got -1"),
        ({"decay": 0.9, "threshold": float("inf")}, ValueError, "threshold must be finite and in (0, inf], got inf"),
        ({"decay": 0.9, "reset": "none"}, ValueError, "reset must be one of soft, hard; got 'none'"),
        ({"decay": 0.9, "surrogate": "ATan"}, TypeError, "surrogate must be a Surrogate such as ATan(2.0), got 'ATan'"),
        (
            {"decay": 0.9, "surrogate": Sigmoid},
            TypeError,
            "surrogate must be a Surrogate such as ATan(2.0), got <class",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    for make in (LIF, lambda **arguments: lif(torch.ones(1, 1), **arguments)):
        with pytest.raises(error, match="^" + re.escape(message)):
            make(**arguments)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.ones(3), ValueError),
        (torch.ones(0, 3), ValueError),
        (torch.ones(2, 3).long(), TypeError),
        (None, TypeError),
    ],
)
def test_bad_input(x, error):
    with pytest.raises(error, match=r"^x must be "):
        LIF()(x)


def test_an_attribute_set_to_nonsense_is_found_at_the_next_forward():
    neuron = LIF()
    neuron.decay = 1.5
    with pytest.raises(ValueError, match="decay must be in"):
        neuron(torch.ones(2, 3))


def test_a_new_surrogate_is_one_small_class():
    class Box(Surrogate):
        def derivative(self, u):
            return (u.abs() < 0.5).to(u.dtype)

    try:
        x = torch.tensor([[0.4, 0.6, 1.4, 1.6]])
        assert _gradient(LIF(surrogate=Box()), x, torch.ones(1, 4)).tolist() == [[0, 1, 1, 0]]
    finally:
        assert SURROGATES.pop("Box") is Box


@dataclass(frozen=True)
class _Own(Surrogate):
    """None that a kernel knows."""

    def derivative(self, u):
        return 1.0 / (1.0 + u * u)


SURROGATES.pop("_Own")  # a class of this test alone


@pytest.mark.parametrize("threshold", [1.0, torch.tensor(1.0), torch.ones(3)], ids=str)
def test_a_surrogate_of_ones_own_with_any_threshold(threshold):
    x = _input(5, 2, 3)
    found = _gradient(lambda x: lif(x, 0.5, threshold, surrogate=_Own()), x, torch.ones_like(x))
    expected = _gradient(lambda x: lif(x, 0.5, 1.0, surrogate=ATan(2 / torch.pi)), x, torch.ones_like(x))
    torch.testing.assert_close(found, torch.pi * expected)
