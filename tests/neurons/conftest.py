"""A slow reference for every neuron: a plain loop in float64 that autograd differentiates, sharing no code with the package."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from snnrobust.neurons import surrogate as kinds

# (surrogate, the same as a function of u and of the steps since the last spike)
SLOPES = {
    "ATan": (kinds.ATan(2.0), lambda u, dt: 1 / (1 + (math.pi * u) ** 2)),
    "Triangle": (kinds.Triangle(0.7, 1.5), lambda u, dt: 0.7 * (1 - u.abs() / 1.5).relu()),
    "FastSigmoid": (kinds.FastSigmoid(3.0), lambda u, dt: (1 + 3 * u.abs()) ** -2),
    "Sigmoid": (kinds.Sigmoid(3.0), lambda u, dt: 0.75 / torch.cosh(1.5 * u) ** 2),
    "Rectangle": (kinds.Rectangle(1.3), lambda u, dt: ((u < 0.65) & (u > -0.65)).double() / 1.3),
    "Gaussian": (kinds.Gaussian(0.6), lambda u, dt: torch.exp(-((u / 0.6) ** 2) / 2) / (0.6 * math.sqrt(2 * math.pi))),
    "Exponential": (kinds.Exponential(0.9, 1.1), lambda u, dt: 0.9 * torch.exp(-1.1 * u.abs())),
    "StraightThrough": (kinds.StraightThrough(), lambda u, dt: torch.ones_like(u)),
    "SpikeTime": (kinds.SpikeTime(0.8, 0.4), lambda u, dt: 0.8 * torch.exp(-0.4 * dt)),
}


def _along(value, x):
    """One value per channel of ``[T, B, C, *]``, for one step."""
    return value.view(-1, *[1] * (x.dim() - 3)) if isinstance(value, torch.Tensor) and value.dim() else value


def run(
    x, slope, decay, threshold=1.0, reset="soft", detach_reset=True, refractory=0,
    current_decay=0.0, adaptation=0.0, adaptation_decay=0.0, weight=None, scale=1.0, initial=0.0,
):  # fmt: skip
    """Spikes, potentials after the reset: any of the neurons, by its parameters."""
    decay, threshold, current_decay, adaptation, adaptation_decay, scale = (
        _along(value, x) for value in (decay, threshold, current_decay, adaptation, adaptation_decay, scale)
    )
    v = i = a = s = torch.zeros_like(x[0])
    v = v + initial * threshold
    dt = torch.full_like(v, 1000.0)
    spikes, potentials = [], []
    for x_t in x.unbind(0):
        i = current_decay * i + scale * x_t + (0.0 if weight is None else s @ weight.T)
        theta = threshold + adaptation * a
        may_fire = (dt >= refractory + 1).to(x.dtype)
        h = decay * v + i * may_fire
        u = h - theta
        fires = (u.detach() >= 0).to(x.dtype)
        s = may_fire * (fires + slope(u.detach(), dt) * (u - u.detach()))
        constant = s.detach() if detach_reset else s
        v = h - constant * theta if reset == "soft" else h - constant * h
        a = adaptation_decay * a + s
        dt = torch.where(s.detach() == 1, torch.ones_like(dt), dt + 1)
        spikes.append(s)
        potentials.append(v)
    return torch.stack(spikes), torch.stack(potentials)


@pytest.fixture(scope="session")
def reference():
    return SimpleNamespace(run=run, slopes=SLOPES)
