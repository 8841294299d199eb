"""Figures of an evaluation, as matplotlib figures. They need no display and leave pyplot and matplotlib's settings alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snnrobust.evaluation.report import CLEAN, NO_ATTACKS, NULL, WORST, RobustnessReport
from snnrobust.figures import GRID, INK, MARKERS, MUTED, PAPER, SERIES, TEXT, style
from snnrobust.figures import figure as blank

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_per_chip",
    "accuracy_vs_eps",
    "compare_worst_case",
    "example_strip",
    "suite_stages",
    "training_curves",
]

Row = Mapping[str, Any]
Report = RobustnessReport | Mapping[str, Any] | Sequence[Row]
Images = NDArray[np.float64]

WIDTH, HEIGHT = 4.0, 2.9  # inches a panel: small, so that its text stays legible on a phone


class Curve(NamedTuple):
    """Accuracy and its 95 % interval over budgets, the clean accuracy first, at eps 0."""

    eps: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]


def accuracy_vs_eps(report: Report, *, models: Sequence[str] | None = None, chip: str | None = None) -> Figure:
    """Accuracy over the budget, a panel for each model: worst case with its 95 % band, single attacks, null control.

    Args:
        report: A report, its JSON or its rows.
        models: Default all of them.
        chip: Default each model's first.
    """
    rows = rows_of(report)
    chosen = _chosen(rows, models)
    attacks = [a for a in distinct(rows, "attack") if a not in NO_ATTACKS]
    with style():
        figure, panels = _panels(len(chosen))
        for axes, model in zip(panels, chosen, strict=True):
            on = chip if chip is not None else chips_of(rows, model)[0]
            _titled(axes, model)
            _banded(axes, curve(rows, model, on, WORST), INK, "worst case")
            for i, attack in enumerate(attacks):
                one = curve(rows, model, on, attack)
                if len(one.eps) > 1 or (one.eps and one.eps[0] > 0):
                    axes.plot(
                        one.eps, one.accuracy, color=SERIES[i % len(SERIES)], marker=MARKERS[i % len(MARKERS)], ms=4.5,
                        mfc=PAPER, lw=1.1, label=label(attack), zorder=4, markevery=slice(1, None) if one.eps[0] == 0 else None,
                    )  # fmt: skip
            _dashed(axes, curve(rows, model, on, NULL), "null control")
            _budgets(axes, rows)
        _legend(figure, panels)
    return figure


def compare_worst_case(
    report: Report, models: Mapping[str, str], *, null: str | None = None, chip: str | None = None
) -> Figure:
    """Worst-case accuracy of several models in one panel, with 95 % bands.

    Args:
        report: A report, its JSON or its rows.
        models: What to call each model in the legend.
        null: A model whose null control is drawn too.
        chip: Default each model's first.
    """
    rows = rows_of(report)
    chosen = _chosen(rows, list(models))
    with style():
        figure, panels = _panels(1)
        for i, model in enumerate(chosen):
            on = chip if chip is not None else chips_of(rows, model)[0]
            found, colour = curve(rows, model, on, WORST), SERIES[i % len(SERIES)]
            _banded(panels[0], found, colour, label(models[model], 40), MARKERS[i % len(MARKERS)])
        if null is not None:
            noise = curve(rows, null, chip if chip is not None else chips_of(rows, null)[0], NULL)
            _dashed(panels[0], noise, "null control")
        _budgets(panels[0], [r for r in rows if r["model"] in chosen])
        _legend(figure, panels, most=1)
    return figure


def accuracy_per_chip(report: Report, *, models: Sequence[str] | None = None) -> Figure:
    """Clean and worst-case accuracy on each chip at each budget, with 95 % intervals; a panel for each model. Budgets that were
    tried on one chip only are left out, if there are others.

    Args:
        report: A report, its JSON or its rows.
        models: Default all of them.
    """
    rows = rows_of(report)
    chosen = _chosen(rows, models)
    colours = distinct(rows, "chip")  # a chip keeps its colour from figure to figure
    every = distinct([r for r in rows if r["model"] in chosen], "chip")
    worst = [r for r in rows if r["attack"] == WORST and r["model"] in chosen]
    measured = {eps: {r["chip"] for r in worst if r["eps"] == eps} for eps in distinct(worst, "eps")}
    budgets = sorted(eps for eps, chips in measured.items() if len(chips) > 1 or len(every) == 1)
    size = min(6.0, 120 / (len(every) * (1 + len(budgets))))
    with style():
        figure, panels = _panels(len(chosen))
        for axes, model in zip(panels, chosen, strict=True):
            _titled(axes, model)
            for i, chip in enumerate(every):
                found = {r["eps"]: r for r in rows if (r["model"], r["chip"], r["attack"]) == (model, chip, WORST)}
                clean = [r for r in rows if (r["model"], r["chip"], r["attack"]) == (model, chip, CLEAN)]
                shown = [(0, r) for r in clean[:1]] + [(1 + j, found[b]) for j, b in enumerate(budgets) if b in found]
                if not shown:
                    continue
                c, shift = colours.index(chip), 0.6 * ((i + 0.5) / len(every) - 0.5)
                low, accuracy, high = np.array(
                    [[100 * r[key] for _, r in shown] for key in ("low", "accuracy", "high")]
                )
                axes.errorbar(
                    [x + shift for x, _ in shown], accuracy, yerr=np.clip([accuracy - low, high - accuracy], 0, None),
                    fmt=MARKERS[c % len(MARKERS)], ms=size, lw=1.6, capsize=size / 2.5,
                    color=SERIES[c % len(SERIES)], label=label(chip),
                )  # fmt: skip
            axes.axvline(0.5, color=GRID, lw=1)
            ticks = ["clean", *map(eps_text, budgets)]
            axes.set_xticks(range(len(ticks)), ticks, rotation=90 if max(map(len, ticks)) * len(ticks) > 34 else 0)
            axes.set_xlim(-0.5, len(budgets) + 0.5)
            axes.set_xlabel("worst case at eps", x=(1 + len(budgets) / 2) / (len(budgets) + 1))
            _percentages(axes)
        _legend(figure, panels)
    return figure


def example_strip(
    examples: RobustnessReport | Sequence[Row], *, model: str | None = None, eps: float | None = None, most: int = 8
) -> Figure:
    """Clean image, amplified change and adversarial image, a column for each example.

    Args:
        examples: A report, or its examples.
        model, eps: Only those of this model, of this budget.
        most: At most so many columns.
    """
    every = examples.examples if isinstance(examples, RobustnessReport) else examples
    chosen = [e for e in every if model in (None, e["model"]) and eps in (None, e["eps"])][:most]
    if not chosen:
        raise ValueError(f"no example fits model={model!r}, eps={eps}")
    scale = largest_change(chosen)
    with style():
        figure = blank(max(1.2 * len(chosen), 2.4) + 0.4, 4.2)
        grid = figure.subplots(3, len(chosen), squeeze=False)
        for column, example in enumerate(chosen):
            for axes, image in zip(grid[:, column], pictures(example, scale), strict=True):
                axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            grid[0, column].set_title(f"label {example['label']}", fontsize=TEXT)
            grid[0, column].set_xlabel(f"read as {example['clean_prediction']}")
            grid[2, column].set_xlabel(f"read as {example['prediction']}")
        for axes, text in zip(grid[:, 0], ("clean", f"change × {amplification(scale)}", "attacked"), strict=True):
            axes.set_ylabel(text)
    return figure


def suite_stages(stages: Sequence[Row]) -> Figure:
    """Accuracy that is left after each stage of a suite, from top to bottom.

    Args:
        stages: Records of one run of a suite, those that were run.
    """
    names = [label(s["stage"], 40) for s in stages]
    values = [100 * s["accuracy"] for s in stages]
    with style():
        figure = blank(1.6 * WIDTH, 0.8 + 0.22 * len(stages))
        axes = figure.subplots()
        places = range(len(stages), 0, -1)
        axes.hlines(places, 0, values, color=GRID, lw=5)
        axes.plot(values, places, "o", color=SERIES[0], ms=5)
        for place, value, stage in zip(places, values, stages, strict=True):
            broken = f"  -{stage['broken']:,}" if stage["broken"] else ""
            axes.annotate(
                f"{value:.1f}{broken}",
                (value, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
                size=TEXT,
            )
        axes.set_yticks(list(places), names)
        axes.set_xlim(0, max(105.0, 1.15 * max(values)))
        axes.set_xlabel("accuracy after the stage, %  (and images broken by it)")
        axes.set_ylim(0.4, len(stages) + 0.6)
    return figure


def training_curves(histories: Mapping[str, Any], *, models: Sequence[str] | None = None) -> Figure:
    """Accuracy and loss over epochs, a column for each model.

    Args:
        histories: For each model its epoch records, or a ``History``.
        models: Default all of them.
    """
    chosen = list(histories) if models is None else list(models)
    if not chosen:
        raise ValueError("histories must hold at least one model")
    with style():
        figure = blank(WIDTH * len(chosen), 3.7)
        grid = figure.subplots(2, len(chosen), squeeze=False, sharex="col", height_ratios=(3, 2))
        for (top, bottom), model in zip(grid.T, chosen, strict=True):
            records = getattr(histories[model], "records", histories[model])
            _titled(top, model)
            for axes, key, colour, dash, name in (
                (top, "accuracy", SERIES[0], "-", "training"), (top, "validation_accuracy", SERIES[1], "--", "validation"),
                (bottom, "loss", SERIES[0], "-", "training"),
            ):  # fmt: skip
                points = [
                    (r["epoch"], r[key] if key == "loss" else 100 * r[key]) for r in records if r.get(key) is not None
                ]
                if points:
                    marker = "o" if len(points) == 1 else ""
                    axes.plot(*zip(*points, strict=True), color=colour, lw=1.6, marker=marker, ls=dash, label=name)
            _percentages(top)
            lowest = min([100.0, *(float(np.nanmin(line.get_ydata())) for line in top.lines)])
            top.set_ylim(10 * min(int(lowest // 10), 9), 100.8)
            top.set_yticks([y for y in top.get_yticks() if top.get_ylim()[0] <= y <= 100])
            bottom.set_ylim(bottom=0)
            bottom.set_ylabel("loss")
            bottom.set_xlabel("epoch")
            bottom.grid(axis="y", color=GRID, lw=0.8)
            bottom.xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, list(grid[0]))
    return figure


# --- rows, numbers and words ------------------------------------------------------------------------------------------


def rows_of(report: Report) -> Sequence[Row]:
    if isinstance(report, RobustnessReport):
        return report.rows
    if isinstance(report, Mapping):
        rows: Sequence[Row] = report.get("report", report)["rows"]
        return rows
    return report


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(r[key] for r in rows))


def chips_of(rows: Sequence[Row], model: str) -> list[str]:
    return distinct([r for r in rows if r["model"] == model], "chip")


def curve(rows: Sequence[Row], model: str, chip: str, attack: str) -> Curve:
    chosen = [r for r in rows if r["model"] == model and r["chip"] == chip and r["attack"] in (CLEAN, attack)]
    chosen.sort(key=lambda r: float(r["eps"]))
    return Curve([r["eps"] for r in chosen], *([100 * r[key] for r in chosen] for key in ("accuracy", "low", "high")))


def eps_text(eps: float) -> str:
    """The budget as it was probably written: 0.05, 8/255."""
    short = f"{eps:.4g}"
    parts = round(255 * eps)
    return f"{parts}/255" if float(short) != eps and abs(parts / 255 - eps) < 1e-7 else short


def label(name: object, longest: int = 32) -> str:
    """A name as it can stand in a figure: one line, no control characters, not too long, never hidden from the legend."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(name))
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "\u200b" + text if text.startswith("_") else text


