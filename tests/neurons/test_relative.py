"""Surrogates in units of the threshold."""

import pytest
import torch

from snnrobust.neurons.relative import relative
from snnrobust.neurons.surrogate import SURROGATES, ATan, FastSigmoid, SpikeTime, StraightThrough


@pytest.mark.parametrize("threshold", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("name", sorted({*SURROGATES} - {"FastSigmoid", "StraightThrough", "SpikeTime"}))
def test_it_is_the_derivative_by_u_over_theta(name, threshold):
    surrogate = SURROGATES[name]()
    u = torch.linspace(-3, 3, 62, dtype=torch.float64)
    found = relative(surrogate, threshold).derivative(u.clone())
    torch.testing.assert_close(found, surrogate.derivative(u / threshold) / threshold)


def test_those_of_time_and_those_without_a_scale():
    steps = torch.arange(1.0, 9.0)
    found = relative(SpikeTime(0.3, 0.01), 4.0).derivative(steps.clone())
    torch.testing.assert_close(found, 0.3 / 4.0 * torch.exp(-0.01 * steps))
    for surrogate in (StraightThrough(), FastSigmoid(3.0)):
        assert relative(surrogate, 4.0) == surrogate


def test_bad_arguments():
    with pytest.raises(TypeError, match="surrogate must be a Surrogate"):
        relative(2.0, 1.0)
    with pytest.raises(ValueError, match="threshold must be"):
        relative(ATan(2.0), 0.0)
