"""What conversion loses, and what hybrid training wins back: the tables of docs/learning_rules.md.

    python examples/hybrid.py                      # MNIST and Fashion-MNIST; about 40 minutes on one core
    python examples/hybrid.py --only conversion    # MNIST: an ordinary network and its conversion at T = 4 to 64
    python examples/hybrid.py --only stdb          # Fashion-MNIST: STDB, plain conversion and a random start at T = 10

An interrupted run goes on where it stopped. Accuracies are those of all 10,000 test images (conversion) and of the first 2,000
(STDB, by epoch). Nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from snnrobust import data, figures, models
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT, STDB, Conversion, convert
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons import IF

STEPS = (4, 8, 16, 32, 64)
ARCHITECTURE = models.ARCHITECTURES["conv-small"]
SHAPE = (1, 28, 28)


@torch.no_grad()
def accuracy(model: nn.Module, test: Any) -> float:
    """In %."""
    right = sum(int((model(b.x).argmax(1) == b.y).sum()) for b in data.batches(test, 500))
    return 100 * right / len(test)


def conversion(seed: int) -> dict[str, Any]:
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    with keyed(derive(seed, "weights")):
        ann = models.ordinary(ARCHITECTURE, SHAPE, 10)
    BPTT(lr=2e-3, batch_size=128, schedule="cosine", seed=seed).fit(ann, train, epochs=3, progress=False)
    found: dict[str, Any] = {"ann": accuracy(ann, test), "snn": {}, "errors": {}}
    for steps in STEPS:
        snn, report = convert(ann, train, time_steps=steps)
        found["snn"][steps] = accuracy(snn, test)
        found["errors"][steps] = [layer.rate_errors[-1] for layer in report.layers]
    return found


def spiking(seed: int, steps: int) -> models.SpikingClassifier:
    with keyed(derive(seed, "weights")):
        return models.spiking(ARCHITECTURE, SHAPE, 10, Direct(steps), IF(), "none", MeanOutput())


def stdb(seed: int) -> dict[str, Any]:
    x, y = data.load("fashion-mnist", "train").tensors
    train = x[:20_000], y[:20_000]
    test = data.take(data.load("fashion-mnist", "test"), 2000)
    found: dict[str, Any] = {}
    for name, rule in (
        ("STDB, threshold balancing from zero", STDB(ann_epochs=4, ann_lr=2e-3, seed=seed)),
        ("STDB, starting at half the threshold", STDB(ann_epochs=4, ann_lr=2e-3, initial=0.5, seed=seed)),
        ("a random start", STDB(ann_epochs=0, seed=seed)),
        ("conversion", Conversion(lr=2e-3, seed=seed)),
    ):
        print(f"  {name}, seed {seed}", flush=True)
        ordinary = isinstance(rule, Conversion)
        history = rule.fit(spiking(seed, 10), train, test, epochs=4 if ordinary else 5, progress=False)
        report = getattr(history, "conversion", None) or {}
        found[name] = {
            "converted": report.get("validation_accuracy"), "scaled": report.get("scaled_validation_accuracy"),
            "epochs": [] if ordinary else [r["validation_accuracy"] for r in history.records],
        }  # fmt: skip
    return found


def table_of_conversion(found: list[dict[str, Any]]) -> str:
    rows = [
        "| network | test accuracy in %: mean (each seed) | rate error of its layers, first seed |",
        "|---|---|---|",
    ]
    rows.append(f"| ordinary | {_each([f['ann'] for f in found])} | |")
    for steps in map(str, STEPS):
        errors = ", ".join(f"{e:.3f}" for e in found[0]["errors"][steps])
        rows.append(f"| converted, T = {steps} | {_each([f['snn'][steps] for f in found])} | {errors} |")
    return "\n".join(rows)


def table_of_stdb(found: list[dict[str, Any]]) -> str:
    rows = [
        "| start | as converted | thresholds x 0.7 | after 1 to 5 epochs, mean of seeds | last epoch: mean (each seed) |"
    ]
    rows.append("|---|---|---|---|---|")
    for name in found[0]:
        runs = [f[name] for f in found]
        cells = [_percent([r[key] for r in runs]) for key in ("converted", "scaled")]
        epochs = np.array([r["epochs"] for r in runs])
        by_epoch = ", ".join(f"{100 * a:.1f}" for a in epochs.mean(0)) if epochs.size else ""
        last = _each([100 * float(e[-1]) for e in epochs]) if epochs.size else ""
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {by_epoch} | {last} |")
    return "\n".join(rows)


def _percent(values: list[float | None]) -> str:
    known = [100 * v for v in values if v is not None]
    return f"{np.mean(known):.1f}" if known else ""


def _each(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"


def plot(found: list[dict[str, Any]], path: Path) -> None:
    with figures.style():
        made = figures.figure(5.6, 3.4)
        axes = made.subplots()
        for name, colour in zip(list(found[0])[:3], figures.SERIES, strict=False):
            runs = [f[name] for f in found]
            curve = 100 * np.mean([r["epochs"] for r in runs], 0)
            axes.plot(range(1, len(curve) + 1), curve, color=colour, marker="o", ms=4, label=name)
            start = [r["converted"] for r in runs if r["converted"] is not None]
            if start:
                axes.axhline(100 * np.mean(start), color=colour, lw=1, ls=":")
        axes.set(xlabel="epoch of spike-based backpropagation (dotted: as converted)", ylabel="test accuracy in %")
        axes.set_xticks(range(1, len(curve) + 1))
        axes.legend(fontsize=8)
        figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversion and hybrid training.")
    parser.add_argument("--output", type=Path, default=Path("runs/hybrid"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("conversion", "stdb"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, make, table in (("conversion", conversion, table_of_conversion), ("stdb", stdb, table_of_stdb)):
        if options.only not in (None, name):
            continue
        found = []
        for seed in range(options.seeds):
            path = options.output / f"{name}-seed{seed}.json"
            if not path.exists():
                print(f"{name}, seed {seed}", flush=True)
                write_bytes(path, json.dumps(make(seed)).encode())
            found.append(json.loads(path.read_bytes()))
        text = table(found)
        write_bytes(options.output / f"{name}.md", text.encode())
        print(text)
        if name == "stdb":
            plot(found, options.output / "stdb.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
