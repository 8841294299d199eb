"""``python -m benchmarks.suite``: what the standard suite costs on small spiking networks for MNIST, and what it finds.

Three networks are trained (two epochs each, kept under the output folder) and attacked in Linf with the whole suite, without its
controls. Beside the time of all stages stands that of the processor, which other work does not lengthen; where stages of an
earlier run were read back it is less than it should be.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from snnrobust import attacks, data, evaluation, models
from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Encoder, Poisson
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan


@dataclass(frozen=True)
class Row:
    name: str
    channels: tuple[int, int]
    encoder: Encoder
    images: int


ROWS = (
    Row("conv16-32, direct, T = 4", (16, 32), Direct(4), 1000),
    Row("conv32-64, direct, T = 8", (32, 64), Direct(8), 200),
    Row("conv16-32, Poisson, T = 8, EOT", (16, 32), Poisson(8), 100),
)


def trained(row: Row, path: Path, epochs: int = 2, train: int = 60_000) -> models.SpikingClassifier:
    """From ``path``, or trained and written there."""
    if not path.exists():
        first, second = row.channels
        layers = (Conv(first), Pool(), Conv(second), Pool(), Dense(128))
        with keyed(0):
            neuron = LIF(decay=0.9, surrogate=ATan(2.0))
            model = models.spiking(layers, (1, 28, 28), 10, row.encoder, neuron, "BNTT", MeanOutput())
        x, y = data.take(data.load("mnist", "train"), train)
        BPTT(lr=2e-3, batch_size=128, schedule="cyclic").fit(model, (x, y), epochs=epochs, progress=False)
        models.save(model.eval(), path)
    loaded = models.load(path)
    assert isinstance(loaded, models.SpikingClassifier)
    return loaded


def main() -> None:
    options = _parser().parse_args()
    test = data.load("mnist", "test")
    table = Table("network", "n", "clean", "suite", "95 % interval", "gradients", "forwards", "minutes", "CPU minutes")
    reports = []
    for i, row in enumerate(ROWS):
        if options.rows and i not in options.rows:
            continue
        model = trained(row, options.output / f"{i}.safetensors")
        n = row.images if options.n is None else min(options.n, row.images)
        began = time.process_time()
        report = evaluation.evaluate(
            model, test, {"standard": attacks.standard(attacks.Linf(options.eps))}, n=n, controls=options.controls,
            name=row.name, folder=options.output / "cells",
        )  # fmt: skip
        reports.append(report)
        found = {r["attack"]: r for r in report.rows}
        suite = found["standard"]
        table.add_row(
            row.name, str(n), f"{100 * found['clean']['accuracy']:.1f}", f"{100 * suite['accuracy']:.1f}",
            f"[{100 * suite['low']:.1f}, {100 * suite['high']:.1f}]", f"{suite['gradients']:,}",
            f"{suite['forwards'] - suite['gradients']:,}", f"{suite['seconds'] / 60:.1f}",
            f"{(time.process_time() - began) / 60:.1f}",
        )  # fmt: skip
        report.save(options.output / f"report{i}")
    console = Console(width=130, highlight=False)
    console.print(f"Linf {options.eps}, {torch.get_num_threads()} threads, suite version {attacks.Standard.version}")
    console.print(table)
    for report in reports:
        console.print(report.summary(110))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", choices=range(len(ROWS)), help="which networks; default all")
    parser.add_argument("-n", type=int, help="fewer images")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--controls", action="store_true", help="run the suite's controls too: three times the work")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/suite"), help="folder for networks and results")
    return parser


if __name__ == "__main__":
    main()
