"""Four learning rules, four gradients, one honest number each.

    python examples/learning_rule_gradients.py            # MNIST, 5 training seeds; see --help for its parts
    python examples/learning_rule_gradients.py --quick    # digits, one seed, less than a minute

The same network (784-256-256-10, T = 4, Direct) is trained by BPTT, FA, DFA and LE and attacked in L-infinity with one attack,
PGD, whose gradient alone changes: the signal of the victim's own rule, with random feedback at the first layer or with the
transpose of its weight; the victim's true weights; and those of other models, a twin trained by BPTT from another seed and an
ordinary network of the same widths. The hybrid attack takes for each sample the worst of these, and of a search from the best
transferred input. Random signs are what an attacker does who knows nothing: the measure of one step along a gradient that says
nothing. PGD along such a gradient turns back and forth, and spends less of the budget.

Accuracy is on the first n test images, misclassified ones included. Nothing is chosen by it. What is done is kept in --output:
interrupt it as you like, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from snnrobust import attacks, data, evaluation, figures, models
from snnrobust.data import SHAPES
from snnrobust.experiments.build import build_model
from snnrobust.experiments.config import ModelSection
from snnrobust.learning_rules import RULES
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons.surrogate import ATan

VICTIMS = ("BPTT", "FA", "DFA", "LE")
SNN: dict[str, Any] = {
    "architecture": "mlp", "norm": "none", "readout": {"type": "MeanOutput"}, "encoder": {"type": "Direct", "time_steps": 4},
}  # fmt: skip
ANN: dict[str, Any] = {"kind": "ordinary", "architecture": "mlp"}
CLEAN, SIGNS, RANDOM, TRANSPOSE, HYBRID = "clean", "random signs", "own rule, random", "own rule, transpose", "hybrid"
STEP = "own rule, random, one step"
OWN = {"own rule": TRANSPOSE}  # of BPTT
COLUMNS = {
    CLEAN: "clean", SIGNS: "random\nsigns", STEP: "own rule,\nrandom,\none step", RANDOM: "own rule,\nrandom",
    TRANSPOSE: "own rule,\ntranspose",
    "twin": "transfer:\nBPTT twin", "ann": "transfer:\nANN", "refined": "transfer\nand search", "true weights": "true\nweights",
    HYBRID: "hybrid",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured: data set, training, attack."""

    data: str = "mnist"
    epochs: int = 5
    lr: float = 1e-3
    eps: float = 0.1
    steps: int = 40
    queries: int = 200
    n: int = 1000


QUICK = Plan("digits", epochs=10, lr=5e-3, steps=10, queries=50, n=200)


def trained(plan: Plan, name: str, rule: str, seed: int, folder: Path) -> tuple[nn.Module, Any]:
    """The network ``name`` and the rule that trained it."""
    trainer = RULES[rule](seed=seed, lr=plan.lr, schedule="cosine")
    network = ANN if name == "ann" else SNN
    path = folder / f"{name}-seed{seed}.safetensors"
    if not path.exists():
        print(f"training {path.stem}", flush=True)
        model = build_model(ModelSection.model_validate({"name": name, **network}), SHAPES[plan.data], 10, seed)
        images = data.load(plan.data, "train")
        trainer.fit(model, images, epochs=plan.epochs, progress=False, checkpoint=path.with_suffix(".training"))
        models.save(model, path)
    return models.load(path).eval(), trainer


def judged(plan: Plan, rule: str, seed: int, folder: Path) -> dict[str, float]:
    """Accuracies in % of one victim under every attack."""
    victim, trainer = trained(plan, rule, rule, seed, folder)
    others = {name: trained(plan, name, "BPTT", 1000 + seed, folder)[0] for name in ("twin", "ann")}
    print(f"attacking {rule}-seed{seed}", flush=True)
    threat = attacks.Linf(plan.eps)
    feedbacks = trainer.input_feedbacks or (None,)  # BPTT has no choice: its signal is the true gradient
    signals = [attacks.LearningSignal(trainer, how) for how in feedbacks]
    hybrid = attacks.Hybrid.white_box(
        attacks.PGD(threat, steps=plan.steps), others, *signals,
        surrogates={"ATan(4)": ATan(4.0), "ATan(10)": ATan(10.0)}, refine=attacks.Square(threat, queries=plan.queries),
    )  # fmt: skip
    every = {SIGNS: attacks.RandomSign(threat), **hybrid.attacks, HYBRID: hybrid}
    if RANDOM in every:
        every[STEP] = attacks.FGSM(threat, hybrid.gradients[RANDOM])
    report = evaluation.evaluate(
        victim, data.load(plan.data, "test"), every, n=plan.n, seed=seed, batch_size=500, folder=folder / "cells",
        progress=False, examples=0,
    )  # fmt: skip
    found = {OWN.get(row["attack"], row["attack"]): 100 * row["accuracy"] for row in report.rows}
    write_bytes(folder / f"{rule}-seed{seed}.json", json.dumps(found).encode())
    return found


