"""What a monitor has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snnrobust import checks, figures
from snnrobust.monitors.tally import Tally

__all__ = ["Activity", "MembraneStatistics", "Record"]


@dataclass(frozen=True, eq=False)
class MembraneStatistics:
    """Potentials after the reset over samples and neurons, at each step: float64 ``[T]``. ``std`` is that of the population."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Activity:
    """Output of one layer of neurons over all samples.

    Attributes:
        name, type: As in ``model.named_modules()``.
        shape: Of the neurons.
        samples: Number of samples seen.
        rate: Share of neurons and samples that fire (ReLU: are not zero) at each step, float64 ``[T]``.
        mean: Mean output at each step, float64 ``[T]``; for spikes of 0 and 1 the rate.
        silent: Share of neurons that fired for no sample at no step.
        saturated: Share of pairs of neuron and sample in which the neuron fired at every step.
        membrane: None where it was not asked for.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    samples: int
    rate: Tensor
    mean: Tensor
    silent: float
    saturated: float
    membrane: MembraneStatistics | None


class Record:
    """The activity of each layer, in order of execution: ``record.layers``, or ``record["network.2"]``."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int], Tally] = {}

    @property
    def layers(self) -> tuple[Activity, ...]:
        """So far; inside the context it can be asked at any time.

        Raises:
            RuntimeError: nothing was seen yet.
        """
        found = tuple(_activity(tally) for tally in self._tallies.values() if tally.pairs)
        if not found:
            raise RuntimeError(
                "the monitor has seen nothing: call the model, with at least one sample, inside the context; "
                "stream() and step() are not seen"
            )
        return found

    def __getitem__(self, name: str) -> Activity:
        layers = {layer.name: layer for layer in self.layers}
        return layers[checks.choice("layer", name, layers)]

    def table(self) -> str:
        """A line for each layer, over all steps alike."""
        layers = self.layers
        watched = any(layer.membrane is not None for layer in layers)
        heading = ["layer", "type", "neurons", "rate", "silent", "saturated"]
        lines = [heading + ["membrane mean", "std", "min", "max"] * watched]
        for layer in layers:
            neurons = " x ".join(map(str, layer.shape))
            shares = (float(layer.rate.mean()), layer.silent, layer.saturated)
            lines.append([layer.name or "(model)", layer.type, neurons, *(f"{100 * s:.1f} %" for s in shares)])
            if layer.membrane is not None:
                m = layer.membrane
                spread = (m.std.square().mean() + m.mean.var(unbiased=False)).sqrt()  # over steps too
                values = (m.mean.mean(), spread, m.low.min(), m.high.max())
                lines[-1] += [f"{float(v):.3f}" for v in values]
        widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
        text = [
            "  ".join(cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths)))  # noqa: B905
            for line in lines
        ]
        seen = sorted({(layer.samples, len(layer.rate)) for layer in layers})
        caption = "; ".join(f"{samples} samples, T = {steps}" for samples, steps in seen)
        return "\n".join(line.rstrip() for line in [text[0], "-" * max(map(len, text)), *text[1:], caption])

    def plot(self, path: str | Path) -> None:
        """Firing rates as a picture: a row for each layer, a column for each step. The ending of ``path`` is the format."""
        layers = self.layers
        steps = max(len(layer.rate) for layer in layers)
        rates = torch.full((len(layers), steps), torch.nan, dtype=torch.float64)
        for row, layer in zip(rates, layers, strict=True):
            row[: len(layer.rate)] = 100 * layer.rate
        top = max(float(rates.nan_to_num().max()), 1e-9)
        with figures.style():
            made = figures.figure(max(0.42 * steps, 1.2) + 3.4, max(0.36 * len(layers), 0.7) + 1.0)
            axes = made.subplots()
            shown = axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
            axes.set_yticks(range(len(layers)), [f"{layer.name or '(model)'} {layer.type}" for layer in layers])
            every = -(-steps // 16)
            axes.set_xticks(range(0, steps, every), [str(t + 1) for t in range(0, steps, every)])
            axes.set_xlabel("time step")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if steps <= 12:
                for (i, t), rate in zip(_cells(len(layers), steps), rates.flatten().tolist(), strict=True):
                    colour = figures.PAPER if rate > 0.6 * top else figures.INK
                    text = "" if rate != rate else f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}"
                    axes.text(t, i, text, ha="center", va="center", color=colour, fontsize=figures.TEXT - 2.5)
            bar = made.colorbar(shown, ax=axes, pad=0.02, format=lambda value, _: f"{value:.3g}\u00a0%")
            bar.outline.set_visible(False)
            bar.set_label("not zero" if layers[0].type.startswith("ReLU") else "firing rate")
            figures.save(made, path)


def _cells(rows: int, columns: int) -> Iterable[tuple[int, int]]:
    return ((i, t) for i in range(rows) for t in range(columns))


def _activity(tally: Tally) -> Activity:
    observed = tally.observed.clamp(min=1)
    membrane = None
    if tally.membrane is not None:
        m = tally.membrane
        membrane = MembraneStatistics(m.mean, (m.deviation / m.count).sqrt(), m.low, m.high)
    return Activity(
        tally.name, tally.kind, tally.shape or (), tally.samples, tally.active / observed, tally.total / observed,
        1.0 - float(tally.fired.double().mean()), tally.always / tally.pairs, membrane,
    )  # fmt: skip
