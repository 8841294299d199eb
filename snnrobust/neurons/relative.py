"""Surrogates in units of the threshold."""

from __future__ import annotations

from dataclasses import replace

from snnrobust import checks
from snnrobust.neurons.surrogate import ATan, Exponential, Gaussian, Rectangle, Sigmoid, SpikeTime, Surrogate, Triangle

__all__ = ["relative"]

# Of each field of a surrogate the power of the threshold that it is multiplied by.
_POWERS: dict[type[Surrogate], dict[str, int]] = {
    ATan: {"alpha": -1},
    Triangle: {"gamma": -1, "width": 1},
    Sigmoid: {"alpha": -1},
    Rectangle: {"width": 1},
    Gaussian: {"sigma": 1},
    Exponential: {"alpha": -1, "beta": -1},
    SpikeTime: {"alpha": -1},
}


def relative(surrogate: Surrogate, threshold: float) -> Surrogate:
    r"""What ``surrogate`` is to a threshold of 1, to another one.

    .. math:: \frac{\partial s}{\partial u} = \frac{1}{\theta} \, g(u / \theta), \quad
        \text{for SpikeTime } \frac{1}{\theta} \, g(\Delta t)

    A surrogate in units of the membrane is narrow where thresholds are large: few neurons would have a gradient.
    ``StraightThrough``, ``FastSigmoid`` (which keep a slope of 1 at the threshold) and surrogates of other modules are returned
    as they are.
    """
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {surrogate!r}")
    checks.number("threshold", threshold, 0.0, exclusive_low=True)
    powers = _POWERS.get(type(surrogate), {})
    return replace(surrogate, **{name: getattr(surrogate, name) * threshold**power for name, power in powers.items()})
