"""The report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from snnrobust import figures
from snnrobust.evaluation import plots
from snnrobust.evaluation.paragraph import paragraph
from snnrobust.evaluation.plots import Row, chips_of, distinct, eps_text
from snnrobust.evaluation.report import CLEAN, NO_ATTACKS, NULL, WORST, RobustnessReport

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["render"]

SPACE = "\u00a0"  # keeps a number and its unit on one line
CLAIM = 1000  # samples, by PROTOCOL.md
OPEN_EXAMPLES = 6
VERDICTS = {
    "consistent": "Nothing speaks against the gradient. This is no proof of robustness: an attack not tried here may do better.",
    "inconclusive": "A check could not tell, or raised a doubt that is no proof. Until it is settled, read the accuracy "
    "under attack as an upper bound only.",
    "masked": "A check proves it, or several raise doubts of different kinds: the attacks were led astray. Their "
    "accuracy is no evidence that this model resists.",
}
# Each colour of the figures becomes a CSS variable, so that the page can darken them.
COLOURS = {figures.INK: "ink", figures.MUTED: "muted", figures.GRID: "grid", figures.PAPER: "card"}
COLOURS |= {colour: f"series-{i}" for i, colour in enumerate(figures.SERIES)}


def render(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: The JSON content of a run's results: ``report``, and optionally ``name``, ``notes``, ``diagnoses``, ``traps``,
            ``histories``, ``precision``, ``configuration`` and ``versions``.

    Raises:
        ValueError: ``report`` is missing or not a report's JSON.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    report = results.get("report")
    if isinstance(report, RobustnessReport):
        report = report.to_json()
    if not isinstance(report, Mapping) or "rows" not in report:
        raise ValueError(f"results['report'] must be the JSON of a RobustnessReport, got {report!r:.100}")
    environment = Environment(
        loader=PackageLoader("snnrobust.evaluation", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "interval": interval, "eps": eps_text, "count": count, "runs": runs}
    return environment.get_template("report.html.j2").render(_page(results, report))


def _page(results: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    rows: Sequence[Row] = report["rows"]
    traps = results.get("traps") or []
    false = {t["model"] for t in traps}
    models = [m for m in distinct(rows, "model") if m not in false]
    main = [r for r in rows if r["model"] in models]
    diagnoses = results.get("diagnoses") or {}
    several = [m for m in models if len(chips_of(rows, m)) > 1]
    histories = {m: records for m, records in (results.get("histories") or {}).items() if records}
    return {
        "name": results.get("name"),
        "summary": _summary(main, report.get("settings") or {}, models),
        "notes": [*(results.get("notes") or []), *(report.get("notes") or [])],
        "key": _key_numbers(main, models),
        "diagnoses": {m: _diagnosis(diagnoses[m]) for m in [*models, *diagnoses] if m in diagnoses and m not in false},
        "suites": [_suite(list(group), i) for i, group in enumerate(_suites(report.get("stages") or []))],
        "paragraph": paragraph(report) if report.get("settings") else "",
        "curves": [_curve_figure(rows, m, f"curve{i}") for i, m in enumerate(models)],
        "chips": [_chip_figure(rows, m, f"chip{i}") for i, m in enumerate(several)],
        "one_chip": [(m, chips_of(rows, m)[0]) for m in models if m not in several] if several else [],
        "examples": [e for m in models if (e := _examples(report.get("examples") or [], m))],
        "traps": [_trap(t, rows, diagnoses, f"trap{i}") for i, t in enumerate(traps)],
        "trap_models": false,
        "training": [_training_figure(histories, m, f"training{i}") for i, m in enumerate(histories)],
        "precision": results.get("precision") or {},
        "rows": rows,
        "worst": WORST,
        "null": NULL,
        "configuration": results.get("configuration"),
        "versions": results.get("versions") or {},
    }


# --- sentences and tables ---------------------------------------------------------------------------------------------


def _summary(rows: Sequence[Row], settings: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """What was measured, in sentences."""
    if not rows:
        return ["Nothing has been measured yet."]
    given: dict[str, list[str]] = {}  # models by what they were attacked with
    for model in models:
        own = [r for r in rows if r["model"] == model and r["attack"] not in NO_ATTACKS]
        norm = f" in {settings['norm']}" if "norm" in settings else ""
        eps = listed(map(eps_text, sorted({r["eps"] for r in own}))) + norm
        by = (
            f"attacked with {named(distinct(own, 'attack'))} at eps{SPACE}= {eps}" if own else "measured without attack"
        )
        given.setdefault(by, []).append(model)
    n = distinct(rows, "n")
    seed = f" (seed{SPACE}{settings['seed']})" if "seed" in settings else ""
    text = [f"{named(who)} {'were' if len(who) > 1 else 'was'} {by}." for by, who in given.items()]
    text.append(
        f"Measured on the first {listed(map(count, n))} samples of the data{seed}; those that a model gets wrong without any "
        "attack stay in the denominator."
    )
    chips = distinct(rows, "chip")
    if len(chips) > 1:
        text.append(f"Each attack was crafted and judged on each chip by itself: {named(chips)}.")
    random = [r for r in rows if r["judge_draws"] > 1]
    fixed = [r for r in rows if r["judge_draws"] <= 1]
    if random:
        select, judge = (listed(distinct(random, key)) for key in ("selection_draws", "judge_draws"))
        text.append(
            f"Adversarial inputs were selected on {select} random draws of the model and judged on {judge} others."
        )
    if random and fixed:
        on = {m: chips_of(fixed, m) for m in distinct(fixed, "model")}
        where = [m if chips == chips_of(rows, m) else f"{m} on {named(chips)}" for m, chips in on.items()]
        text.append(f"Without randomness one draw decides: {'; '.join(where)}.")
    if min(n) < CLAIM:
        text.append(f"n{SPACE}={SPACE}{min(n):,} is small: an illustration, not a claim.")
    return text


def _key_numbers(rows: Sequence[Row], models: Sequence[str]) -> dict[str, Any]:
    """For each model, on its first chip, the clean row and the worst-case row of each budget."""
    budgets = sorted({r["eps"] for r in rows if r["attack"] == WORST})
    lines = []
    for model in models:
        chip = chips_of(rows, model)[0]
        own = {(r["attack"], r["eps"]): r for r in rows if r["model"] == model and r["chip"] == chip}
        clean = next((r for r in own.values() if r["attack"] == CLEAN), None)
        lines.append({"model": model, "chip": chip, "cells": [clean, *(own.get((WORST, b)) for b in budgets)]})
    return {"names": ["clean", *(f"eps{SPACE}{eps_text(b)}" for b in budgets)], "lines": lines}


def _diagnosis(report: Mapping[str, Any]) -> dict[str, Any]:
    passed = sum(c["status"] == "passed" for c in report["checks"])
    return {
        **report,
        "explained": VERDICTS.get(report["verdict"], ""),
        "passed": f"{passed} of {len(report['checks'])} checks passed.",
        "settings": ", ".join(f"{name}{SPACE}{value}" for name, value in (report.get("settings") or {}).items()),
    }


def _examples(examples: Sequence[Row], model: str) -> dict[str, Any] | None:
    """Those of one model, by budget; first the smallest budget at which most of them are turned."""
    own = [e for e in examples if e["model"] == model]
    if not own:
        return None
    groups = []
    for eps in sorted({e["eps"] for e in own}):
        chosen = [e for e in own if e["eps"] == eps]
        scale = plots.largest_change(chosen)
        cards = [
            {
                **e,
                "images": [_png(image) for image in plots.pictures(e, scale)],
                "turned": e["prediction"] != e["label"],
            }
            for e in chosen
        ]
        groups.append({
            "eps": eps, "cards": cards, "scale": scale, "times": plots.amplification(scale),
            "turned": sum(c["turned"] and c["clean_prediction"] == c["label"] for c in cards),
        })  # fmt: skip
    first = max(groups, key=lambda g: g["turned"])
    shown = {**first, "cards": first["cards"][:OPEN_EXAMPLES]}
    return {"model": model, "chip": own[0]["chip"], "shown": shown, "others": [g for g in groups if g is not first]}


def _suites(stages: Sequence[Row]) -> list[list[Row]]:
    """The stages of each run of a suite together."""
    keys = ("model", "chip", "eps", "suite")
    return [list(group) for _, group in groupby(stages, key=lambda s: tuple(s[k] for k in keys))]


def _suite(stages: Sequence[Row], number: int) -> dict[str, Any]:
    first = stages[0]
    ran = [s for s in stages if not s["skipped"]]
    found = {
        **{key: first.get(key) for key in ("model", "chip", "eps", "suite", "version")},
        "stages": ran, "ran": len(ran), "skipped": [s for s in stages if s["skipped"]], "open": bool(first.get("version")),
        "figure": None,
    }  # fmt: skip
    if ran and found["open"]:
        said = "; ".join(f"{s['stage']}: {percent(s['accuracy'])}" for s in ran)
        found["figure"] = inline(plots.suite_stages(ran), f"Accuracy after each stage. {said}.", f"suite{number}")
    return found


def _trap(trap: Row, rows: Sequence[Row], diagnoses: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The false result beside the honest one."""
    model, twin = trap["model"], trap.get("same_weights_as")
    measured: list[str] = sorted((m for m in distinct(rows, "model") if m in (twin, model)), key=lambda m: m == model)
    names = {m: f"honest: {m}" if m == twin else f"false: {m}" for m in measured}
    found = {
        "model": model, "twin": twin, "kinds": {m: "honest" if m == twin else "false" for m in measured},
        "title": trap.get("title"), "text": trap.get("text"), "figure": None,
        "key": _key_numbers([r for r in rows if r["model"] in measured], measured),
        "diagnosis": _diagnosis(diagnoses[model]) if model in diagnoses else None,
    }  # fmt: skip
    if measured:
        figure = plots.compare_worst_case(rows, names, null=model if model in measured else None)
        said = "; ".join(_spoken(rows, m, names[m]) for m in measured)
        found["figure"] = inline(figure, f"Worst-case accuracy over eps, from the same weights. {said}.", key)
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def _curve_figure(rows: Sequence[Row], model: str, key: str) -> Markup:
    figure = plots.accuracy_vs_eps(rows, models=[model])
    return inline(figure, f"Accuracy over eps. {_spoken(rows, model, f'Worst case for {model}')}.", key)


