"""MNIST and Fashion-MNIST with batch normalisation through time: the numbers of docs/normalisation.md.

    python examples/mnist.py                   # writes runs/mnist; interrupt it as you like, it goes on where it stopped
    python examples/mnist.py --only direct     # train part of it, as a second process beside another

Each network is conv32-pool-conv64-pool-fc with T = 8. An epoch of 60,000 images takes about 4 minutes on one core.
"""

from __future__ import annotations

import argparse
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
            return models.spiking(architecture, (1, 28, 28), 10, encoder, LIF(0.95), self.norm, MeanOutput())

    def trained(self, folder: Path) -> models.SpikingClassifier:
        path = folder / f"{self.name}.safetensors"
        if not path.exists():
            print(f"training {self.name}", flush=True)
            x, y = data.load(self.dataset, "train").tensors
            train = TensorDataset(x[: self.images], y[: self.images])
            rule = BPTT(lr=2e-3, schedule="cosine", batch_size=32, seed=self.seed)
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
    """One trained network on the whole test set: a curve for each draw of the encoder."""

    run: Run
    curves: list[models.ExitCurve]
    operations: energy.Operations
    profile: dict[str, torch.Tensor]

    @property
    def fixed(self) -> np.ndarray:
        """Accuracy in % if all samples stop at step 1, ..., T, ``[draws, T]``."""
        return 100 * np.array([curve.fixed.mean for curve in self.curves])


def judge(run: Run, folder: Path) -> Result:
    model = run.trained(folder)
    print(f"judging {run.name}", flush=True)
    test = data.load(run.dataset, "test")
    keys = range(DRAWS if run.encoder == "poisson" else 1)
    curves = [models.exit_curve(model, test, CONFIDENCES, key=key) for key in keys]
    with draws(model, 0):
        operations = energy.count_operations(model, test.tensors[0][:COUNTED])
    return Result(run, curves, operations, models.gamma_profile(model) if run.norm == "BNTT" else {})


def networks(results: list[Result]) -> str:
    """A row for each network."""
    rows = [
        "| data | encoder | normalisation | training images | seed | test accuracy in % | draws (range) |",
        "|" + "---|" * 7,
    ]
    for r in results:
        last = r.fixed[:, -1]
        spread = "none" if len(last) == 1 else f"{len(last)} ({last.min():.2f} to {last.max():.2f})"
        what = (r.run.dataset, r.run.encoder, r.run.norm, f"{r.run.images:,}", str(r.run.seed))
        rows.append(f"| {' | '.join(what)} | {last.mean():.2f} | {spread} |")
    return "\n".join(rows)


def truncations(results: list[Result]) -> str:
    """Accuracy and operations of the first T' steps, over the seeds."""
    rows = [
        "| encoder | T' | test accuracy in %: mean (range over seeds) | MAC | AC | mean gamma of step T', by layer |",
        "|" + "---|" * 6,
    ]
    for encoder in ENCODERS:
        group = [r for r in results if r.run.encoder == encoder]
        for t in range(1, TIME_STEPS + 1):
            accuracy = [r.fixed[:, t - 1].mean() for r in group]
            gamma = [float(np.mean([r.profile[name][t - 1] for r in group])) for name in group[0].profile]
            counts = _operations([r.operations.upto(t) for r in group])
            rows.append(f"| {encoder} | {t} | {_range(accuracy)} | {counts} | {', '.join(f'{g:.2f}' for g in gamma)} |")
    return "\n".join(rows)


def exits(results: list[Result]) -> str:
    """Accuracy, steps and operations of the input-adaptive exit, over the seeds."""
    rows = [
        "| encoder | confidence | test accuracy in %: mean (range over seeds) | mean steps | MAC | AC |",
        "|" + "---|" * 6,
    ]
    for encoder in ENCODERS:
        group = [r for r in results if r.run.encoder == encoder]
        for i, confidence in enumerate(CONFIDENCES):
            accuracy = [np.mean([100 * c.accuracy.mean[i] for c in r.curves]) for r in group]
            steps = np.mean([c.steps.mean[i] for r in group for c in r.curves])
            stops = [torch.from_numpy(r.curves[0].exits(confidence)[:COUNTED]) for r in group]
            counts = _operations([r.operations.upto(s) for r, s in zip(group, stops, strict=True)])
            rows.append(f"| {encoder} | {confidence:g} | {_range(accuracy)} | {steps:.2f} | {counts} |")
    return "\n".join(rows)


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _operations(counted: list[energy.Operations]) -> str:
    return " | ".join(f"{np.mean([getattr(o, kind) for o in counted]) / 1e6:.2f} M" for kind in ("mac", "ac"))


def plot(results: list[Result], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, encoder in zip(figure.subplots(1, 2, sharey=True), ENCODERS, strict=True):
        group = [r for r in results if r.run.encoder == encoder]
        fixed = np.array([r.fixed.mean(0) for r in group])
        steps = np.array([np.mean([c.steps.mean for c in r.curves], 0) for r in group])
        adaptive = np.array([100 * np.mean([c.accuracy.mean for c in r.curves], 0) for r in group])
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
        axes.set_ylim(90, 100)
        axes.grid(axis="y", color="#dfe2e6", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy in %")
    figure.axes[0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="MNIST with batch normalisation through time.")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--only", help="train only the runs with this in their name, and stop")
    arguments = parser.parse_args()
    if arguments.only is not None:
        for run in RUNS:
            if arguments.only in run.name:
                run.trained(arguments.output)
        return
    results = [judge(run, arguments.output) for run in RUNS]
    main_results = [r for r in results if r.run in MAIN]
    stops = sorted({models.exit_step(r.run.trained(arguments.output)) for r in main_results})
    parts = [networks(results), truncations(main_results), exits(main_results)]
    parts.append(f"exit_step(model, 0.1) of the {len(MAIN)} networks of table 2: {', '.join(map(str, stops))}")
    write_bytes(arguments.output / "tables.md", "\n\n".join(parts).encode())
    plot(main_results, arguments.output / "exit.png")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
