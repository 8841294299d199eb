"""Does bfloat16 cost accuracy, or blunt an attack? The same network trained and attacked in float32 and in bfloat16.

    python examples/bf16.py [--seeds 3] [--epochs 2] [--train 6000] [--test 1000] [--eps 0.1] [--steps 10]

It needs MNIST (see ``snnrobust doctor``). Accuracies are always those of the float32 forward pass. Small runs claim nothing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

from snnrobust import SpikingClassifier, data
from snnrobust.attacks import PGD, Backprop, Linf
from snnrobust.encoders import Direct
from snnrobust.layers import BNTT, MeanOutput, Sequential
from snnrobust.learning_rules import BPTT
from snnrobust.neurons import LIF

T = 8
PRECISIONS = ("float32", "bfloat16")


def network(seed: int) -> SpikingClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), BNTT(16, T), LIF(0.9), nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), BNTT(32, T), LIF(0.9), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(32 * 49, 10),
        )  # fmt: skip
    return SpikingClassifier(Direct(T), layers, MeanOutput())


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    correct = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))
    return 100 * correct / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seeds", 3), ("epochs", 2), ("train", 6000), ("test", 1000), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--eps", type=float, default=0.1)
    options = parser.parse_args()
    train = data.take(data.load("mnist", "train"), options.train)
    x, y = data.take(data.load("mnist", "test"), options.test)
    sizes = f"{len(train[0])} training and {len(x)} test images"
    print(f"MNIST, {sizes}, T = {T}, {options.epochs} epochs; accuracy in % in float32")
    print(f"{'trained in':<12}{'seed':>5}{'clean':>8}" + "".join(f"{'PGD in ' + p:>18}" for p in PRECISIONS))
    rows: dict[str, list[list[float]]] = {p: [] for p in PRECISIONS}
    for seed in range(options.seeds):
        for trained in PRECISIONS:
            model = network(seed)
            BPTT(lr=2e-3, seed=seed, precision=trained).fit(model, train, epochs=options.epochs, progress=False)  # type: ignore[arg-type]
            row = [accuracy(model, x, y)]
            for crafted in PRECISIONS:
                pgd = PGD(Linf(options.eps), steps=options.steps, gradient=Backprop(crafted))  # type: ignore[arg-type]
                batches = zip(x.split(250), y.split(250), torch.arange(len(x)).split(250), strict=True)
                x_adv = torch.cat([pgd(model, a, b, seed=seed, sample_ids=ids) for a, b, ids in batches])
                row.append(accuracy(model, x_adv, y))
            rows[trained].append(row)
            print(f"{trained:<12}{seed:>5}{row[0]:>8.1f}" + "".join(f"{value:>18.1f}" for value in row[1:]), flush=True)
    for trained, found in rows.items():
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        print(f"{trained:<12}{'mean':>5}{means[0]:>8.1f}" + "".join(f"{value:>18.1f}" for value in means[1:]))


if __name__ == "__main__":
    main()
