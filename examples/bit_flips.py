"""Which few bits of the weights destroy a network: the table of docs/attacks/bit_flips.md.

    python examples/bit_flips.py                   # digits, 5 training seeds; about two minutes on one core
    python examples/bit_flips.py --data mnist      # MNIST in $SNNROBUST_DATA; longer
    python examples/bit_flips.py --plot flips.png  # and a figure of the first spiking network

An ordinary network, one whose activations have as many levels as a spiking neuron has rates, and a spiking one, all of the same
layers, are trained from each seed, quantized to 8 bits and attacked with 128 test samples; accuracies are those of test samples
that had no part in it, means over training seeds with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import stats
from torch import nn

from snnrobust import data
from snnrobust.attacks import BitFlipAttack, BitFlipResult, cross_entropy
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT, quantised
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons.surrogate import ATan, StraightThrough

WIDTHS = {"digits": (64, 64), "mnist": (256, 256)}
EPOCHS = {"digits": 10, "mnist": 2}
BATCH, JUDGED, STEPS = 128, 1000, 4
PLAIN, LEVELS, SPIKING = "ANN", f"ANN, activations of {STEPS + 1} levels", f"SNN, T = {STEPS}"
RANKINGS = (None, ATan(2.0), ATan(10.0), StraightThrough())


def train(kind: str, name: str, seed: int) -> nn.Module:
    layers = tuple(Dense(width) for width in WIDTHS[name])
    with keyed(derive(seed, "weights")):
        model: nn.Module = ordinary(layers, data.SHAPES[name], 10)
        if kind == SPIKING:
            model = spiking(layers, data.SHAPES[name], 10, Direct(STEPS), norm="BatchNorm")
        elif kind == LEVELS:
            model = quantised(model, STEPS, threshold=1.0)
    BPTT(lr=3e-3, seed=seed).fit(model, data.load(name, "train"), epochs=EPOCHS[name], progress=False)
    return model


def attacks(kind: str, flips: int) -> dict[str, BitFlipAttack]:
    """By name. They differ in what the attacker raises and how bits are ranked."""
    found = {
        "cross-entropy alone": BitFlipAttack(flips=flips, loss=cross_entropy),
        "best of three losses": BitFlipAttack(flips=flips),
    }
    if kind == SPIKING:
        found["and of four surrogates"] = BitFlipAttack(flips=flips, surrogate=RANKINGS)
    found["and candidates measured"] = BitFlipAttack(
        flips=flips, surrogate=RANKINGS if kind == SPIKING else None, exact=True
    )
    return found


def at(result: BitFlipResult, flips: int, accuracy: tuple[float, ...]) -> float:
    """After at most so many flips, in %; a search that ended earlier stays where it ended."""
    return 100 * accuracy[max(i for i, count in enumerate(result.judgement.flips) if count <= flips)]


def interval(values: list[float]) -> str:
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.1f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"{mean:.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The bit-flip attack on an ordinary and on a spiking network.")
    parser.add_argument("--data", choices=sorted(WIDTHS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--plot", type=Path, default=None, help="figure of the first spiking network, strongest attack")
    arguments = parser.parse_args()
    test = data.load(arguments.data, "test")
    x, y = data.take(test, min(BATCH + JUDGED, len(test)))
    given, judged = (x[:BATCH], y[:BATCH]), (x[BATCH:], y[BATCH:])
    points = sorted({max(1, arguments.flips // 4), max(1, arguments.flips // 2), arguments.flips})
    print(f"{arguments.data}, {len(judged[1])} judged samples, {arguments.seeds} training seeds, accuracy in %\n")
    heading = (
        "network",
        "attack",
        "float",
        "8 bits",
        *(f"{p} flips" for p in points),
        f"{points[-1]} random flips",
        "forwards",
    )
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for kind in (PLAIN, LEVELS, SPIKING):
        models = [train(kind, arguments.data, seed) for seed in range(arguments.seeds)]
        for name, attack in attacks(kind, arguments.flips).items():
            results = [attack(model, given, judged, seed=seed) for seed, model in enumerate(models)]
            cells = [
                interval([100 * r.float_accuracy for r in results]),
                interval([at(r, 0, r.judgement.accuracy) for r in results]),
                *(interval([at(r, p, r.judgement.accuracy) for r in results]) for p in points),
                interval([float(np.mean([at(r, points[-1], t.accuracy) for t in r.random])) for r in results]),
                f"{np.mean([r.forwards for r in results]):,.0f}",
            ]
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)
            if kind == SPIKING and arguments.plot is not None:
                results[0].plot(arguments.plot)


if __name__ == "__main__":
    main()