def _chip_figure(rows: Sequence[Row], model: str, key: str) -> Markup:
    said = "; ".join(_spoken(rows, model, f"{model} on {chip}", chip) for chip in chips_of(rows, model))
    return inline(
        plots.accuracy_per_chip(rows, models=[model]), f"Clean and worst-case accuracy on each chip. {said}.", key
    )


def _training_figure(histories: Mapping[str, Any], model: str, key: str) -> Markup:
    last = histories[model][-1]
    said = [
        f"{name.replace('_', ' ')} {percent(last[name])}"
        for name in ("accuracy", "validation_accuracy")
        if last.get(name) is not None
    ]
    text = f"Accuracy and loss of {model} over {len(histories[model])} epochs. At the end: {listed(said)}."
    return inline(plots.training_curves(histories, models=[model]), text, key)


def _spoken(rows: Sequence[Row], model: str, name: str, chip: str | None = None) -> str:
    """A curve in words, for those who cannot see it."""
    found = plots.curve(rows, model, chip if chip is not None else chips_of(rows, model)[0], WORST)
    points = (f"{a:.1f}{SPACE}% at {eps_text(e)}" for e, a in zip(found.eps, found.accuracy, strict=True))
    return f"{name}: {listed(points)}"


def inline(figure: Figure, text: str, key: str) -> Markup:
    """The figure as SVG to be put into a page; ``key`` keeps its ids apart from those of other figures."""
    from markupsafe import Markup

    drawn = io.StringIO()
    with figures.style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser draws the text, with its own fonts
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    root = ET.fromstring(drawn.getvalue())
    referred = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", drawn.getvalue()))
    ids = {old: f"{key}-{i}" for i, old in enumerate(sorted(referred))}
    for element in root.iter():
        for child in [c for c in element if c.tag.endswith(("}metadata", "}style"))]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.items()}
        if attributes.pop("id", None) in referred:
            attributes["id"] = ids[element.get("id", "")]
        for name, value in attributes.items():
            attributes[name] = re.sub(
                r"#[\w-]+", lambda m: f"#{ids[m[0][1:]]}" if m[0][1:] in ids else _variable(m[0]), value
            )
        if "style" in attributes:
            attributes["style"] = re.sub(r"font-family:[^;]*;?", "", attributes["style"])
        element.attrib.clear()
        element.attrib.update(attributes)
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": _printable(text)})
    return Markup(ET.tostring(root, encoding="unicode"))


