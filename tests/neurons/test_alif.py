"""The adaptive threshold, by hand."""

from __future__ import annotations

import pytest
import torch

from snnrobust.neurons import ALIF, LIF, alif


def _column(*values):
    return torch.tensor(values).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "spikes", "potentials"),
    [
        # a: 0 | 1 | .5 | 1.25 | 1.625, threshold: 1 | 1.5 | 1.25 | 1.625 | 1.8125
        # h: 1, v=0 | 1.25 | .625+.625=1.25, v=0 | 2, v=.375 | .1875+1.625=1.8125, v=0
        ({}, [1, 0, 1, 1, 1], [0, 1.25, 0, 0.375, 0]),
        # h: 1, v=0 | 1.25 | 1.25, v=0 | 2, v=0 | 1.625
        ({"reset": "hard"}, [1, 0, 1, 1, 0], [0, 1.25, 0, 0, 1.625]),
        # a: 0 | 1 | .5 | .25 | 1.125, threshold: 1 | 1.5 | 1.25 | 1.125 | 1.5625
        # h: 1, v=0 | 0 (ignored) | .625 | .3125+2=2.3125, v=1.1875 | .59375 (ignored)
        ({"refractory": 1}, [1, 0, 0, 1, 0], [0, 0, 0.625, 1.1875, 0.59375]),
    ],
)
def test_by_hand(arguments, spikes, potentials):
    neuron, x = ALIF(0.5, 1.0, 0.5, 0.5, **arguments), _column(1.0, 1.25, 0.625, 2.0, 1.625)
    assert neuron(x).flatten().tolist() == spikes
    assert neuron.membrane(x).flatten().tolist() == potentials


def test_the_state_holds_the_adaptation():
    neuron, x = ALIF(0.5, 1.0, 0.5, 0.5), _column(1.0, 1.25, 0.625, 2.0, 1.625)
    state, trace = neuron.initial_state(x[0]), []
    for x_t in x:
        trace.append(state.adaptation.item())
        _, state = neuron.step(x_t, state)
    assert trace == [0, 1, 0.5, 1.25, 1.625]


def test_without_adaptation_it_is_lif():
    x = torch.rand(20, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ALIF(0.9, 0.8, 0.0, 0.5)(x), LIF(0.9, 0.8)(x))


def test_adaptation_lowers_the_rate():
    x = torch.full((200, 1, 1), 0.6)
    rates = [ALIF(0.9, 1.0, strength, 0.9)(x)[50:].mean().item() for strength in (0.0, 0.1, 0.5)]
    assert rates[0] > rates[1] > rates[2] > 0


def test_the_gradient_passes_through_the_adaptation():
    """x_1 alone reaches s_2 without leak only through the threshold: ds_2/dx_1 = slope_2 (-kappa) slope_1, and 0 without it."""
    for strength in (0.5, 0.0):
        neuron, x = ALIF(0.0, 1.0, strength, 0.5), _column(1.25, 1.0).requires_grad_()
        (gradient,) = torch.autograd.grad(neuron(x)[1].sum(), x)
        slopes = neuron.surrogate.derivative(torch.tensor([0.25, -strength]))  # 1.25 - 1, and 1 - (1 + strength)
        assert gradient.flatten().tolist() == pytest.approx(
            [-strength * (slopes[0] * slopes[1]).item(), slopes[1].item()]
        )


def test_the_function_is_the_module_and_differentiates_its_constants():
    x = torch.rand(9, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.2
    constants = [torch.tensor(v, dtype=torch.float64) for v in ([0.9, 0.8, 0.7], [0.7, 0.8, 0.9], [0.3] * 3, [0.7] * 3)]
    assert torch.equal(alif(x, *constants, reset="hard"), ALIF(*constants, reset="hard")(x))
    assert torch.equal(alif(x), ALIF()(x))
    wanted = [c.clone().requires_grad_() for c in constants]
    gradients = torch.autograd.grad(alif(x, *wanted, detach_reset=False).sum(), wanted)
    assert all((g != 0).all() and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("name", "value"), [("decay", 1.5), ("threshold", 0.0), ("adaptation", -1.0), ("adaptation_decay", float("nan"))]
)
def test_constants_are_checked_whenever_they_are_used(name, value):
    x = torch.rand(3, 2, 4)
    neuron = ALIF()
    setattr(neuron, name, value)
    for run in (lambda: alif(x, **{name: value}), lambda: alif(x, **{name: torch.tensor(value)}), lambda: neuron(x)):
        with pytest.raises(ValueError, match=f"^{name} must be in"):
            run()
