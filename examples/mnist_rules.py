"""MNIST by every learning rule: the accuracy table of docs/learning_rules.md.

    python examples/mnist_rules.py                 # 60,000 images, whole test set, 3 seeds; hours on two cores
    python examples/mnist_rules.py --only DFA      # part of it; interrupt it as you like, it goes on where it stopped
    python examples/mnist_rules.py --seeds 1

Each network is trained for a fixed number of epochs and judged once, after the last, on all 10,000 test images. Nothing is
chosen by the test accuracy. Times are wall time on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from snnrobust import data, models
from snnrobust.experiments.build import build_model
from snnrobust.experiments.config import ModelSection
from snnrobust.learning_rules import RULES
from snnrobust.models.checkpoint import write_bytes

MLP = {"architecture": "mlp", "norm": "none", "readout": {"type": "MeanOutput"}}
CNN = {"architecture": "conv-mnist", "readout": {"type": "MeanOutput"}}


@dataclass(frozen=True)
class Run:
    """A network, how it is trained, and for how long; ``images`` of the training set, the first."""

    rule: str
    network: dict[str, Any]
    time_steps: int
    epochs: int
    arguments: dict[str, Any] = field(default_factory=dict)
    images: int = 60_000
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule}{self.variant}-{self.network.get('architecture', 'own')}"


COSINE = {"schedule": "cosine"}
RUNS = [
    Run("BPTT", CNN, 4, 4, {"lr": 2e-3, "precision": "bfloat16", **COSINE}),
    Run("BPTT", MLP, 8, 5, COSINE),
    Run("FA", MLP, 8, 5, COSINE),
    Run("DFA", MLP, 8, 5, COSINE),
    Run("LE", MLP, 8, 5, COSINE),
    Run("LE", MLP, 8, 5, {"readout": "learnt", **COSINE}, variant=" learnt"),
    Run("OTTT", MLP, 8, 5, COSINE),
    Run("DECOLLE", MLP, 8, 5, COSINE),
    Run("EProp", MLP, 8, 5, COSINE),
    Run("ElasticZO", MLP, 8, 5, COSINE),
    Run("Conversion", CNN, 64, 4, {"lr": 2e-3, **COSINE}),
    Run("STDB", CNN, 10, 2, {"ann_epochs": 4, "ann_lr": 2e-3}),
    Run("STDP", {"encoder": {"type": "Poisson", "time_steps": 25}}, 25, 1, images=10_000),
]


def judged(run: Run, seed: int, folder: Path) -> dict[str, Any]:
    """Test accuracy and seconds of one trained network."""
    path = folder / f"{run.name}-seed{seed}.json"
    if not path.exists():
        print(f"training {path.stem}", flush=True)
        needs = {"encoder": {"type": "Direct", "time_steps": run.time_steps}, **RULES[run.rule].needs}
        section = ModelSection.model_validate({"name": run.name, **needs, **{**run.network, **RULES[run.rule].needs}})
        model = build_model(section, (1, 28, 28), 10, seed)
        x, y = data.load("mnist", "train").tensors
        rule = RULES[run.rule](seed=seed, **run.arguments)
        history = rule.fit(
            model, (x[: run.images], y[: run.images]), epochs=run.epochs, progress=False,
            checkpoint=path.with_suffix(".training"),
        )  # fmt: skip
        before = (getattr(history, "conversion", None) or {}).get("ann_records", [])
        seconds = sum(r["seconds"] for r in (*before, *history.records))
        models.save(model, path.with_suffix(".safetensors"))
        found = {"accuracy": accuracy(model), "seconds": seconds, "records": history.records}
        write_bytes(path, json.dumps(found).encode())
    return json.loads(path.read_bytes())


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """In %, on the whole test set."""
    test = data.load("mnist", "test")
    return 100 * float(np.mean([(model(b.x).argmax(1) == b.y).float().mean() for b in data.batches(test, 500)]))


def table(results: dict[tuple[str, int], dict[str, Any]], runs: list[Run]) -> str:
    rows = [
        "| rule | network | T | epochs | seeds | test accuracy in %: mean (each seed) | seconds of training |",
        "|" + "---|" * 7,
    ]
    for run in runs:
        found = [r for (name, _), r in sorted(results.items()) if name == run.name]
        each = [r["accuracy"] for r in found]
        if each:
            shown = f"{np.mean(each):.2f} ({', '.join(f'{a:.2f}' for a in each)})"
            seconds = np.mean([r["seconds"] for r in found])
            network = run.network.get("architecture", RULES[run.rule].needs.get("architecture", ""))
            cells = (run.rule + run.variant, network, run.time_steps, run.epochs, len(each), shown, f"{seconds:.0f}")
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="MNIST by every learning rule.")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist-rules"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only runs with TEXT in their name, such as DFA-mlp-seed0"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = [(run, seed) for run in RUNS for seed in range(options.seeds) if options.only in f"{run.name}-seed{seed}"]
    if not chosen:
        parser.error(f"no run has {options.only!r} in its name: {', '.join(run.name for run in RUNS)}")
    results = {(run.name, seed): judged(run, seed, options.output) for run, seed in chosen}
    text = table(results, RUNS)
    print(text)
    if not options.only:
        write_bytes(options.output / "table.md", text.encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