def _variable(colour: str) -> str:
    return f"var(--{COLOURS[colour]})" if colour in COLOURS else colour


def _png(image: plots.Images) -> str:
    """As a data URL, a pixel for a pixel."""
    from matplotlib.image import imsave

    data = io.BytesIO()
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    no_name: dict[Any, Any] = {"Software": None}
    imsave(data, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1), format="png", metadata=no_name)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


# --- words ------------------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}{SPACE}%"


def interval(row: Row) -> str:
    return f"{100 * row['low']:.1f}{SPACE}–{SPACE}{100 * row['high']:.1f}"


def count(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.4g}" if isfinite(number) else str(number)


def runs(rows: Sequence[Row]) -> list[list[Row]]:
    """Neighbours of one model, chip and budget together."""
    return [list(group) for _, group in groupby(rows, key=lambda r: (r["model"], r["chip"], r["eps"]))]


def listed(items: Iterable[object]) -> str:
    """a, b and c."""
    words = [str(i) for i in items]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def named(names: Iterable[str]) -> str:
    """The same, with quotation marks where a name would break the list."""
    return listed(f"“{name}”" if re.search(r"[,;]| and ", name) else name for name in names)


def _printable(value: Any) -> Any:
    """Without control characters and lone surrogates, which no page can hold. What is already markup stays."""
    return (
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
        if type(value) is str
        else value
    )
