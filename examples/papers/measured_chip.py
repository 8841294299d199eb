"""Does training with a chip's converter noise help on chips that training has not seen? One conv ANN and one conv SNN.

    python examples/papers/measured_chip.py [--sigmas 0.3 0.5 0.7] [--train 6000] [--epochs 3] [--more 2000] [--test 1000]
        [--chips 3] [--steps 4] [--seeds 1]

It needs MNIST (see ``snnrobust doctor``). The chips are synthetic, as measured tables are not public: 64 rows, 4-bit inputs and
weights, 65 codes with Gaussian noise of sigma codes and a nonlinearity of 0.3, another for each layer of each chip. A trained
network is trained for one epoch more, with the chips' noise or without it: the same images, the same order. Accuracy in %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from copy import deepcopy

import torch
from torch import nn

from snnrobust import data
from snnrobust.defenses import NoiseTraining
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import LookupTable, fleet
from snnrobust.learning_rules import BPTT
from snnrobust.models import ARCHITECTURES, ordinary, spiking


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, key: int = 0) -> float:
    correct, ids = 0, torch.arange(len(x))
    for a, b, of in zip(x.split(100), y.split(100), ids.split(100), strict=True):
        with draws(model, key, of):
            correct += int((model(a).argmax(1) == b).sum())
    return 100 * correct / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"train": 6000, "epochs": 3, "more": 2000, "test": 1000, "chips": 3, "steps": 4, "seeds": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    options = parser.parse_args()
    train = data.take(data.load("mnist", "train"), options.train)
    more = data.take(data.load("mnist", "train"), options.more)
    x, y = data.take(data.load("mnist", "test"), options.test)
    began, network, shape = time.perf_counter(), ARCHITECTURES["conv-small"], (1, 28, 28)
    print("| network | seed | sigma | one more epoch | without chip | " + "on chips, mean ± deviation |")
    print("|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "ANN": ordinary(network, shape, 10),
                f"SNN, T = {options.steps}": spiking(network, shape, 10, Direct(options.steps)),
            }
        for name, first in models.items():
            BPTT(lr=2e-3, seed=seed).fit(first, train, epochs=options.epochs, progress=False)
            for sigma in options.sigmas:
                backend = LookupTable(rows=64, sigma=sigma, nonlinearity=0.3)
                for how, rule in (
                    ("plain", BPTT(lr=5e-4, seed=seed)),
                    ("with noise", NoiseTraining(lr=5e-4, seed=seed, backend=backend)),
                ):
                    model = deepcopy(first)
                    rule.fit(model, more, epochs=1, progress=False)
                    ideal = accuracy(model.eval(), x, y)
                    found = [accuracy(chip, x, y) for chip in fleet(model, backend, options.chips, seed=1000)]
                    spread = statistics.stdev(found) if len(found) > 1 else 0.0
                    cells = f"{sigma} | {how} | {ideal:.1f} | {statistics.mean(found):.1f} ± {spread:.1f}"
                    print(f"| {name} | {seed} | {cells} |", flush=True)
    print(
        f"\n{options.train} + {options.more} training images, {options.test} test images, {options.chips} chips; ",
        end="",
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
