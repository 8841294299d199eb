"""Surrogate derivatives against their formulas and the other libraries; ``override`` on all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import snntorch
import snntorch.surrogate
import spikingjelly.activation_based.neuron
import spikingjelly.activation_based.surrogate
import torch
from torch import nn

from snnrobust.layers import Sequential
from snnrobust.neurons import ALIF, IF, LIF, CuBaLIF
from snnrobust.neurons.surrogate import (
    SURROGATES,
    ATan,
    Exponential,
    FastSigmoid,
    Gaussian,
    Rectangle,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Surrogate,
    Triangle,
    lend,
    override,
    spike,
)

jelly, jelly_surrogate = spikingjelly.activation_based.neuron, spikingjelly.activation_based.surrogate
torch_surrogate = snntorch.surrogate

U = np.concatenate([np.linspace(-3, 3, 61), [1e-8, -1e-8, 0.5, 1.0, -1.0, 40.0]])

FORMULAS = [
    (ATan(2.0), lambda u: 1 / (1 + (np.pi * u) ** 2)),
    (ATan(3.0), lambda u: 1.5 / (1 + (1.5 * np.pi * u) ** 2)),
    (Triangle(), lambda u: 0.3 * np.maximum(0, 1 - np.abs(u))),
    (Triangle(0.8, 0.5), lambda u: 0.8 * np.maximum(0, 1 - np.abs(u) / 0.5)),
    (FastSigmoid(), lambda u: 1 / (1 + 25 * np.abs(u)) ** 2),
    (FastSigmoid(10.0), lambda u: 1 / (1 + 10 * np.abs(u)) ** 2),
    (Sigmoid(), lambda u: 4 * np.exp(-4 * u) / (1 + np.exp(-4 * u)) ** 2),
    (Sigmoid(1.5), lambda u: 1.5 * np.exp(-1.5 * u) / (1 + np.exp(-1.5 * u)) ** 2),
    (Rectangle(), lambda u: np.where(np.abs(u) <= 0.5, 1.0, 0.0)),
    (Rectangle(4.0), lambda u: np.where(np.abs(u) <= 2.0, 0.25, 0.0)),
    (Gaussian(), lambda u: scipy.stats.norm.pdf(u, scale=0.5)),
    (Gaussian(1.5), lambda u: scipy.stats.norm.pdf(u, scale=1.5)),
    (Exponential(), lambda u: np.exp(-2 * np.abs(u))),
    (Exponential(0.3, 4.0), lambda u: 0.3 * np.exp(-4 * np.abs(u))),
    (StraightThrough(), np.ones_like),
    (SpikeTime(), lambda dt: 0.3 * np.exp(-0.01 * dt)),
    (SpikeTime(0.5, 0.035), lambda dt: 0.5 * np.exp(-0.035 * dt)),
]
# Area under each as a function of its parameters; a spike is a step of height 1, whose derivative has area 1.
AREAS = [
    (ATan(3.0), 1.0),
    (Triangle(0.8, 0.5), 0.4),
    (FastSigmoid(10.0), 0.2),
    (Sigmoid(3.0), 1.0),
    (Rectangle(0.7), 1.0),
    (Gaussian(0.7), 1.0),
    (Exponential(0.6, 3.0), 0.4),
]


def _slope(function, u):
    """The gradient that ``function`` passes at ``u``."""
    u = u.clone().requires_grad_()
    return torch.autograd.grad(function(u).sum(), u)[0]


@pytest.mark.parametrize(("surrogate", "formula"), FORMULAS, ids=lambda v: str(v) if isinstance(v, Surrogate) else "")
def test_derivative_is_its_formula(surrogate, formula):
    u = torch.tensor(U)
    np.testing.assert_allclose(surrogate.derivative(u).numpy(), formula(U), rtol=1e-12, atol=1e-15)
    assert np.array_equal(u.numpy(), U)  # the membrane is left alone
    quiet = u if surrogate.timed else None
    assert torch.equal(_slope(lambda u: 2.0 * spike(u, surrogate, quiet), u), 2.0 * surrogate.derivative(u))
    assert surrogate.derivative(u.float()).dtype == torch.float32


def test_every_surrogate_has_a_formula():
    assert {type(s).__name__ for s, _ in FORMULAS} == {n for n, s in SURROGATES.items() if "snnrobust" in s.__module__}


@pytest.mark.parametrize(("surrogate", "area"), AREAS, ids=lambda v: str(v) if isinstance(v, Surrogate) else "")
def test_area(surrogate, area):
    u = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    assert torch.trapezoid(surrogate.derivative(u), u).item() == pytest.approx(area, rel=2e-3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ATan(2.0), jelly_surrogate.ATan(2.0)),
        (ATan(0.7), torch_surrogate.atan(0.7)),
        (Sigmoid(4.0), jelly_surrogate.Sigmoid(4.0)),
        (Sigmoid(6.0), torch_surrogate.sigmoid(6.0)),
        (Triangle(2.0, 0.5), jelly_surrogate.PiecewiseQuadratic(2.0)),
        (FastSigmoid(1.0), jelly_surrogate.SuperSpike(1.0)),
        (FastSigmoid(25.0), torch_surrogate.fast_sigmoid(25.0)),
        (Rectangle(0.5), jelly_surrogate.Rect(2.0)),
        (StraightThrough(), torch_surrogate.straight_through_estimator()),
    ],
)
def test_derivative_equals_other_libraries(ours, theirs):
    u = torch.tensor(U)
    torch.testing.assert_close(ours.derivative(u), _slope(theirs, u), rtol=1e-12, atol=1e-15)


def test_spike_fires_at_zero():
    u = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30, 2.0], dtype=torch.float64)
    s = spike(u, ATan())
    assert s.tolist() == [0, 0, 1, 1, 1, 1]
    assert s.dtype == torch.float64


@pytest.mark.parametrize("kind", [ATan, Triangle, FastSigmoid, Sigmoid, Rectangle, Gaussian, Exponential, SpikeTime])
def test_parameters_are_checked_and_frozen(kind):
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\.\w+ must be (finite and )?in \(0, inf\], got {value}"):
            kind(value)
    with pytest.raises(TypeError, match=r"must be a number, got '2'"):
        kind("2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), dataclasses.fields(kind)[0].name, 3.0)
    assert kind(1.5) == kind(1.5)
    assert kind(1.5) != kind(1.25)


def test_a_surrogate_without_derivative_is_refused():
    with pytest.raises(TypeError, match=r"^Surrogate has no derivative: use one that has, such as ATan\(2.0\)$"):
        Surrogate()


@pytest.mark.parametrize("kind", [ALIF, lambda: Sequential(nn.Identity(), ALIF())])
def test_a_second_derivative_is_refused(kind):
    """That of the surrogate would be missing from it."""
    x = torch.rand(4, 2, 3, requires_grad=True)
    for neuron in (kind(), LIF(0.9)):
        (gradient,) = torch.autograd.grad(neuron(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_every_parameter_is_checked():
    for make in (lambda: Triangle(1.0, 0.0), lambda: Exponential(1.0, -1.0), lambda: SpikeTime(1.0, 0.0)):
        with pytest.raises(ValueError, match=r"\.(width|beta) must be in \(0, inf\]"):
            make()


# --- time since the last spike --------------------------------------------------------------------------------


def test_spike_time_by_hand():
    """Without leak and memory h = x. Steps since the last spike: 1000 | 1001 | 1 | 2 | 3 | 1; of a silent neuron 1000 to 1005."""
    x = torch.tensor([[0.5, 1.0, -8.0, 0.9, 1.0, 0.0], [0.9] * 6], dtype=torch.float64).T[:, None]
    half_life = SpikeTime(0.5, float(np.log(2)))
    neuron = LIF(0.0, surrogate=half_life)
    assert neuron(x)[:, 0].T.tolist() == [[0, 1, 0, 0, 1, 0], [0] * 6]
    expected = 0.5 * 0.5 ** np.array([[1000, 1001, 1, 2, 3, 1], range(1000, 1006)])
    np.testing.assert_allclose(_slope(neuron, x)[:, 0].T, expected, rtol=1e-10)


def test_a_neuron_that_never_fired_passes_what_the_paper_says():
    """alpha * exp(-10) of a last spike at step -1000."""
    gradient = _slope(IF(surrogate=SpikeTime()), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert gradient.item() == pytest.approx(0.3 * np.exp(-10), rel=1e-12)


@pytest.mark.parametrize("kind", [LIF, ALIF, CuBaLIF])
def test_override_with_spike_time_is_the_neuron_built_with_it(kind):
    x = torch.rand(12, 2, 4, generator=torch.Generator().manual_seed(0)) * 1.5
    lent, built = Sequential(kind(surrogate=ATan())), Sequential(kind(surrogate=SpikeTime()))
    expected = _slope(built, x)
    assert not torch.allclose(_slope(lent, x), expected, atol=1e-2)
    with override(lent, SpikeTime()):
        assert torch.equal(lent(x), built(x))
        assert torch.equal(_slope(lent, x), expected)
    assert not torch.allclose(_slope(lent, x), expected, atol=1e-2)


def test_a_stream_begun_under_another_surrogate_cannot_become_timed():
    neuron, x_t = LIF(0.5), torch.ones(1, 2)
    state = neuron.initial_state(x_t)
    _, state = neuron.step(x_t, state)
    message = r"SpikeTime\(.*\) needs the time since the last spike: start the stream under this surrogate"
    with override(neuron, SpikeTime()), pytest.raises(ValueError, match=message):
        neuron.step(x_t, state)
    timed = LIF(0.5, surrogate=SpikeTime())
    _, state = timed.step(x_t, timed.initial_state(x_t))
    with override(timed, ATan()):  # the other way round it keeps the time, unused
        _, state = timed.step(x_t, state)
    assert state.quiet.tolist() == [[1.0, 1.0]]


def test_neurons_of_other_libraries_have_no_time():
    for foreign, home in ((Jelly(), "surrogate_function"), (Torch(), "spike_grad")):
        model = nn.ModuleList([LIF(), foreign])
        before = getattr(foreign.node, home)
        message = "needs the time since the last spike, which neurons of other libraries do not give it"
        with pytest.raises(TypeError, match=message), override(model, SpikeTime()):
            pass
        assert getattr(foreign.node, home) is before
        assert model[0].surrogate == ATan()


# --- override -------------------------------------------------------------------------------------------------


class Jelly(nn.Module):
    """A model written in SpikingJelly."""

    def __init__(self):
        super().__init__()
        self.node = jelly.LIFNode(tau=2.0, decay_input=False, v_reset=None, detach_reset=True, step_mode="m")

    def forward(self, x):
        self.node.reset()
        return self.node(x)


class Torch(nn.Module):
    """A model written in snnTorch."""

    def __init__(self):
        super().__init__()
        self.node = snntorch.Leaky(beta=0.5, spike_grad=torch_surrogate.fast_sigmoid(25))

    def forward(self, x):
        mem, spikes = self.node.reset_mem(), []
        for x_t in x:
            s, mem = self.node(x_t, mem)
            spikes.append(s)
        return torch.stack(spikes)


class OnTheClass(nn.Module):
    surrogate = ATan(2.0)

    def forward(self, x):
        return spike(x - 1.0, self.surrogate)


class AsSubmodule(Torch):
    """snnTorch with a surrogate that is a module."""

    def __init__(self):
        super().__init__()
        del self.node.spike_grad
        self.node.spike_grad = jelly_surrogate.ATan(2.0)
        self.node.after = nn.Identity()


MODELS = {
    "ours": (lambda: Sequential(LIF(0.5)), "0.surrogate"),
    "nested": (lambda: Sequential(nn.Sequential(nn.Identity(), IF())), "0.1.surrogate"),
    "spikingjelly": (Jelly, "node.surrogate_function"),
    "snntorch": (Torch, "node.spike_grad"),
    "submodule": (AsSubmodule, "node.spike_grad"),
    "class attribute": (OnTheClass, "surrogate"),
}


def _get(model, path):
    *modules, name = path.split(".")
    return getattr(model.get_submodule(".".join(modules)), name)


@pytest.mark.parametrize(("make", "home"), MODELS.values(), ids=MODELS)
def test_override_swaps_gradients_not_spikes_and_restores(make, home):
    model, new = make(), Triangle(0.7, 2.0)
    x = torch.rand(1, 5, 8, generator=torch.Generator().manual_seed(0)) * 2
    before, order = _get(model, home), [name for name, _ in model.named_modules()]
    spikes, gradient = model(x), _slope(model, x)
    expected = new.derivative(x - 1.0)  # one step from rest: u = x - threshold
    assert not torch.allclose(gradient, expected, atol=1e-2)
    with override(model, new) as overridden:
        assert overridden is model
        assert torch.equal(model(x), spikes)
        torch.testing.assert_close(_slope(model, x), expected)
    assert _get(model, home) is before
    assert [name for name, _ in model.named_modules()] == order
    assert torch.equal(_slope(model, x), gradient)


@pytest.mark.parametrize(("make", "home"), MODELS.values(), ids=MODELS)
def test_override_restores_after_an_exception(make, home):
    model = make()
    before = _get(model, home)

    def fail():
        assert _get(model, home) is not before
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), override(model, Sigmoid()):
        fail()
    assert _get(model, home) is before


def test_override_reaches_every_neuron_and_nests():
    model = nn.ModuleList([LIF(surrogate=ATan(1.0)), IF(surrogate=Sigmoid(2.0)), nn.ModuleList([Jelly(), Torch()])])
    before = [model[0].surrogate, model[1].surrogate, model[2][0].node.surrogate_function, model[2][1].node.spike_grad]
    outer, inner = ATan(9.0), Triangle(0.5)
    with override(model, outer):
        with override(model, inner):
            assert model[0].surrogate is model[1].surrogate is inner
        assert model[0].surrogate is model[1].surrogate is outer
        for node in (model[2][0].node.surrogate_function, model[2][1].node.spike_grad):
            assert torch.equal(_slope(node, torch.tensor([0.1])), outer.derivative(torch.tensor([0.1])))
    after = [model[0].surrogate, model[1].surrogate, model[2][0].node.surrogate_function, model[2][1].node.spike_grad]
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_foreign_spikes_keep_their_convention_at_the_threshold():
    model = nn.ModuleDict({"jelly": Jelly(), "torch": Torch()})
    with override(model, ATan()):
        assert model["jelly"](torch.ones(1, 1, 1)).item() == 1.0  # fires at u >= 0
        assert model["torch"](torch.ones(1, 1, 1)).item() == 0.0  # fires at u > 0


def test_override_that_swaps_nothing_raises():
    with (
        pytest.raises(ValueError, match="Linear has no surrogate to override: is it a spiking model"),
        override(nn.Linear(2, 2), ATan()),
    ):
        pass


@pytest.mark.parametrize("surrogate", [ATan, "ATan", None, 2.0])
def test_override_with_something_else_raises(surrogate):
    with pytest.raises(TypeError, match="surrogate must be a Surrogate such as"), override(LIF(), surrogate):
        pass


def test_each_neuron_may_be_lent_its_own():
    model = nn.ModuleList([LIF(surrogate=ATan(1.0)), IF(surrogate=Sigmoid(2.0)), Jelly()])
    before, lent = [model[0].surrogate, model[1].surrogate, model[2].node.surrogate_function], {}

    def choose(module):
        return lent.setdefault(module, ATan(len(lent) + 5.0))

    with lend(model, choose):
        assert model[0].surrogate == ATan(5.0)
        assert model[1].surrogate == ATan(6.0)
        u = torch.tensor([0.1])
        assert torch.equal(_slope(model[2].node.surrogate_function, u), ATan(7.0).derivative(u))
    assert set(lent) == {model[0], model[1], model[2].node}
    after = [model[0].surrogate, model[1].surrogate, model[2].node.surrogate_function]
    assert all(a is b for a, b in zip(after, before, strict=True))
    with pytest.raises(ValueError, match="no surrogate to override"), lend(nn.Linear(2, 2), choose):
        pass


def test_a_step_asks_whom_it_shows_its_potential():
    """And a sequence, which is one operation, asks for all slopes at once."""
    seen, names = [], set(SURROGATES)

    @dataclasses.dataclass(frozen=True)
    class Watching(ATan, registered=False):
        def observed(self, u):
            seen.append(u.clone())
            return ATan(self.alpha * len(seen))

        def derivative(self, u):
            return ATan(self.alpha).derivative(u)

    assert set(SURROGATES) == names
    x = torch.rand(3, 2, 4, requires_grad=True)
    for neuron in (LIF(surrogate=Watching(2.0)), ALIF(adaptation=0.0, surrogate=Watching(2.0))):
        seen.clear()
        (found,) = torch.autograd.grad(neuron(x).sum(), x)
        if isinstance(neuron, LIF):
            assert not seen
        else:
            assert len(seen) == 3
            v = torch.zeros(2, 4)
            for u, x_t in zip(seen, x.detach(), strict=True):
                h = 0.95 * v + x_t
                assert torch.equal(u, h - 1.0)
                v = h - (h >= 1.0).float()
            slopes = [ATan(2.0 * (t + 1)).derivative(u) for t, u in enumerate(seen)]
            expected = [sum(slopes[s] * 0.95 ** (s - t) for s in range(t, 3)) for t in range(3)]
            torch.testing.assert_close(found, torch.stack(expected))
