"""Pictures of spikes and membranes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from snnrobust import checks, figures
from snnrobust.monitors.trace import Trace

__all__ = ["membranes", "raster"]


def raster(spikes: Tensor, path: str | Path, *, sample: int = 0) -> None:
    """A mark for each spike, time from left to right, a row for each neuron; negative spikes in a second colour.

    Args:
        spikes: ``[T, N]``, or ``[T, B, *]``, of which one sample is shown, its neurons in the order of memory.
        path: Of the picture; its ending is the format.
        sample: Index of the sample.
    """
    _spikes("spikes", spikes)
    if spikes.dim() > 2:
        spikes = spikes[:, _index("sample", sample, spikes.shape[1])].flatten(1)
    s = spikes.detach().cpu()
    steps, neurons = s.shape
    with figures.style():
        width = min(max(0.22 * steps, 2.4), 9.0)
        made = figures.figure(width + 1.2, min(max(0.03 * neurons, 1.6), 4.5) + 0.8)
        axes = made.subplots()
        height = min(0.8, max(0.35, neurons / 200))
        for sign, colour in ((1, figures.SERIES[0]), (-1, figures.SERIES[1])):
            t, i = torch.nonzero(s.sign() == sign, as_tuple=True)
            axes.vlines(
                (t + 1).numpy(),
                (i - height).numpy(),
                (i + height).numpy(),
                color=colour,
                lw=max(1.0, min(25 * width / steps, 5.0)),
            )
        axes.set_xlim(0.4, steps + 0.6)
        axes.set_ylim(-1, neurons)
        axes.set_xlabel("time step")
        axes.set_ylabel("neuron")
        axes.set_title(f"rate {100 * float((s != 0).double().mean()):.1f}\u00a0%", loc="left", fontsize=figures.TEXT)
        axes.locator_params(integer=True)
        figures.save(made, path)


def membranes(trace: Trace, path: str | Path, *, neurons: Sequence[int] = (0, 1, 2), sample: int = 0) -> None:
    """Membrane potentials after the reset over time, with the threshold (dashed) and a mark for each spike.

    Args:
        trace: From :func:`~snnrobust.monitors.trace`.
        path: Of the picture; its ending is the format.
        neurons: Indices of the neurons in the order of memory, a panel for each.
        sample: Index of the sample.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be a Trace, as trace(model, x, layer) returns it, got {type(trace).__name__}")
    row = _index("sample", sample, trace.spikes.shape[1])
    v, s = (value[:, row].flatten(1).detach().cpu() for value in (trace.membrane, trace.spikes))
    chosen = [_index("neurons", i, v.shape[1]) for i in neurons]
    if not chosen:
        raise ValueError("neurons must hold at least one index, got none")
    steps = torch.arange(1, len(v) + 1)
    with figures.style():
        made = figures.figure(min(max(0.22 * len(v), 3.4), 9.0) + 1.2, 1.25 * len(chosen) + 0.7)
        panels = made.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        for axes, i in zip(panels, chosen, strict=True):
            threshold = _threshold(trace, i)
            fired = s[:, i] != 0
            axes.axhline(threshold, color=figures.MUTED, lw=1.2, ls=(0, (4, 2)), label="threshold")
            axes.plot(steps, v[:, i], color=figures.SERIES[0], lw=1.6, marker="o", ms=3, label="membrane after reset")
            low, top = min(float(v[:, i].min()), 0.0), max(float(v[:, i].max()), threshold)
            above = top + 0.2 * (top - low)
            marks = steps[fired]
            axes.plot(
                marks, [above] * len(marks), ls="", marker="|", ms=9, mew=2, color=figures.SERIES[1], label="spike"
            )
            axes.set_ylim(low - 0.1 * (top - low), above + 0.17 * (top - low))
            axes.set_ylabel(f"neuron {i}")
        panels[-1].set_xlabel("time step")
        panels[-1].locator_params(axis="x", integer=True)
        made.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=figures.TEXT - 1
        )
        figures.save(made, path)


def _spikes(name: str, spikes: Tensor) -> None:
    checks.sequence(name, spikes)
    if spikes.numel() == 0 or spikes.isnan().any():
        raise ValueError(f"{name} must hold at least one value and no NaN, got shape {tuple(spikes.shape)}")


def _index(name: str, value: int, length: int) -> int:
    if checks.count(name, value, low=0) >= length:
        raise ValueError(f"{name} must be below {length}, got {value}")
    return value


def _threshold(trace: Trace, neuron: int) -> float:
    threshold = trace.threshold
    if not isinstance(threshold, Tensor) or threshold.numel() == 1:
        return float(threshold)
    neurons_per_channel = trace.spikes[0, 0].numel() // threshold.numel()
    return float(threshold.flatten()[neuron // neurons_per_channel])
