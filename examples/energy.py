"""What usual energy counts forget: the table of docs/energy.md.

    python examples/energy.py                          # MNIST in $SNNROBUST_DATA, 3 training seeds; about ten minutes on one core
    python examples/energy.py --data digits --seeds 1  # small images that come with the package; seconds

An ordinary network and spiking ones of one description are trained from each seed. Energies are those of the first test images,
per image, mean over training seeds. Interrupt it as you like: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn
from torch.utils.data import TensorDataset

from snnrobust import data, energy, models
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy.report import GROUPS
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Pool
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons import LIF
from snnrobust.statistics import mean_interval

AVERAGE = models.ARCHITECTURES["conv-small"]
MAXIMUM = (Conv(16), Pool(kind="max"), Conv(32), Pool(kind="max"))
NETWORKS = {
    "ANN": (AVERAGE, None), "SNN, direct": (AVERAGE, Direct), "SNN, Poisson": (AVERAGE, Poisson),
    "SNN, direct, max pooling": (MAXIMUM, Direct), "SNN, Poisson, max pooling": (MAXIMUM, Poisson),
}  # fmt: skip
CONFIDENCE = 0.9
COUNTED = 200


def build(name: str, dataset: str, steps: int, seed: int) -> nn.Module:
    architecture, encoder = NETWORKS[name]
    shape = data.SHAPES[dataset]
    with keyed(derive(seed, "weights")):
        if encoder is None:
            return models.ordinary(architecture, shape, 10)
        return models.spiking(architecture, shape, 10, encoder(steps), LIF(0.95), "BNTT", MeanOutput())


def measure(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    path = Path(arguments.out) / f"{arguments.data}-{name}-seed{seed}.json".replace(", ", "-").replace(" ", "-")
    if path.exists():
        return json.loads(path.read_bytes())
    model = build(name, arguments.data, arguments.steps, seed)
    x, y = data.load(arguments.data, "train").tensors
    train = TensorDataset(x[: arguments.train], y[: arguments.train])
    BPTT(lr=3e-3, batch_size=32, seed=seed).fit(model, train, epochs=arguments.epochs, progress=False)
    model.eval()
    x, y = (part[: arguments.test] for part in data.load(arguments.data, "test").tensors)
    with torch.no_grad(), draws(model, 0):
        right = int((model(x).argmax(1) == y).sum())
    with draws(model, 0):
        operations = energy.count_operations(model, x[:COUNTED])
    reports = {
        "": energy.estimate(operations, event_driven=name != "ANN"),
        "zeros skipped": energy.estimate(operations),
    }
    bits = {layer.name: (8, 8, 8) for layer in operations.layers}
    reports["8 bits"] = energy.estimate(operations, bits=bits, event_driven=name != "ANN")
    reports["weights read once a step"] = energy.estimate(operations, event_driven=name != "ANN", reuse=True)
    if name != "ANN":
        del reports["zeros skipped"]
        with draws(model, 0):
            exits = models.exit_steps(model, x[:COUNTED], CONFIDENCE)
        reports[f"exit at {CONFIDENCE:g}"] = energy.estimate(operations.upto(exits))
    found = {
        "right": right, "samples": len(y), "mac": operations.mac, "ac": operations.ac, "dense_mac": operations.dense_mac,
        "energy": {
            kind: {group: report.of(group=group) for group in GROUPS} for kind, report in reports.items()
        },
        "forgotten": {
            what: reports[""].of(what=what) for what in ("biases", "leaks", "updates", "membranes", "normalisation", "encoder")
        },
    }  # fmt: skip
    write_bytes(path, json.dumps(found).encode())
    print(f"{name}, seed {seed}: {100 * right / len(y):.1f} %\n{reports[''].table()}", flush=True)
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def tables(found: dict[str, list[dict]]) -> str:
    lines = ["| network | accuracy in %, by seed | 95 % interval of the first |", "|---|---|---|"]
    for name, runs in found.items():
        accuracies = ", ".join(f"{100 * run['right'] / run['samples']:.1f}" for run in runs)
        right, n = runs[0]["right"], runs[0]["samples"]
        low, high = mean_interval([1.0] * right + [0.0] * (n - right))
        lines.append(f"| {name} | {accuracies} | {100 * low:.1f} to {100 * high:.1f} |")
    lines += ["", "| network | | usual | traffic | forgotten | forgotten / usual |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        for kind in runs[0]["energy"]:
            nj = {g: [run["energy"][kind][g] / 1e3 for run in runs] for g in GROUPS}
            cells = " | ".join(f"{mean(v):,.1f} ({min(v):,.1f} to {max(v):,.1f})" for v in nj.values())
            ratio = mean(nj["forgotten"]) / mean(nj["usual"])
            lines.append(f"| {name} | {kind} | {cells} | {ratio:.2f} |")
    kinds = list(next(iter(found.values()))[0]["forgotten"])
    lines += ["", f"| network | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, runs in found.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{mean([r['forgotten'][k] for r in runs]) / 1e3:,.1f}" for k in kinds) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", choices=("mnist", "fashion-mnist", "digits"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", default="runs/energy")
    arguments = parser.parse_args()
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    found = {name: [measure(name, seed, arguments) for seed in range(arguments.seeds)] for name in NETWORKS}
    print(tables(found))


if __name__ == "__main__":
    main()
