"""How much of a spiking network's robust accuracy is the attacker's choice of the surrogate gradient.

    python examples/surrogate_sweep.py            # MNIST, 3 seeds; about 20 minutes on one core, writes runs/surrogate-sweep
    python examples/surrogate_sweep.py --seeds 1
    python examples/surrogate_sweep.py --quick    # half a minute; the numbers mean nothing

A convolutional network 16-32-128 of LIF neurons (T = 4, direct coding, no randomness) is trained by BPTT through ATan(2) and then
attacked in Linf through every gradient source of SOURCES, by APGD and by SA-PGD. The union is, for each image, the worst of them.
Beside it stands the equal-budget control: the same attacks through the training surrogate alone, with as many random starts as
there are sources, so that both may take equally many gradients of an image. All attacks leave an image alone once it is
misclassified. The interval of the difference is a paired bootstrap over images. What is done is on disk, by cell; an interrupted
run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from snnrobust import attacks, data, evaluation, figures, models
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.evaluation.report import CLEAN, NULL, WORST
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models.checkpoint import write_bytes
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan, Rectangle
from snnrobust.statistics import mean_interval, paired_interval

TRAINING = "ATan(2), training"
SOURCES: dict[str, attacks.GradientSource] = {
    TRAINING: attacks.Backprop(),
    "ATan(10)": attacks.Surrogate(ATan(10.0)),
    "ATan(50)": attacks.Surrogate(ATan(50.0)),
    "ATan(300)": attacks.Surrogate(ATan(300.0)),
    "Rectangle(0.05)": attacks.Surrogate(Rectangle(0.05)),
    "StraightThrough": attacks.StraightThrough(),
    "BPTR": attacks.BPTR(),
    "RGA": attacks.RGA(),
    "HART": attacks.HART(),
    "PDSG": attacks.PDSG(),
    "ASSG": attacks.ASSG(),
}
OPTIMISERS: dict[str, type[Any]] = {"APGD": attacks.APGD, "SA-PGD": attacks.SAPGD}
ARCHITECTURE = (models.Conv(16), models.Pool(), models.Conv(32), models.Pool(), models.Dense(128))


@dataclass(frozen=True)
class Settings:
    eps: float = 0.1
    steps: int = 40
    images: int = 200
    epochs: int = 2
    train: int = 60_000
    sources: tuple[str, ...] = tuple(SOURCES)


FULL = Settings()
QUICK = Settings(steps=3, images=12, epochs=1, train=500, sources=(TRAINING, "ATan(50)", "ASSG"))


def trained(seed: int, settings: Settings, folder: Path) -> models.SpikingClassifier:
    path = folder / f"seed{seed}.safetensors"
    if not path.exists():
        print(f"training seed {seed}", flush=True)
        with keyed(derive(seed, "weights")):
            neuron = LIF(decay=0.9, surrogate=ATan(2.0))
            model = models.spiking(ARCHITECTURE, (1, 28, 28), 10, Direct(4), neuron, "none", MeanOutput())
        x, y = data.take(data.load("mnist", "train"))
        rule = BPTT(lr=2e-3, batch_size=128, schedule="cyclic", seed=seed)
        rule.fit(model, (x[: settings.train], y[: settings.train]), epochs=settings.epochs, progress=False)
        models.save(model, path)
    loaded = models.load(path)
    assert isinstance(loaded, models.SpikingClassifier)
    return loaded


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """Of the whole test set."""
    test = data.load("mnist", "test")
    return sum(int((model(b.x).argmax(1) == b.y).sum()) for b in data.batches(test, 500)) / len(test)


Suite = dict[str, attacks.Attack]


def suites(settings: Settings) -> tuple[Suite, Suite]:
    """The sweep, and the training surrogate with as many gradients of an image."""
    threat, restarts = attacks.Linf(settings.eps), len(settings.sources)
    sweep = {
        f"{source}, {name}": kind(threat, settings.steps, gradient=SOURCES[source], early_stop=True)
        for source in settings.sources
        for name, kind in OPTIMISERS.items()
    }
    control = {
        name: kind(threat, settings.steps, restarts=restarts, early_stop=True) for name, kind in OPTIMISERS.items()
    }
    return sweep, control


def measure(seed: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """By attack, whether each image is still right; and what it cost."""
    path = folder / f"seed{seed}-n{settings.images}.json"
    if path.exists():
        return json.loads(path.read_bytes())
    model, (sweep, control) = trained(seed, settings, folder), suites(settings)
    found: dict[str, Any] = {"right": {}, "gradients": {}, "seconds": {}}
    for name, suite in (("sweep", sweep), ("control", control)):
        print(f"seed {seed}: {name}", flush=True)
        report = evaluation.evaluate(
            model, data.load("mnist", "test"), suite, n=settings.images, seed=seed, examples=0, progress=False,
            folder=folder / "cells",
        )  # fmt: skip
        for row in report.rows:
            # the single attacks of the sweep have their own names
            label = row["attack"] if name == "sweep" and row["attack"] in sweep else f"{name}: {row['attack']}"
            found["gradients"][label], found["seconds"][label] = row["gradients"], row["seconds"]
            found["right"][label] = [s[9] for s in report.samples if s[2] == row["attack"]]
    found["accuracy"] = accuracy(model)
    write_bytes(path, json.dumps(found).encode())
    return found


ONCE, UNION, CONTROL = f"{TRAINING}, APGD", f"sweep: {WORST}", f"control: {WORST}"


def right(found: list[dict[str, Any]], label: str) -> Any:
    """``[seeds, images]``."""
    return np.array([f["right"][label] for f in found], dtype=float)


def by_source(found: list[dict[str, Any]], settings: Settings) -> str:
    rows = [["gradient source", *(f"{name}-{settings.steps}" for name in OPTIMISERS), "worse of the two"]]
    rows.append(["---"] * len(rows[0]))
    for source in settings.sources:
        each = [right(found, f"{source}, {name}") for name in OPTIMISERS]
        rows.append([source, *map(_each, [*each, np.minimum(*each)])])
    rows.append(["**union**", "", "", _each(right(found, UNION))])
    rows.append([f"**{TRAINING}, x {len(settings.sources)} starts**"])
    rows[-1] += [_each(right(found, f"control: {name}")) for name in OPTIMISERS] + [_each(right(found, CONTROL))]
    rows.append(["random signs, as many", "", "", _each(right(found, f"sweep: {NULL}"))])
    return _table(rows)


def gaps(found: list[dict[str, Any]], settings: Settings) -> str:
    """What the training surrogate leaves to be found, each seed and their mean."""
    cap = len(settings.sources) * len(OPTIMISERS) * settings.steps
    heading = [
        "seed",
        "test accuracy, 10,000",
        f"clean, first {settings.images}",
        f"training surrogate, APGD-{settings.steps} once",
    ]
    heading += [f"training surrogate, up to {cap} gradients", f"union, up to {cap} gradients"]
    heading += [
        "control less union, points [95 %]",
        "once less union, points [95 %]",
        "gradients taken: control, union",
    ]
    rows = [heading, ["---"] * len(heading)]
    for i, f in enumerate(found):
        rows.append([str(i), f"{100 * f['accuracy']:.2f}", *_gap([f])])
        rows[-1].append(f"{f['gradients'][CONTROL]:,}, {f['gradients'][UNION]:,}")
    if len(found) > 1:
        rows.append(["mean", f"{100 * np.mean([f['accuracy'] for f in found]):.2f}", *_gap(found), ""])
    return _table(rows)


def _gap(found: list[dict[str, Any]]) -> list[str]:
    clean, once, control, union = (right(found, k).mean(0) for k in (f"sweep: {CLEAN}", ONCE, CONTROL, UNION))
    cells = [f"{100 * clean.mean():.1f}"]
    for values in (once, control, union):
        low, high = mean_interval(values)
        cells.append(f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    for values in (control, once):
        low, high = paired_interval(values, union)
        cells.append(f"{100 * (values - union).mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return cells


def _each(values: Any) -> str:
    means = 100 * values.mean(1)
    listed = f" ({', '.join(f'{m:.1f}' for m in means)})" if len(means) > 1 else ""
    return f"{means.mean():.1f}{listed}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(found: list[dict[str, Any]], settings: Settings, path: Path) -> None:
    with figures.style():
        made = figures.figure(6.4, 3.8)
        axes = made.subplots()
        places = np.arange(len(settings.sources))
        for i, name in enumerate(OPTIMISERS):
            each = 100 * np.array([right(found, f"{source}, {name}").mean(1) for source in settings.sources])
            at = places + 0.38 * (i - 0.5)
            axes.barh(at, each.mean(1), 0.36, color=figures.SERIES[i], label=f"{name}-{settings.steps}", alpha=0.85)
            axes.plot(each, np.repeat(at[:, None], each.shape[1], 1), ".", color=figures.INK, ms=3)
        for label, shown, style in ((CONTROL, "training surrogate, the union's budget", "--"), (UNION, "union", "-")):
            axes.axvline(100 * right(found, label).mean(), color=figures.INK, lw=1.2, ls=style, label=shown)
        axes.set_yticks(places, settings.sources)
        axes.invert_yaxis()
        axes.set(xlabel=f"robust accuracy in %, Linf {settings.eps:g} (bars: mean; dots: seeds)", xlim=(0, 100))
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, 1.2), ncols=2)
        figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A sweep over gradient sources, beside the training surrogate's own best."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/surrogate-sweep"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few small cells, to see that it runs")
    parser.add_argument("--images", type=int, default=FULL.images, help="test images, the first")
    options = parser.parse_args()
    full = replace(FULL, images=options.images)
    settings, folder = (QUICK, options.output / "quick") if options.quick else (full, options.output)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        found.append(measure(seed, settings, folder))
        text = f"{gaps(found, settings)}\n\n{by_source(found, settings)}\n"
        write_bytes(folder / "tables.md", text.encode())
        plot(found, settings, folder / "sweep.png")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
