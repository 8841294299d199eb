"""``python -m benchmarks [NAME ...]``: run the benchmarks, print their tables and what of the targets is reached."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    attack,
    crossbar,
    encoder,
    events,
    fit,
    harness,
    lif,
    noise,
    peers,
    plots,
    quantization,
    report,
    rules,
    steps,
    threads,
    train,
)
from benchmarks.environment import allocator, environment
from benchmarks.harness import Result

BENCHMARKS: dict[str, tuple[harness.Cases, int]] = {
    "lif": (lif.cases, 21),
    "lif-memory": (lif.peaks, 3),
    "encoder": (encoder.cases, 21),
    "events": (events.cases, 21),
    "noise": (noise.cases, 21),
    "train": (train.cases, 7),
    "fit": (fit.cases, 7),
    "attack": (attack.cases, 5),
    "threads": (threads.cases, 9),
    "steps": (steps.cases, 5),
    "steps-memory": (steps.peaks, 1),
    "rules-memory": (rules.peaks, 1),
    "crossbar": (crossbar.cases, 7),
    "quantization": (quantization.cases, 21),
}
"""Name to (cases, repeats)."""

QUICK = 3
"""Repeats at most, with ``--quick``."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    if options.stored is None:
        about, results, refused = _measure(options, console)
    else:
        about, results, refused = *_read(options.stored), False
    sentences = [sentence for result in results for sentence in report.slower(result)]
    console.print(
        f"\nWhere {harness.OURS} is slower:", *(sentences or ["nowhere in this run"]), sep="\n  ", soft_wrap=True
    )
    console.print("", report.summary(results), sep="\n", soft_wrap=True)
    console.print(
        "Medians and quartiles of the ratios of single rounds, in which contenders take turns; tables have ratios of medians."
    )
    if options.plots is not None:
        for file in plots.draw(results, options.plots):
            console.print(f"wrote {file}")
    if options.write is not None:
        report.write(options.write, results, about)
    return int(refused)


def _measure(options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[Result], bool]:
    torch.set_num_threads(options.threads)
    about = environment(peers.PACKAGES)
    console.print(", ".join(f"{name}: {value}" for name, value in about.items()), soft_wrap=True)
    if about["load"] and about["load"][0] > 0.5 * (os.cpu_count() or 1):
        console.print(
            "[bold]The machine is busy: believe ratios within a table to about 10 %, and no absolute times.[/bold]"
        )
    if allocator():
        console.print(
            "[bold]The allocator is not the default one: targets are for the default. "
            f"Unset {', '.join(allocator())}.[/bold]"
        )
    results: list[Result] = []
    refused = False
    for name in options.names or BENCHMARKS:
        cases, repeats = BENCHMARKS[name]
        repeats = options.repeats or (min(repeats, QUICK) if options.quick else repeats)
        try:
            for case in cases(False):
                results.append(harness.run(case, repeats))
                console.print("", report.table(results[-1]), *report.remarks(results[-1]), sep="\n", soft_wrap=True)
                if options.json is not None:  # after each case: a run may be stopped
                    record = {"environment": about, "results": [result.record() for result in results]}
                    options.json.write_text(json.dumps(record, indent=1) + "\n")
        except harness.DisagreementError as error:
            console.print(f"\n{name} is not measured: {error}")
            refused = True
    return about, results, refused


def _read(file: Path) -> tuple[dict[str, Any], list[Result]]:
    record = json.loads(file.read_text())
    return record["environment"], [Result.of(result) for result in record["results"]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed of snnrobust beside its peers.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", type=_benchmark, help=f"{', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, help="of torch; with more than 1, wall time is compared"
    )
    parser.add_argument("--repeats", type=_positive, help="of every contender; default: 1 to 21")
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK} repeats")
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--from", dest="stored", type=_stored, metavar="FILE", help="measure nothing: take what --json wrote"
    )
    parser.add_argument("--plots", type=_folder, metavar="DIR", help="draw figures there")
    parser.add_argument("--write", type=_page, metavar="FILE", help="put the tables between the markers of this page")
    return parser


def _benchmark(text: str) -> str:
    if text not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(BENCHMARKS)}")
    return text


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that exists")
    return path


def _stored(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file")
    return path


def _page(text: str) -> Path:
    path = _stored(text)
    try:
        report.check(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
