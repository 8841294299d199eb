"""``python -m benchmarks [NAME ...]``: run the benchmarks, print their tables."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import attack, encoder, harness, lif, peers, train

BENCHMARKS: dict[str, tuple[harness.Cases, int]] = {
    "lif": (lif.cases, 21),
    "encoder": (encoder.cases, 21),
    "attack": (attack.cases, 5),
    "train": (train.cases, 5),
}
"""Name to (cases, repeats)."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    torch.set_num_threads(options.threads)
    environment = harness.environment(peers.PACKAGES)
    console.print(", ".join(f"{name}: {value}" for name, value in environment.items()), soft_wrap=True)
    if environment["load"] and environment["load"][0] > 0.5 * (os.cpu_count() or 1):
        console.print(
            "[bold]The machine is busy: believe ratios within a table to about 10 %, and no absolute times.[/bold]"
        )
    results, refused = [], False
    for name in options.names or BENCHMARKS:
        cases, repeats = BENCHMARKS[name]
        try:
            for case in cases(False):
                results.append(harness.run(case, options.repeats or repeats))
                console.print("", harness.table(results[-1]), *case.remarks, sep="\n", soft_wrap=True)
        except harness.DisagreementError as error:
            console.print(f"\n{name} is not measured: {error}")
            refused = True
    sentences = [sentence for result in results for sentence in harness.slower(result)]
    console.print(
        f"\nWhere {harness.OURS} is slower:", *(sentences or ["nowhere in this run"]), sep="\n  ", soft_wrap=True
    )
    if options.json is not None:
        record = {"environment": environment, "results": [result.record() for result in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(refused)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed of snnrobust beside its peers.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", type=_benchmark, help=f"{', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, help="of torch; with more than 1, wall time is compared"
    )
    parser.add_argument("--repeats", type=_positive, help="of every contender; default: 5 to 21")
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all samples there")
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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
