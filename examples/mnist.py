"""MNIST and Fashion-MNIST with batch normalisation through time: the numbers of docs/normalisation.md.

    python examples/mnist.py                   # writes runs/mnist; interrupt it as you like, it goes on where it stopped
    python examples/mnist.py --only poisson    # part of it: two such processes may share the work

Each network is conv32-pool-conv64-pool-fc with T = 8. An epoch of 60,000 images takes about 4 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from snnrobust import data, energy, models
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons import LIF

TIME_STEPS, EPOCHS, DRAWS, COUNTED = 8, 4, 3, 500
CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


LR, BATCH_SIZE, DECAY = 2e-3, 32, 0.95
SETTINGS = {"time_steps": TIME_STEPS, "epochs": EPOCHS, "lr": LR, "batch_size": BATCH_SIZE, "decay": DECAY}


@dataclass(frozen=True)
class Run:
    """One network to be trained; its seed decides the weights, the order of the data and the encoder's draws."""

    encoder: str
    seed: int = 0
    norm: str = "BNTT"
    images: int = 60_000
    dataset: str = "mnist"

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.encoder}-{self.norm.lower()}-{self.images}-seed{self.seed}"

    def untrained(self) -> nn.Module:
        encoder = {"direct": Direct, "poisson": Poisson}[self.encoder](TIME_STEPS)
        architecture = models.ARCHITECTURES["conv-mnist"]
        with keyed(derive(self.seed, "weights")):
            return models.spiking(architecture, (1, 28, 28), 10, encoder, LIF(DECAY), self.norm, MeanOutput())

    def trained(self, folder: Path) -> models.SpikingClassifier:
        path = folder / f"{self.name}.safetensors"
        if not path.exists():
            print(f"training {self.name}", flush=True)
            x, y = data.load(self.dataset, "train").tensors
            train = TensorDataset(x[: self.images], y[: self.images])
            rule = BPTT(lr=LR, schedule="cosine", batch_size=BATCH_SIZE, seed=self.seed)
            model = self.untrained()
            rule.fit(model, train, epochs=EPOCHS, checkpoint=path.with_suffix(".training"))
            models.save(model, path)
        return models.load(path)


ENCODERS = ("direct", "poisson")
MAIN = [Run(encoder, seed) for seed in range(3) for encoder in ENCODERS]
RUNS = MAIN + [Run(encoder, 0, norm, 20_000) for norm in ("BNTT", "none") for encoder in ENCODERS]
RUNS += [Run(encoder, dataset="fashion-mnist") for encoder in ENCODERS]


@dataclass(frozen=True)
class Result:
    """One trained network on the whole test set.

    Attributes:
        fixed: Accuracy in % if all samples stop at step 1, ..., T, for each draw of the encoder, ``[draws, T]``.
        interval: 95 % interval over samples of the accuracy after T steps, first draw.
        exits: For each confidence: accuracy in % and mean steps, over the draws; MAC and AC an image.
        operations: MAC and AC an image of the first 1, ..., T steps, ``[T, 2]``.
        gamma: Mean absolute gamma of each step, by BNTT layer.
        exit_step: What ``models.exit_step(model, 0.1)`` says.
    """

    run: Run
    fixed: list[list[float]]
    interval: list[float]
    exits: list[list[float]]
    operations: list[list[float]]
    gamma: dict[str, list[float]]
    exit_step: int | None


def judge(run: Run, folder: Path) -> Result:
    path = folder / f"{run.name}.json"
    if not path.exists():
        model = run.trained(folder)
        print(f"judging {run.name}", flush=True)
        test = data.load(run.dataset, "test")
        keys = range(DRAWS if run.encoder == "poisson" else 1)
        curves = [models.exit_curve(model, test, CONFIDENCES, key=key) for key in keys]
        with draws(model, 0):  # the draws of the first curve
            counted = energy.count_operations(model, test.tensors[0][:COUNTED])
        exits = []
        for i, confidence in enumerate(CONFIDENCES):
            mean = [
                float(np.mean([estimates.mean[i] for estimates in e]))
                for e in zip(*((c.accuracy, c.steps) for c in curves), strict=True)
            ]
            stops = torch.from_numpy(curves[0].exits(confidence)[:COUNTED])
            exits.append([100 * mean[0], mean[1], *_operations(counted.upto(stops))])
        with_bntt = run.norm == "BNTT"
        found = {
            "fixed": [(100 * c.fixed.mean).tolist() for c in curves],
            "interval": [100 * float(bound[-1]) for bound in (curves[0].fixed.low, curves[0].fixed.high)],
            "exits": exits,
            "operations": [_operations(counted.upto(t)) for t in range(1, TIME_STEPS + 1)],
            "gamma": {name: g.tolist() for name, g in models.gamma_profile(model).items()} if with_bntt else {},
            "exit_step": models.exit_step(model, 0.1) if with_bntt else None,
        }
        write_bytes(path, json.dumps(found).encode())
    return Result(run, **json.loads(path.read_bytes()))


