"""Draws docs/images/surrogates.png and docs/images/neurons.png.

python docs/figures/neurons.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from snnrobust import figures
from snnrobust.neurons import ALIF, IF, LIF, CuBaLIF, Neuron, Recurrent
from snnrobust.neurons.surrogate import SURROGATES

IMAGES = Path(__file__).parents[1] / "images"
T = 60


def surrogates() -> None:
    """Each surrogate with its default parameters; the same scale everywhere."""
    made = figures.figure(8.4, 6.2)
    panels = made.subplots(3, 3, sharey=True).flat
    for axes, kind in zip(panels, SURROGATES.values(), strict=True):
        surrogate = kind()
        at = torch.linspace(0, 300, 301) if surrogate.timed else torch.linspace(-2, 2, 801)
        axes.set_title(str(surrogate), fontsize=10)
        if not surrogate.timed:
            axes.axvline(0, color=figures.GRID, lw=1)
        axes.fill_between(at, surrogate.derivative(at), color=figures.SERIES[0], alpha=0.15, lw=0)
        axes.plot(at, surrogate.derivative(at), color=figures.SERIES[0], lw=1.6)
        axes.set_xlabel("steps since the last spike" if surrogate.timed else "u = h - θ")
        axes.set_ylim(0, 1.1)
    made.supylabel("ds/dh in the backward pass", fontsize=figures.TEXT)
    figures.save(made, IMAGES / "surrogates.png", dpi=110)


def current() -> Tensor:
    """A long weak current, a pause, then strong pulses."""
    x = torch.zeros(T, 1, 1)
    x[4:34] = 0.3
    x[42::6] = 1.6
    return x


def _threshold(neuron: ALIF, x: Tensor) -> Tensor:
    state, trace = neuron.initial_state(x[0]), []
    for x_t in x.unbind(0):
        trace.append(neuron.threshold + neuron.adaptation * state.adaptation)
        _, state = neuron.step(x_t, state)
    return torch.stack(trace)


def _potential(neuron: Neuron | Recurrent, x: Tensor) -> Tensor:
    if isinstance(neuron, Neuron):
        return neuron.membrane(x)
    state, trace = neuron.initial_state(x[0]), []
    for x_t in x.unbind(0):
        _, state = neuron.step(x_t, state)
        trace.append(neuron.neuron.potential(state.neuron))
    return torch.stack(trace)


def neurons() -> None:
    """Potential after the reset, spikes and threshold of one neuron of each kind, on one input."""
    inhibited = Recurrent(1, LIF(0.9))
    with torch.no_grad():
        inhibited.recurrent.weight.fill_(-0.6)
    lines: list[tuple[str, Neuron | Recurrent | None]] = [
        ("input", None),
        ("IF()", IF()),
        ("LIF(0.9)", LIF(0.9)),
        ('LIF(0.9, reset="hard")', LIF(0.9, reset="hard")),
        ("LIF(0.9, refractory=4)", LIF(0.9, refractory=4)),
        ("CuBaLIF(0.6, 0.9)", CuBaLIF(0.6, 0.9)),
        ("ALIF(0.9, 1.0, 0.5, 0.9)", ALIF(0.9, 1.0, 0.5, 0.9)),
        ("Recurrent(1, LIF(0.9)), W = -0.6", inhibited),
    ]
    x, steps = current(), range(T)
    made = figures.figure(8.4, 8.0)
    panels = made.subplots(4, 2, sharex=True).flat
    with torch.no_grad():
        for axes, (name, neuron) in zip(panels, lines, strict=True):
            axes.set_title(name, fontsize=figures.TEXT, loc="left")
            axes.axhline(0, color=figures.GRID, lw=1, zorder=0)
            if neuron is None:
                axes.vlines(steps, 0, x.flatten(), color=figures.MUTED, lw=2)
                axes.set_ylabel("x")
                continue
            threshold = _threshold(neuron, x).flatten() if isinstance(neuron, ALIF) else torch.ones(T)
            fired = neuron(x).flatten().nonzero().flatten()
            potential = _potential(neuron, x).flatten()
            top = 1.15 * max(float(threshold.max()), float(potential.max()))
            axes.step(steps, potential, where="mid", color=figures.SERIES[0], lw=1.4, label="v")
            axes.step(steps, threshold, where="mid", color=figures.MUTED, lw=1, ls="--", label="θ")
            axes.plot(
                fired,
                torch.full(fired.shape, top),
                "|",
                color=figures.SERIES[1],
                ms=9,
                mew=1.8,
            )
            axes.set_ylim(min(0.0, float(potential.min())) - 0.1, top * 1.08)
            axes.set_title(f"{len(fired)} spikes", fontsize=9, loc="right", color=figures.MUTED)
    for axes in made.axes[-2:]:
        axes.set_xlabel("step")
    figures.save(made, IMAGES / "neurons.png", dpi=110)


if __name__ == "__main__":
    with figures.style():
        surrogates()
        neurons()
