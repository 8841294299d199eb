"""``python -m benchmarks.calibration``: the standard suite beside torchattacks' AutoAttack on a published, defended network.

The network is the Fast-AT one for MNIST (Wong, Rice and Kolter 2020); its weights are read from ``SNNROBUST_DATA``. Published, at
Linf 0.3 on all 10,000 test images: 98.50 % clean, 82.93 % under AutoAttack.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import peers
from snnrobust import attacks, data, evaluation
from snnrobust.data import data_root
from snnrobust.statistics import mean_interval

EPS = 0.3
PEER = "torchattacks' AutoAttack"


def network() -> nn.Module:
    """The published one, with its weights."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    path = data_root() / "calibration" / "fast_at_mnist.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: set SNNROBUST_DATA to the folder that holds calibration/")
    model.load_state_dict(load_file(path))
    return model.eval()


def main() -> None:
    options = _parser().parse_args()
    model, test = network(), data.load("mnist", "test")
    x, y = (t[: options.n] for t in test.tensors)
    with torch.no_grad():
        clean = float((model(test.tensors[0]).argmax(1) == test.tensors[1]).double().mean())
    began = time.perf_counter()
    report = evaluation.evaluate(
        model, (x, y), {"standard": attacks.standard(attacks.Linf(EPS))}, controls=options.controls, name="Fast-AT",
        examples=0, folder=options.output / "cells", seed=0,
    )  # fmt: skip
    ours = _right(report, "standard")
    rows = [("standard suite", ours, time.perf_counter() - began)]
    if options.peer:
        theirs, seconds = _stored(options.output / "torchattacks.json", lambda: _peer(model, x, y))
        rows.append((PEER, theirs, seconds))
    console, table = Console(width=110, highlight=False), Table("attack", "accuracy", "95 % interval", "seconds")
    for name, right, seconds in rows:
        low, high = mean_interval(right.double().numpy())
        table.add_row(
            name, f"{100 * right.double().mean():.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]", f"{seconds:.0f}"
        )
    console.print(
        f"clean accuracy on all {len(test)} test images: {100 * clean:.2f} %; attacks on the first {len(x)}, Linf {EPS}"
    )
    console.print(table)
    if options.peer:
        by_peer, by_us = ~rows[1][1] & _right(report, "clean"), ~ours
        share = float((by_peer & by_us).sum() / by_peer.sum())
        console.print(f"of the {int(by_peer.sum())} images that {PEER} breaks, the suite breaks {100 * share:.1f} %")
    console.print(report.summary(110))
    report.save(options.output)


def _right(report: evaluation.RobustnessReport, attack: str) -> Tensor:
    return torch.tensor([s[9] > 0.5 for s in report.samples if s[2] == attack])


def _peer(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    torchattacks: Any = peers.optional(lambda: __import__("torchattacks"))
    if torchattacks is None:
        raise ModuleNotFoundError("torchattacks is not installed: leave --peer out")
    began, right = time.perf_counter(), []
    attack = torchattacks.AutoAttack(model, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=0)
    for i in range(0, len(x), 250):
        at, true = x[i : i + 250], y[i : i + 250]
        with torch.no_grad():
            right.append(model.eval()(attack(at, true)).argmax(1) == true)
    return torch.cat(right), time.perf_counter() - began


def _stored(path: Path, compute: Callable[[], tuple[Tensor, float]]) -> tuple[Tensor, float]:
    if not path.exists():
        right, seconds = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"right": right.int().tolist(), "seconds": seconds}))
    found = json.loads(path.read_text())
    return torch.tensor(found["right"]).bool(), float(found["seconds"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("-n", type=int, default=1000, help="the first so many test images")
    parser.add_argument("--controls", action="store_true", help="run the suite's controls too")
    parser.add_argument("--peer", action="store_true", help=f"run {PEER} too, which takes about ten minutes")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/calibration"), help="folder for results")
    return parser


if __name__ == "__main__":
    main()
