"""CIFAR-10 with and without batch normalisation through time: the table of docs/learning_rules.md.

    python examples/cifar_bntt.py                      # a narrow VGG5, T = 10, 20,000 images: about 10 minutes a seed on one core
    python examples/cifar_bntt.py --full --device cuda # VGG9, T = 25, 50,000 images: not run here, it needs a GPU
    python examples/cifar_bntt.py --only seed0         # part of it; interrupt it as you like, it goes on where it stopped

Both networks are the same but for the normalisation; where there is none, the synaptic layers have biases. Inputs are Poisson
spikes. The accuracy is that of the last epoch, on the test images, with one draw of the encoder.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from snnrobust import data, models
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons import LIF

NORMS = ("BNTT", "none")
NARROW = (Conv(16), Pool(), Conv(32), Conv(32), Pool(), Dense(128), Dense(128))  # vgg5 with a quarter of its channels


def train(norm: str, seed: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """The history of one network."""
    path = options.output / f"{norm.lower()}-{options.epochs}epochs-seed{seed}.json"
    if not path.exists():
        print(f"training {path.stem}", flush=True)
        architecture, steps = (models.ARCHITECTURES["vgg9"], 25) if options.full else (NARROW, 10)
        name = "cifar10" if options.full else "cifar10-small"
        with keyed(derive(seed, "weights")):
            model = models.spiking(architecture, (3, 32, 32), 10, Poisson(steps), LIF(0.95), norm, MeanOutput())
        model.to(options.device)
        rule = BPTT(lr=1e-3, schedule="cosine", batch_size=64, seed=seed, precision="bfloat16")
        history = rule.fit(
            model, data.load(name, "train"), data.load(name, "test"), epochs=options.epochs,
            checkpoint=path.with_suffix(".training"), progress=options.progress,
        )  # fmt: skip
        models.save(model.cpu(), path.with_suffix(".safetensors"))
        write_bytes(path, json.dumps(history.records).encode())
    return json.loads(path.read_bytes())


def table(runs: dict[tuple[str, int], list[dict[str, object]]]) -> str:
    rows = ["| normalisation | seed | loss, first and last epoch | test accuracy by epoch in % | seconds an epoch |"]
    rows.append("|---|---|---|---|---|")
    for (norm, seed), records in runs.items():
        shown = ", ".join(f"{100 * r['validation_accuracy']:.1f}" for r in records)
        losses = f"{records[0]['loss']:.2f}, {records[-1]['loss']:.2f}"
        seconds = np.mean([r["seconds"] for r in records])
        rows.append(f"| {norm} | {seed} | {losses} | {shown} | {seconds:.0f} |")
    for norm in NORMS:
        last = [100 * records[-1]["validation_accuracy"] for (n, _), records in runs.items() if n == norm]
        if last:
            rows.append(
                f"| **{norm}** | {len(last)} seeds | | mean {np.mean(last):.1f} ({min(last):.1f} to {max(last):.1f}) | |"
            )
    return "\n".join(rows)


def plot(runs: dict[tuple[str, int], list[dict[str, object]]], path: Path) -> None:
    from snnrobust import figures

    with figures.style():
        figure = figures.figure(6.4, 3.2)
        axes = figure.subplots()
        for norm, colour in zip(NORMS, ("#0072b2", "#d55e00"), strict=True):
            for (n, seed), records in runs.items():
                if n == norm:
                    label = f"norm = {norm!r}" if seed == 0 else None
                    accuracy = [100 * r["validation_accuracy"] for r in records]
                    axes.plot(range(1, len(records) + 1), accuracy, color=colour, lw=1.4, label=label)
        axes.axhline(10, color="#9aa1a9", lw=0.8, ls=":")
        axes.set_xlabel("epoch")
        axes.set_ylabel("test accuracy in %")
        axes.legend(frameon=False)
        figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="CIFAR-10 with and without BNTT.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--full", action="store_true", help="VGG9, T = 25, all 50,000 images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only runs with TEXT in their name, such as bntt-seed0"
    )
    options = parser.parse_args()
    options.output = options.output or Path("runs/cifar-bntt-full" if options.full else "runs/cifar-bntt")
    options.epochs = options.epochs or (100 if options.full else 6)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = {
        (norm, seed): train(norm, seed, options)
        for seed in range(options.seeds)
        for norm in NORMS
        if options.only in f"{norm.lower()}-seed{seed}"
    }
    if options.only:
        return
    text = table(runs)
    write_bytes(options.output / "table.md", text.encode())
    plot(runs, options.output / "accuracy.png")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
