"""Splitting the most vulnerable neurons, beside selective TMR: the tables of docs/hardware/neuron_splitting.md.

    python examples/papers/neuron_splitting.py                # MNIST in $SNNROBUST_DATA, 5 training seeds; ten minutes
    python examples/papers/neuron_splitting.py --data digits  # small images that come with the package; a minute

A small MLP and a small convolutional network are trained from each seed and stored in 8 bits, one step a channel. The NVF of each
neuron is enumerated on training images. Accuracies are those of test images, on chips each bit of whose weights, copies included,
is flipped at the given rate; means over training seeds, of the means over chips, with Student's 95 % interval. Critical bits are
those of which a single flip changes the class: enumerated on test images, the mean over them and two seeds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from snnrobust import data
from snnrobust.codesign import accuracy_under_bit_errors, overhead, split_neurons, triplicate_neurons
from snnrobust.draws import derive, keyed
from snnrobust.hardware import Vulnerability, neuron_vulnerability
from snnrobust.learning_rules import BPTT

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
KINDS = ("MLP", "CNN")
EPOCHS = {"digits": 10, "mnist": 1}


def build(kind: str, side: int) -> nn.Sequential:
    if kind == "MLP":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(side * side, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        )
    kernel = 5 if side > 8 else 3
    small = ((side - kernel) // 2 + 1 - 3) // 2 + 1
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * small * small, 10),
    )  # fmt: skip


def train(kind: str, name: str, seed: int) -> nn.Sequential:
    with keyed(derive(seed, "weights")):
        model = build(kind, data.SHAPES[name][-1])
    BPTT(lr=3e-3, seed=seed).fit(model, data.load(name, "train"), epochs=EPOCHS[name], progress=False)
    return model.eval()


def anywhere(nvf: Vulnerability, k: int, seed: int) -> dict[str, list[int]]:
    """``k`` neurons drawn at random."""
    every = [(name, j) for name, values in nvf.nvf.items() for j in range(len(values))]
    with keyed(derive(seed, "neurons")):
        drawn = sorted(torch.randperm(len(every))[:k].tolist())
    return {name: [every[i][1] for i in drawn if every[i][0] == name] for name in {every[i][0] for i in drawn}}


def schemes(model: nn.Module, nvf: Vulnerability, k: int, profile: Tensor, seed: int) -> dict[str, nn.Module]:
    top = nvf.top(k)
    found = {
        "TMR": triplicate_neurons(model, top),
        "TMR of half as many": triplicate_neurons(model, nvf.top(max(1, k // 2))),
    }
    for correction in ("none", "min", "compare", "clip"):
        found[f"split, {correction}"] = split_neurons(model, top, correction, profile=profile)  # type: ignore[arg-type]
    found["split, min, random neurons"] = split_neurons(model, anywhere(nvf, k, seed))
    return found


def cell(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"{np.mean(values):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Selective neuron splitting beside selective TMR.")
    parser.add_argument("--data", choices=sorted(EPOCHS), default="mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--chips", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--ranked", type=int, default=32, help="training images for the NVF")
    parser.add_argument("--enumerated", type=int, default=16, help="test images for critical bits, with two seeds")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 1.0], help="of the neurons to protect")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument(
        "--per-layer", action="store_true", help="one quantization step a layer instead of one a channel"
    )
    arguments = parser.parse_args()
    per_channel = not arguments.per_layer
    images = data.load(arguments.data, "test")
    test = data.take(images, min(arguments.images, len(images)))
    x, _ = data.take(data.load(arguments.data, "train"), 512)
    print(
        f"{arguments.data}, {len(test[1])} test images, {arguments.seeds} training seeds, {arguments.chips} chips each\n"
    )
    for kind in arguments.only:
        models = [train(kind, arguments.data, seed) for seed in range(arguments.seeds)]
        began = time.perf_counter()
        nvfs = [neuron_vulnerability(m, x[: arguments.ranked], per_channel=per_channel) for m in models]
        seconds = (time.perf_counter() - began) / len(models)
        print(f"NVF of the {kind} of seed 0, {seconds:.0f} s a network:\n\n{nvfs[0].summary()}\n")
        if kind == "MLP":
            others = [
                neuron_vulnerability(m, x[: arguments.ranked], per_channel=per_channel, method="interval")
                for m in models
            ]
            for name in nvfs[0].nvf:
                gaps = [(one.nvf[name] - other.nvf[name]).abs().max() for one, other in zip(nvfs, others, strict=True)]
                worst = float(max(gaps))
                print(f"layer {name}: the interval differs from enumeration by at most {worst:.1e}")
            print()
        heading = (kind, "neurons added", "weights added", "critical bits", *(f"{rate:g}" for rate in RATES))
        print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
        neurons = sum(len(values) for values in nvfs[0].nvf.values())
        for share in (0.0, *arguments.shares):
            if share:
                every = [
                    schemes(m, nvf, max(1, round(share * neurons)), x, seed)
                    for seed, (m, nvf) in enumerate(zip(models, nvfs, strict=True))
                ]
            else:
                every = [{"unprotected": m} for m in models]
            for scheme in every[0]:
                cost = overhead(every[0][scheme])
                critical = [
                    neuron_vulnerability(
                        protected[scheme], test[0][: arguments.enumerated], per_channel=per_channel
                    ).critical()
                    for protected in every[:2]
                ]
                cells = [f"{np.mean(critical):.2f}"]
                for rate in RATES:
                    found = [
                        accuracy_under_bit_errors(
                            protected[scheme], test, rate, chips=arguments.chips, seed=seed, per_channel=per_channel
                        )
                        for seed, protected in enumerate(every)
                    ]
                    cells.append(cell([100 * float(accuracy.mean()) for accuracy in found]))
                label = f"{share:.0%}: {scheme}" if share else scheme
                print(f"| {label} | {cost.of_neurons:.0%} | {cost.of_weights:.0%} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