def _operations(counted: energy.Operations) -> list[float]:
    return [counted.mac, counted.ac]


def networks(results: list[Result]) -> str:
    """A row for each network."""
    heading = (
        "data",
        "encoder",
        "normalisation",
        "training images",
        "seed",
        "test accuracy in %",
        "95 % interval",
        "draws",
        "exit_step",
    )
    rows = [heading, ("---",) * len(heading)]
    for r in results:
        last = np.array(r.fixed)[:, -1]
        number = "1" if len(last) == 1 else f"{len(last)}: {last.min():.2f} to {last.max():.2f}"
        what = (r.run.dataset, r.run.encoder, r.run.norm, f"{r.run.images:,}", str(r.run.seed))
        rows.append(
            (*what, f"{last.mean():.2f}", "{:.2f} to {:.2f}".format(*r.interval), number, str(r.exit_step or ""))
        )
    return _table(rows)


def truncations(results: list[Result]) -> str:
    """Accuracy and operations of the first T' steps, over the seeds."""
    heading = (
        "encoder",
        "T'",
        "test accuracy in %, mean (range) of seeds",
        "MAC",
        "AC",
        "mean \\|gamma\\| of step T', by layer",
    )
    rows = [heading, ("---",) * len(heading)]
    for encoder in ENCODERS:
        group = [r for r in results if r.run.encoder == encoder]
        for t in range(TIME_STEPS):
            accuracy = [float(np.mean([draw[t] for draw in r.fixed])) for r in group]
            gamma = [np.mean([r.gamma[name][t] for r in group]) for name in group[0].gamma]
            counts = np.mean([r.operations[t] for r in group], 0)
            rows.append(
                (encoder, str(t + 1), _range(accuracy), *map(_million, counts), ", ".join(f"{g:.2f}" for g in gamma))
            )
    return _table(rows)


def exits(results: list[Result]) -> str:
    """Accuracy, steps and operations of the input-adaptive exit, over the seeds."""
    heading = ("encoder", "confidence", "test accuracy in %, mean (range) of seeds", "mean steps", "MAC", "AC")
    rows = [heading, ("---",) * len(heading)]
    for encoder in ENCODERS:
        group = [r for r in results if r.run.encoder == encoder]
        for i, confidence in enumerate(CONFIDENCES):
            steps, *counts = np.mean([r.exits[i][1:] for r in group], 0)
            accuracy = _range([r.exits[i][0] for r in group])
            rows.append((encoder, f"{confidence:g}", accuracy, f"{steps:.2f}", *map(_million, counts)))
    return _table(rows)


def _table(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _million(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def plot(results: list[Result], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, encoder in zip(figure.subplots(1, 2, sharey=True), ENCODERS, strict=True):
        group = [r for r in results if r.run.encoder == encoder]
        fixed = np.array([np.mean(r.fixed, 0) for r in group])
        steps = np.array([[e[1] for e in r.exits] for r in group])
        adaptive = np.array([[e[0] for e in r.exits] for r in group])
        for x, y, colour, marker, label in (
            (np.arange(1, TIME_STEPS + 1), fixed, "#6b7280", "s", "all samples stop at this step"),
            (steps.mean(0), adaptive, "#0072b2", "o", "each stops when confident"),
        ):
            spread = np.array([y.mean(0) - y.min(0), y.max(0) - y.mean(0)])
            axes.errorbar(
                x, y.mean(0), yerr=spread, color=colour, marker=marker, ms=4.5, lw=1.4, capsize=2, label=label
            )
        axes.set_title(f"{encoder}, {len(group)} seeds (mean and range)", fontsize=10)
        axes.set_xlabel("mean time steps")
        axes.set_ylim(max(0.0, np.floor(fixed.min()) - 1), 100.4)
        axes.grid(axis="y", color="#dfe2e6", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy in %")
    figure.axes[0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="MNIST with batch normalisation through time.")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist"))
    parser.add_argument(
        "--only", metavar="TEXT", help="train and judge only the runs with TEXT in their name, and stop"
    )
    arguments = parser.parse_args()
    chosen = [run for run in RUNS if arguments.only is None or arguments.only in run.name]
    if not chosen:
        parser.error(f"no run has {arguments.only!r} in its name: {', '.join(run.name for run in RUNS)}")
    settings = arguments.output / "settings.json"
    if not settings.exists():
        write_bytes(settings, json.dumps(SETTINGS).encode())
    if (found := json.loads(settings.read_bytes())) != SETTINGS:
        parser.error(f"{arguments.output} holds networks trained with {found}, not {SETTINGS}: give another --output")
    results = [judge(run, arguments.output) for run in chosen]
    if arguments.only is not None:
        return
    seeds = [r for r in results if r.run in MAIN]
    text = "\n\n".join((networks(results), truncations(seeds), exits(seeds)))
    write_bytes(arguments.output / "tables.md", text.encode())
    plot(seeds, arguments.output / "exit.png")
    print(text)


if __name__ == "__main__":
    main()
