"""Tables: of one case, of all targets; and the part of docs/performance.md that is written from a run."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.harness import OURS, Result
from benchmarks.plots import FIGURES
from benchmarks.targets import Verdict, judge

__all__ = ["BEGIN", "END", "check", "remarks", "slower", "summary", "table", "write"]

BEGIN, END = "<!-- bench table -->", "<!-- end of bench table -->"


def table(result: Result) -> Table:
    """Medians, quartiles and speed of every contender. A bold row is ours."""
    case, peak = result.case, result.clock == "peak"
    how = f"peak of {case.reference} = 1" if peak else f"speed of {case.reference} = 1"
    rows = Table(
        title=f"{case.name} ({how})", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    rows.add_column("contender", no_wrap=True)
    other = "wall" if result.clock == "cpu" else "cpu"
    headings = [f"{result.clock} {case.unit}", "quartiles"]
    headings += ["ratio"] if peak else [other, "faults a call", "speed"]
    for heading in [*headings, "of limit"] if case.limits else headings:
        rows.add_column(heading, justify="right", no_wrap=heading == "quartiles")
    for name in case.contenders:
        if name not in result.samples:
            rows.add_row(name, "not measured")
            continue
        samples, speed = result.samples[name], result.speed(name)
        low, high = (_number(case.scale * q) for q in result.quartiles(name))
        cells = [_number(case.scale * result.median(name)), f"{low} – {high}"]
        if peak:
            cells.append(_ratio(None if speed is None else 1 / speed))
        else:
            cells.append(_number(case.scale * statistics.median(samples.wall if other == "wall" else samples.cpu)))
            cells += [f"{statistics.median(samples.faults):,.0f}", _ratio(speed)]
        if case.limits:
            cells.append(_ratio(None if result.limit is None else result.speed(name, result.limit)))
        rows.add_row(name, *cells, style="bold" if name.startswith(OURS) else None)
    return rows


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value >= 0.1 else f"{value:.3f}x"


def remarks(result: Result) -> list[str]:
    """What stands below the table: the case's remarks, and why contenders are missing."""
    missing = [f"{name}: {result.case.absent(name)}." for name in result.case.contenders if name not in result.samples]
    return [*result.case.remarks, *missing]


def slower(result: Result) -> list[str]:
    """A sentence for each contender, limits apart, that is faster than one of ours."""
    if result.clock == "peak":
        return []
    names = [name for name in result.samples if name not in result.case.limits]
    sentences = []
    for mine in (name for name in names if name.startswith(OURS)):
        for other in (name for name in names if not name.startswith(OURS)):
            speed = result.speed(mine, other)
            in_bf16 = other.endswith(", bf16") and f"{mine}, bf16" in result.samples  # that one is compared
            if speed is not None and speed < 1 and not in_bf16:
                clear = result.quartiles(mine)[0] > result.quartiles(other)[1]
                doubt = "" if clear else " (the quartiles overlap)"
                sentences.append(f"{result.case.name}: {mine} has {speed:.2f} times the speed of {other}{doubt}")
    return sentences


HEADINGS = ("row", "contender", "beside", "target", "aim", "measured", "quartiles", "")


def summary(results: Iterable[Result]) -> Table:
    """Every target beside its measured ratio."""
    rows = Table(
        title="Targets",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_lines=False,
    )
    for heading in HEADINGS:
        rows.add_column(heading, justify="right" if heading in ("target", "aim", "measured") else "left")
    for verdict in _verdicts(results):
        style = {True: None, False: "bold", None: "dim"}[verdict.reached]
        rows.add_row(*_cells(verdict), style=style)
    return rows


def _verdicts(results: Iterable[Result]) -> list[Verdict]:
    return [verdict for result in results for verdict in judge(result)]


def _cells(verdict: Verdict) -> tuple[str, ...]:
    target = verdict.target
    sign = "<=" if target.most else ">="
    measured = "-" if verdict.ratio is None else _times(verdict.ratio)
    spread = "-" if verdict.quartiles is None else " – ".join(_times(q, "") for q in verdict.quartiles)
    aim = "" if target.aim is None else f"{sign} {_times(target.aim)}"
    return (
        target.row, target.contender, verdict.reference, f"{sign} {_times(target.wanted)}", aim, measured, spread,
        verdict.sentence,
    )  # fmt: skip


def _times(ratio: float, unit: str = "x") -> str:
    return (f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 1 else f"{ratio:.2f}") + unit


def check(page: Path) -> None:
    """``page`` has the markers.

    Raises:
        ValueError: it has not.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} must have the line {BEGIN} once and, after it, {END}")


def write(page: Path, results: Sequence[Result], environment: Mapping[str, Any]) -> None:
    """Put the tables of a run between the markers of ``page``, and the figures of its folder ``images``."""
    check(page)
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    figures = [
        f"![{drawn.__doc__}](images/{name})"
        for name, drawn in FIGURES.items()
        if (page.parent / "images" / name).exists()
    ]
    block = "\n\n".join([_block(results, environment), *figures])
    page.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def _block(results: Sequence[Result], environment: Mapping[str, Any]) -> str:
    loads = sorted(r.load for r in results if r.load is not None)
    about = {k: v for k, v in environment.items() if k not in ("date", "load")}
    lines = [
        f"Measured {str(environment.get('date', ''))[:10]}. "
        + "; ".join(f"{name}: {_plain(value)}" for name, value in about.items())
        + (f"; load while it ran: {loads[0]:.1f} to {loads[-1]:.1f}." if loads else "."),
        "",
        *_markdown((*HEADINGS[:-1], "verdict"), [_cells(v) for v in _verdicts(results)]),
    ]
    lines += ["", "<details><summary>Every contender</summary>"]
    for result in results:
        case = result.case
        lines += ["", f"**{_escape(case.name)}**", ""]
        limits = ["of limit"] if case.limits else []
        peak = result.clock == "peak"
        head = ["contender", f"{result.clock}, {case.unit}", "quartiles", "ratio" if peak else "speed", *limits]
        rows = []
        for name in case.contenders:
            if name not in result.samples:
                rows.append([name, "not measured", *[""] * (len(head) - 2)])
                continue
            speed = result.speed(name)
            low, high = (_number(case.scale * q) for q in result.quartiles(name))
            row = [name, _number(case.scale * result.median(name)), f"{low} – {high}"]
            row.append(_ratio(speed if speed is None or not peak else 1 / speed))
            if limits:
                row.append(_ratio(None if result.limit is None else result.speed(name, result.limit)))
            rows.append(row)
        lines += [*_markdown(head, rows), "", " ".join(_escape(remark) for remark in remarks(result))]
    return "\n".join([*(line.rstrip() for line in lines), "", "</details>"])


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(_escape(cell) for cell in row) for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {line} |" for line in lines)]


def _plain(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _escape(text: str) -> str:
    return re.sub(r"([|*<])", r"\\\1", text)