def pictures(example: Row, scale: float) -> tuple[Images, Images, Images]:
    """Clean image, change (grey: none; white and black: ``scale`` up and down) and adversarial image, [H, W] or [H, W, 3]."""
    clean, adversarial = picture(example["clean"]), picture(example["adversarial"])
    return clean, 0.5 + (adversarial - clean) / (2 * scale), adversarial


def picture(values: ArrayLike) -> Images:
    """[C, H, W], or event frames [T, C, H, W] averaged over time, as [H, W] or [H, W, 3]; of two polarities red is the second."""
    image = np.asarray(values, dtype=np.float64)
    while image.ndim > 3:
        image = image.mean(0)
    if image.ndim < 3:
        return np.atleast_2d(image)
    if len(image) == 2:
        image = np.stack([image[1], np.zeros_like(image[0]), image[0]])
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)


def largest_change(examples: Sequence[Row]) -> float:
    """What the change images are scaled by; 1 if nothing changed."""
    return (
        max((float(np.abs(picture(e["adversarial"]) - picture(e["clean"])).max()) for e in examples), default=0.0)
        or 1.0
    )


def amplification(scale: float) -> str:
    return f"{0.5 / scale:.2g}" if scale > 0.05 else f"{0.5 / scale:.0f}"


# --- figures ----------------------------------------------------------------------------------------------------------


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = ceil(count / columns)
    figure = blank(WIDTH * columns, HEIGHT * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for spare in list(grid.flat)[count:]:
        spare.remove()
    return figure, list(grid.flat)[:count]


def _chosen(rows: Sequence[Row], models: Sequence[str] | None) -> list[str]:
    known = distinct(rows, "model")
    chosen = known if models is None else list(models)
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"models must be among those of the report, {known}, got {chosen}")
    return chosen


