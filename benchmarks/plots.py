"""The figures of docs/performance.md, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.events import BF16 as DENSE_BF16
from benchmarks.events import DENSE, LAST
from benchmarks.harness import OURS, Result
from benchmarks.lif import KEPT, NAIVE
from benchmarks.peers import JELLY, SNNTORCH
from benchmarks.targets import judge
from snnrobust import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = ["draw"]


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Every figure that ``results`` have something for; the files."""
    files = []
    for name, made_of in FIGURES.items():
        with figures.style():
            figure = made_of(results)
        if figure is not None:
            files.append(folder / name)
            figures.save(figure, files[-1])
    return files


def speeds(results: Sequence[Result]) -> Figure | None:
    """Times the speed of a peer, for each target that is one."""
    verdicts = [
        (result, v)
        for result in results
        for v in judge(result)
        if v.ratio is not None and not v.target.most and v.reference not in result.case.limits and result.clock == "cpu"
    ]
    if not verdicts:
        return None
    figure = figures.figure(9.0, 1.2 + 0.46 * len(verdicts))
    axes = figure.subplots()
    labels = []
    left = min(0.5, *(0.5 * v.ratio for _, v in verdicts if v.ratio))
    for y, (_, verdict) in enumerate(verdicts):
        ratio, target = verdict.ratio, verdict.target
        assert ratio is not None
        low, high = verdict.quartiles or (ratio, ratio)
        axes.barh(y, ratio, height=0.62, color=figures.SERIES[0 if verdict.reached else 1])
        axes.plot([low, high], [y, y], color=figures.INK, linewidth=1.2)
        axes.text(1.06 * left, y, f"{ratio:.3g}x", va="center", color=figures.PAPER)
        axes.plot([target.wanted] * 2, [y - 0.42, y + 0.42], color=figures.INK, linewidth=2.4)
        if target.aim is not None:
            axes.plot([target.aim] * 2, [y - 0.42, y + 0.42], color=figures.MUTED, linewidth=1.6, linestyle=":")
        labels.append(f"{target.row}\nbeside {verdict.reference}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    _log(axes, "x", [0.5, 1, 2, 5, 10, 20, 50])
    axes.axvline(1.0, color=figures.MUTED, linewidth=1.0)
    figure.supxlabel(
        f"{OURS}: times as fast (line: target, red bars miss it; dotted: aim; thin: quartiles)", fontsize=figures.TEXT
    )
    axes.set_xlim(left, 2 * max(v.ratio for _, v in verdicts if v.ratio))
    return figure


def limit(results: Sequence[Result]) -> Figure | None:
    """Share of the memory limit that neurons reach."""
    found = [r for r in results if r.case.figure == "lif" and r.limit is not None]
    if not found:
        return None
    figure = figures.figure(9.0, 4.2)
    axes = figure.subplots()
    names = [n for n in (OURS, KEPT, JELLY, SNNTORCH, NAIVE) if any(n in r.samples for r in found)]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        shares = [r.speed(name, r.limit) or 0.0 for r in found]
        axes.bar([x + (i - (len(names) - 1) / 2) * width for x in range(len(found))], shares, width, label=name,
                 color=figures.SERIES[i % len(figures.SERIES)])  # fmt: skip
    axes.axhline(0.5, color=figures.INK, linewidth=1.6, label="target")
    axes.axhline(0.8, color=figures.MUTED, linewidth=1.6, linestyle=":", label="aim")
    labels = [r.case.name.partition("[")[2].partition("]")[0].replace(" ", "") for r in found]
    axes.set_xticks(range(len(found)), labels)
    axes.set_xlabel("T, batch, ...")
    axes.set_ylabel("share of the memory limit")
    axes.set_ylim(0, 1.3)
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.legend(loc="upper left", ncols=3)
    return figure


def steps(results: Sequence[Result]) -> Figure | None:
    """Time and peak memory of a training step over T."""
    found = [r for kind in ("steps", "steps memory") for r in results if r.case.figure == kind]
    if not found:
        return None
    figure = figures.figure(9.0, 4.0)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, result in zip(panels, found, strict=True):
        case = result.case
        for i, (label, chunked) in enumerate((("whole sequence", False), ("in chunks", True))):
            names = [n for n in case.contenders if n in result.samples and ("chunks" in n) == chunked]
            if names:
                at, cost = zip(*((case.at[n], case.scale * result.median(n)) for n in names), strict=True)
                axes.plot(at, cost, marker=figures.MARKERS[i], color=figures.SERIES[i], label=label)
                if not chunked:
                    line = [cost[0] * t / at[0] for t in at]
                    axes.plot(at, line, color=figures.MUTED, linestyle=":", label="linear in T")
        _log(axes, "x", sorted(set(case.at.values())))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # without mathematics
        axes.yaxis.set_minor_formatter(lambda value, position: "")
        axes.set_xlabel("T")
        axes.set_ylabel("peak memory in MiB" if result.clock == "peak" else f"{result.clock} time in {case.unit}")
        axes.legend(loc="upper left")
    return figure


def rates(results: Sequence[Result]) -> Figure | None:
    """Speed of a convolution beside the best dense float32 one, over the spike rate."""
    found = sorted((r for r in results if r.case.figure == "rates"), key=lambda r: min(r.case.at.values()))
    if not found:
        return None
    figure = figures.figure(7.0, 4.2)
    axes = figure.subplots()
    at = [100 * min(r.case.at.values()) for r in found]
    for i, (name, label) in enumerate(((OURS, f"{OURS}, event-driven"), (DENSE_BF16, "dense, bf16"))):
        points = [
            (x, min(r.median(n) for n in (DENSE, LAST)) / r.median(name))
            for x, r in zip(at, found, strict=True)
            if name in r.samples
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker=figures.MARKERS[i], color=figures.SERIES[i], label=label)
    axes.axhline(1.0, color=figures.INK, linewidth=1.2, label="dense, float32")
    axes.plot([5], [4], marker="_", markersize=16, markeredgewidth=2.4, color=figures.INK, linestyle="", label="target")
    _log(axes, "x", at)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"], minor=False)
    axes.yaxis.set_minor_locator(_none())
    axes.set_xlabel("share of inputs that spike, in %")
    axes.set_ylabel("times as fast")
    axes.legend(loc="upper right")
    return figure


FIGURES: dict[str, Callable[[Sequence[Result]], Figure | None]] = {
    "performance-speeds.png": speeds,
    "performance-limit.png": limit,
    "performance-steps.png": steps,
    "performance-rates.png": rates,
}


def _log(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    """A logarithmic axis with these ticks only."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(list(ticks), [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(_none())


def _none() -> Locator:
    from matplotlib.ticker import NullLocator

    return NullLocator()
