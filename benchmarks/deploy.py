"""``python -m benchmarks.deploy``: what it costs to put a network on crossbars with IR drop, and what a forward pass costs then.

The goal is a VGG9 on 64 x 64 tiles in under 60 s on two cores. Wall time says little on a machine that does other work: CPU
time of the process stands beside it, and the load. Solved tiles go to a folder of this run's own, which is empty at first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from snnrobust.hardware import Crossbar, deploy
from snnrobust.hardware.crossbar import estimate
from snnrobust.models import ARCHITECTURES, ordinary

GOAL = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """What was done, and how long it took."""

    what: str
    wall: float
    cpu: float
    load: float


def timed(what: str, call: Callable[[], _T]) -> tuple[_T, Row]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, Row(what, time.perf_counter() - wall, time.process_time() - cpu, os.getloadavg()[0])


def measure(model: nn.Module, shape: tuple[int, ...], rows: int, columns: int, batch: int, adc_bits: int) -> list[Row]:
    """All rows, with solved tiles in a folder that is empty at first and removed in the end."""
    before = os.environ.get("SNNROBUST_CACHE")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SNNROBUST_CACHE"] = folder
        try:
            crossbar = Crossbar(rows, columns, variation=0.1)
            chip, row = timed("deploy, nothing solved yet", lambda: deploy(model, crossbar, seed=1))
            found.append(row)
            found.append(timed("deploy again, tiles from disk", lambda: deploy(model, crossbar, seed=1))[1])
            without = Crossbar(rows, columns, variation=0.1, ir_drop=False)
            found.append(timed("deploy without IR drop", lambda: deploy(model, without, seed=1))[1])
            converting = deploy(model, Crossbar(rows, columns, variation=0.1, adc_bits=adc_bits, ir_drop=False), seed=1)
        finally:
            os.environ.pop("SNNROBUST_CACHE")
            if before is not None:
                os.environ["SNNROBUST_CACHE"] = before
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    passes = {"the model": model.eval(), "the chip": chip, f"the chip with {adc_bits}-bit ADCs": converting}
    with torch.no_grad():
        for name, network in passes.items():
            network(x)
            found.append(timed(f"a forward pass of {name}, batch {batch}", lambda network=network: network(x))[1])
    return found


WIRES = {
    "10 ohm terminals, 1 ohm wires": {"r_driver": 10.0, "r_sense": 10.0, "r_row": 1.0, "r_column": 1.0},
    "1 kohm terminals, 5 and 10 ohm wires": {"r_driver": 1e3, "r_sense": 1e3, "r_row": 5.0, "r_column": 10.0},
}
GAINS = ("none", "tile", "column")


def errors(wires: dict[str, float], size: int, width: int, seeds: int) -> dict[str, list[float]]:
    """|effective - programmed| / |programmed| of a layer of Gaussian weights, for each output gain; one number a seed."""
    found: dict[str, list[float]] = {gain: [] for gain in GAINS}
    for seed in range(seeds):
        weight = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
        for gain in GAINS:
            crossbar = Crossbar(size, size, **wires, output_gain=gain, cache=False)
            effective = crossbar.effective(weight[None]).float()[0]
            found[gain].append(float((effective - weight).norm() / weight.norm()))
    return found


def error_table(sizes: tuple[int, ...], width: int, seeds: int) -> Table:
    table = Table("wires", "tile", *(f"gain {gain}" for gain in GAINS))
    for name, wires in WIRES.items():
        for size in sizes:
            cells = [
                f"{100 * mean(e):.1f} +- {100 * stdev(e):.1f} %" for e in errors(wires, size, width, seeds).values()
            ]
            table.add_row(name, f"{size} x {size}", *cells)
    return table


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.errors:
        console = Console(width=130, highlight=False)
        console.print(
            f"relative error of the effective weight, {options.width} x {options.width} Gaussian weights, 3 seeds"
        )
        console.print(error_table((16, 32, 64, 128), options.width, 3))
        return
    shape = (3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ordinary(ARCHITECTURES[options.architecture], shape, 10)
    console = Console(width=110, highlight=False)
    told = estimate(model, Crossbar(options.rows, options.columns))
    console.print(f"{options.architecture}, {options.threads} threads; estimate: {told}")
    table = Table("", "wall, s", "CPU, s", "load")
    rows = measure(model, shape, options.rows, options.columns, options.batch, options.adc_bits)
    for row in rows:
        table.add_row(row.what, f"{row.wall:.2f}", f"{row.cpu:.2f}", f"{row.load:.1f}")
    console.print(table)
    verdict = "reached" if rows[0].wall < GOAL else "missed"
    console.print(f"goal, {GOAL:.0f} s of wall time for VGG9 on two cores: {verdict} ({rows[0].wall:.1f} s here)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deploy", description=__doc__)
    parser.add_argument("--architecture", default="vgg9", choices=list(ARCHITECTURES))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--adc-bits", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--errors", action="store_true", help="instead: how far effective weights are from programmed ones"
    )
    parser.add_argument("--width", type=int, default=256, help="of the layer for --errors")
    return parser


if __name__ == "__main__":
    main()