def _banded(axes: Axes, found: Curve, colour: str, name: str, marker: str = "") -> None:
    axes.plot(found.eps, found.accuracy, color=colour, lw=2.6, marker=marker, ms=6, label=name, zorder=3)
    name_band = "" if marker else "95\u00a0% band"
    axes.fill_between(found.eps, found.low, found.high, color=colour, alpha=0.16, lw=0, label=name_band, zorder=1)
    if found.eps and found.eps[0] == 0 and not marker:
        axes.plot(found.eps[:1], found.accuracy[:1], "o", ms=7, mfc=PAPER, mec=colour, mew=1.8, label="clean", zorder=5)


def _dashed(axes: Axes, found: Curve, name: str) -> None:
    if found.eps:
        axes.plot(found.eps, found.accuracy, color=MUTED, linestyle=(0, (4, 2)), lw=1.4, label=name, zorder=2)


def _titled(axes: Axes, name: str) -> None:
    axes.set_title(label(name, 28), loc="left", fontsize=TEXT + 0.5, fontweight="bold")


def _percentages(axes: Axes) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}\u00a0%")
    axes.set_ylabel("accuracy")
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def _budgets(axes: Axes, rows: Sequence[Row]) -> None:
    """The axes of accuracy over budget: a tick at 0 and, from the largest budget down, wherever its text has room."""
    budgets = sorted({float(r["eps"]) for r in rows} | {0.0})
    largest = budgets[-1] or 1.0
    ticks = [largest, 0.0]
    for budget in reversed(budgets):
        if all(abs(budget - t) > largest * 0.035 * max(len(eps_text(budget)), 2) for t in ticks):
            ticks.append(budget)
    axes.set_xlim(-0.03 * largest, 1.03 * largest)
    axes.set_xticks(sorted(ticks), [eps_text(t) for t in sorted(ticks)])
    axes.set_xlabel("eps, the attack's budget")
    _percentages(axes)


def _legend(figure: Figure, panels: Sequence[Axes], most: int = 4) -> None:
    """Below the panels, where it covers nothing, in as many columns as fit."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if not handles:
        return
    width, height = figure.get_size_inches()
    for columns in range(min(len(handles), most), 0, -1):
        parts = np.array_split([len(name) for name in handles], columns)
        if sum(0.6 + 0.085 * int(part.max()) for part in parts) < width:
            break
    figure.set_size_inches(width, height + 0.22 * len(parts[0]))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT - 0.5,
        columnspacing=1.2,
    )