def diagnosed(plan: Plan, rule: str, seed: int, folder: Path) -> str:
    """What the diagnosis calls a victim that is attacked by its own rule alone, with random weights at the input."""
    path = folder / f"{rule}-seed{seed}.diagnosis.json"
    if not path.exists():
        print(f"diagnosing {rule}-seed{seed}", flush=True)
        victim, trainer = trained(plan, rule, rule, seed, folder)
        gradient = attacks.LearningSignal(trainer, "random")
        report = evaluation.diagnose(
            victim, data.load(plan.data, "test"), attacks.Linf(plan.eps), gradient=gradient, n=min(plan.n, 100), seed=seed,
            progress=False,
        )  # fmt: skip
        write_bytes(path, json.dumps(report.to_json(), indent=1).encode())
    found = json.loads(path.read_bytes())
    return f"{found['verdict']} ({'; '.join(found['reasons'])})"


Results = dict[str, list[dict[str, float]]]


def table(results: Results) -> str:
    """Accuracy in %: mean over seeds, lowest to highest."""
    shown = [c for c in COLUMNS if any(c in found for runs in results.values() for found in runs)]
    rows = ["| rule | seeds | " + " | ".join(COLUMNS[c].replace("\n", " ") for c in shown) + " |"]
    rows.append("|" + "---|" * (2 + len(shown)))
    for rule, runs in results.items():
        cells = [rule, str(len(runs))]
        for column in shown:
            each = [found[column] for found in runs if column in found]
            cells.append(f"{np.mean(each):.1f} ({min(each):.1f} to {max(each):.1f})" if each else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(results: Results, plan: Plan, path: Path) -> None:
    shown = [c for c in COLUMNS if any(c in found for runs in results.values() for found in runs)]
    with figures.style():
        made = figures.figure(10.0, 4.6)
        axes = made.subplots()
        for i, (rule, runs) in enumerate(results.items()):
            at = [k + 0.14 * (i - 1.5) for k in range(len(shown))]
            colour, marker = figures.SERIES[i], figures.MARKERS[i]
            for k, column in zip(at, shown, strict=True):
                each = [found[column] for found in runs if column in found]
                if each:
                    axes.plot([k] * len(each), each, marker, color=colour, ms=3.5, alpha=0.5, lw=0)
                    axes.plot([k - 0.06, k + 0.06], [np.mean(each)] * 2, color=colour, lw=2.2, label=rule)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once.keys(), loc="upper right", ncols=2)
        axes.set_xticks(range(len(shown)), [COLUMNS[c] for c in shown], fontsize=9)
        axes.set_ylim(0, 100)
        axes.set_ylabel("accuracy in %")
        axes.grid(axis="y", color=figures.GRID)
        axes.set_title(
            f"{plan.data}, L-infinity {plan.eps}: what is attacked is the same, the gradient is not", loc="left"
        )
    figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/learning-rule-gradients"))
    parser.add_argument("--rules", nargs="+", choices=VICTIMS, default=VICTIMS)
    parser.add_argument("--seeds", type=int, help="training seeds 0, 1, ...; by default 5")
    parser.add_argument("--n", type=int, help="test images; by default 1000")
    parser.add_argument("--quick", action="store_true", help="digits, one seed, few steps")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    plan = plan if options.n is None else Plan(**{**vars(plan), "n": options.n})
    seeds = options.seeds or (1 if options.quick else 5)
    folder = options.output / ("quick" if options.quick else f"n{plan.n}")
    folder.mkdir(parents=True, exist_ok=True)
    results: Results = {rule: [] for rule in options.rules}
    for seed in range(seeds):
        for rule in options.rules:
            results[rule].append(judged(plan, rule, seed, folder))
    text = table(results)
    print(text)
    write_bytes(folder / "table.md", text.encode())
    plot(results, plan, folder / "gradients.png")
    for rule in options.rules:
        if RULES[rule].input_feedbacks:
            print(f"diagnosis of {rule}, attacked by its own rule alone:")
            for seed in range(seeds):
                print(f"  seed {seed}: {diagnosed(plan, rule, seed, folder)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
