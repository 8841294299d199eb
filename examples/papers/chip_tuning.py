"""Tuning of varied chips from a compact signature: the tables of docs/hardware/chip_tuning.md.

    python examples/papers/chip_tuning.py                       # MNIST in $SNNROBUST_DATA; about ten minutes on one core
    python examples/papers/chip_tuning.py --networks ANN --cases layer column random
    python examples/papers/chip_tuning.py --plot tuning.png     # and a figure: accuracy of each chip before and after

A convolutional ANN and its spiking twin are trained once and put on two disjoint fleets of chips whose weights vary. The tuner
learns from the first fleet and training images, and is judged on the second fleet and test images. Finished cases lie in --out
and are not run again; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnrobust import attacks, data, figures
from snnrobust.codesign import (
    accuracy_predictor,
    chip_accuracy,
    chip_yield,
    compact_images,
    fit_knobs,
    fit_tuner,
    judge_tuning,
    signatures,
    tune,
    with_knobs,
)
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import WeightVariation, fleet
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

LAYERS = (Conv(8, 3), Pool(2), Conv(16, 3), Pool(2), Dense(64))
SIGMA = {"ANN": {"layer": 0.25, "column": 0.2, "random": 0.15}, "SNN": {"layer": 0.35, "column": 0.3, "random": 0.25}}
"""Chosen on chips and images that judge nothing, for a yield of about a half."""
SHARE = {"layer": 0.7, "column": 0.7, "random": 0.0}
PARTS = {"model": (0, 20_000), "knobs": (20_000, 30_000), "pool": (54_000, 54_500), "validation": (55_000, 55_500)}
"""Of the training images: who learns from which."""
POINTS, JUDGE_SEED = 0.02, 10_000
EPS, ATTACKED, ATTACKED_CHIPS = 0.03, 100, 5


def train(network: str, seed: int, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    with keyed(derive(seed, "weights")):
        model: nn.Module = ordinary(LAYERS, (1, 28, 28), 10)
        if network == "SNN":
            model = spiking(LAYERS, (1, 28, 28), 10, Direct(4), LIF(0.9), norm="BatchNorm")
    BPTT(lr=3e-3, seed=seed).fit(model, (x, y), epochs=3, progress=False)
    return model.eval()


def recalibrated(chip: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy whose batch normalisation has the statistics of the chip's own products."""
    copy = deepcopy(chip)
    norms = [m for m in copy.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        copy(images)
    return copy.eval()


def run(network: str, case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.process_time()
    x, y = data.take(data.load(arguments.data, "train"))
    test = data.take(data.load(arguments.data, "test"), arguments.images)
    part = {name: (x[a:b], y[a:b]) for name, (a, b) in PARTS.items()}
    fitted, validation, pool = part["knobs"], part["validation"], part["pool"][0]
    model = train(network, arguments.seed, *part["model"])
    ideal = chip_accuracy(model, test)
    threshold = ideal - POINTS
    shared = "column" if case == "column" else "layer"
    backend = WeightVariation(SIGMA[network][case], SHARE[case], shared=shared)
    base = derive(arguments.seed, "fleet") % 1_000_000
    learning = list(fleet(model, backend, arguments.chips, seed=base))
    judged = list(fleet(model, backend, arguments.judged, seed=base + JUDGE_SEED))
    measured = np.array([chip_accuracy(chip, validation) for chip in learning])
    before = np.array([chip_accuracy(chip, test) for chip in judged])

    predictors = {}
    for choice in ("random", "variance"):
        for n in (2, 4, 8):
            images = compact_images(learning, pool, n, choice=choice, seed=arguments.seed)
            rows, fresh = signatures(learning, images), signatures(judged, images)
            for kind in ("ridge", "gp") if n == 8 else ("ridge",):
                predictor = accuracy_predictor(rows, measured, kind=kind, seed=arguments.seed)
                off = predictor.predict(fresh) - before
                predictors[f"{n} {choice} {kind}"] = {
                    "cv_error": predictor.error, "cv_r2": predictor.r2, "error": float(np.abs(off).mean()),
                    "r2": 1 - float((off**2).sum() / ((before - before.mean()) ** 2).sum()),
                    "right": float(((predictor.predict(fresh) >= threshold) == (before >= threshold)).mean()),
                }  # fmt: skip
    images = compact_images(learning, pool, 8, seed=arguments.seed)
    knobs: Any = {
        "steps": arguments.steps,
        "batch_size": 32,
        "lr": 0.03,
        "accuracies": measured,
        "seed": arguments.seed,
    }
    after: dict[str, list[float]] = {"no tuning": before.tolist()}
    for n, x_norm in ((8, images), (500, pool)):
        after[f"batch norm again, {n} images"] = [chip_accuracy(recalibrated(chip, x_norm), test) for chip in judged]
    tuners = {}
    for name, options in {
        "one setting for all": {"clusters": 1},
        f"{arguments.clusters} clusters": {"clusters": arguments.clusters},
        f"{4 * arguments.clusters} clusters": {"clusters": 4 * arguments.clusters},
        "regression": {"method": "regression", "clusters": 1},
    }.items():
        started = time.process_time()
        tuner = tuners[name] = fit_tuner(learning, images, fitted, validation, **options, **knobs)
        if name == f"{arguments.clusters} clusters":
            after[name] = judge_tuning(tuner, judged, test, threshold=threshold).after.tolist()
        else:  # the same chips and images, which judge_tuning has found to be new or will
            after[name] = [chip_accuracy(tune(chip, tuner), test) for chip in judged]
        print(f"  {network} {case} {name}: {time.process_time() - started:.0f} s", flush=True)
    units = tuners["regression"].units
    optimum: Any = {"steps": arguments.steps, "batch_size": 32, "lr": 0.03, "units": units}
    best = [fit_knobs([chip], fitted, seed=i, **optimum) for i, chip in enumerate(judged)]
    after["optimum of each chip"] = [
        chip_accuracy(with_knobs(chip, k, units=units), test) for chip, k in zip(judged, best, strict=True)
    ]
    started = time.perf_counter()
    tune(judged[0], tuners["regression"])
    once = time.perf_counter() - started

    attack = attacks.PGD(attacks.Linf(EPS), steps=10)
    attacked = (test[0][:ATTACKED], test[1][:ATTACKED])

    def robust(chip: nn.Module) -> float:
        return chip_accuracy(chip, (attack(chip, *attacked, seed=0), attacked[1]))

    chips = judged[:ATTACKED_CHIPS]
    pgd = {"ideal": [robust(model)], "no tuning": [robust(chip) for chip in chips]}
    for name in (f"{arguments.clusters} clusters", "regression"):
        pgd[name] = [robust(tune(chip, tuners[name])) for chip in chips]
    return {
        "network": network, "case": case, "sigma": backend.sigma, "share": backend.systematic, "ideal": ideal,
        "threshold": threshold, "after": after, "predictors": predictors, "pgd": pgd, "tune_seconds": once,
        "seconds": time.process_time() - began,
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| network | variation | tuning | yield | accuracy, mean | lowest chip | gained / lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        before = np.array(r["after"]["no tuning"])
        for name, found in r["after"].items():
            now, least = np.array(found), r["threshold"]
            gained, lost = ((before < least) & (now >= least)).sum(), ((before >= least) & (now < least)).sum()
            lines.append(
                f"| {r['network']} ({100 * r['ideal']:.1f} %) | {r['case']}, {r['sigma']} | {name} | {chip_yield(now, least)} | "
                f"{100 * now.mean():.1f} | {100 * now.min():.1f} | {gained} / {lost} |"
            )
    lines += [
        "",
        "| network | variation | images, choice, regressor | mean error, points | R2 | good or bad told right |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['network']} | {r['case']} | {name} | {100 * p['error']:.1f} (cross-validated {100 * p['cv_error']:.1f}) | "
        f"{p['r2']:.2f} ({p['cv_r2']:.2f}) | {100 * p['right']:.0f} % |"
        for r in results for name, p in r["predictors"].items()
    ]  # fmt: skip
    lines += ["", f"| network | variation | accuracy under PGD, eps {EPS}, of each chip |", "|---|---|---|"]
    lines += [
        f"| {r['network']} | {r['case']} | {name}: {', '.join(f'{100 * v:.1f}' for v in found)} |"
        for r in results for name, found in r["pgd"].items()
    ]  # fmt: skip
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    with figures.style():
        made = figures.figure(3.4 * len(results), 3.0)
        for axes, r in zip(np.atleast_1d(made.subplots(1, len(results), squeeze=False)[0]), results, strict=True):
            order = np.argsort(r["after"]["no tuning"])
            for name in ("no tuning", "4 clusters", "regression", "optimum of each chip"):
                if name in r["after"]:
                    axes.plot(100 * np.array(r["after"][name])[order], ".", markersize=3, label=name)
            axes.axhline(100 * r["threshold"], linewidth=0.8, color=figures.INK)
            axes.set_xlabel("chip, by accuracy before")
            axes.set_title(f"{r['network']}, {r['case']}")
        made.axes[0].set_ylabel("accuracy, %")
        made.axes[-1].legend(loc="lower right")
        figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Yield of varied chips before and after tuning from a signature.")
    torch.set_num_threads(1)
    parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--networks", nargs="+", choices=["ANN", "SNN"], default=["ANN", "SNN"])
    parser.add_argument("--cases", nargs="+", choices=sorted(SHARE), default=["layer"])
    parser.add_argument("--chips", type=int, default=60, help="that the tuner learns from")
    parser.add_argument("--judged", type=int, default=60)
    parser.add_argument("--images", type=int, default=500, help="test images that judge")
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="of back-propagation for each cluster, or chip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chip_tuning"))
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for network in arguments.networks:
        for case in arguments.cases:
            settings = f"{arguments.data}-{arguments.chips}-{arguments.judged}-{arguments.images}-{arguments.clusters}"
            file = arguments.out / f"{network}-{case}-{settings}-{arguments.steps}-{arguments.seed}.json"
            if not file.is_file():
                file.write_text(json.dumps(run(network, case, arguments), indent=1))
            results.append(json.loads(file.read_text()))
    print(table(results))
    seconds, once = sum(r["seconds"] for r in results), max(r["tune_seconds"] for r in results)
    print(f"\n{seconds:.0f} s of processor time; one tuning {once:.3f} s")
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
