"""What drift costs, and what its compensation gives back: one conv ANN and one conv SNN on PCM chips from a second to a year.

    python examples/papers/pcm_drift.py [--epochs 3] [--train 6000] [--test 1000] [--chips 5] [--steps 4] [--seed 0]

It needs MNIST (see ``snnrobust doctor``). One network of each kind is trained without noise; the chips are the same at all times
and with all compensations, and differ by the seed alone. Accuracy in %, the mean over chips and the standard deviation between
them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from snnrobust import data
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import PCM, fleet
from snnrobust.learning_rules import BPTT
from snnrobust.models import ARCHITECTURES, ordinary, spiking

TIMES = ("1 s", "1 h", "1 day", "1 month", "1 year")
COMPENSATIONS = ("none", "global", "column")


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, key: int = 0) -> float:
    correct, ids = 0, torch.arange(len(x))
    for a, b, of in zip(x.split(250), y.split(250), ids.split(250), strict=True):
        with draws(model, key, of):
            correct += int((model(a).argmax(1) == b).sum())
    return 100 * correct / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"epochs": 3, "train": 6000, "test": 1000, "chips": 5, "steps": 4, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    train = data.take(data.load("mnist", "train"), options.train)
    x, y = data.take(data.load("mnist", "test"), options.test)
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network, shape = ARCHITECTURES["conv-small"], (1, 28, 28)
        models = {
            "ANN": ordinary(network, shape, 10),
            f"SNN, T = {options.steps}": spiking(network, shape, 10, Direct(options.steps)),
        }
    print("| network | compensation | ideal | " + " | ".join(TIMES) + " |")
    print("|---|---|---|" + "---|" * len(TIMES))
    for name, model in models.items():
        BPTT(lr=2e-3, seed=options.seed).fit(model, train, epochs=options.epochs, progress=False)
        ideal = accuracy(model.eval(), x, y)
        for compensation in COMPENSATIONS:
            cells = []
            for wait in TIMES:
                chips = fleet(model, PCM(wait, compensation), options.chips, seed=options.seed)
                found = [accuracy(chip, x, y) for chip in chips]
                spread = statistics.stdev(found) if len(found) > 1 else 0.0
                cells.append(f"{statistics.mean(found):.1f} ± {spread:.1f}")
            print(f"| {name} | {compensation} | {ideal:.1f} | " + " | ".join(cells) + " |", flush=True)
    print(
        f"\n{len(train[0])} training images, {len(x)} test images, {options.epochs} epochs, {options.chips} chips; ",
        end="",
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
