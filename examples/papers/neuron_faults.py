"""What faults of neurons, spikes and weight bits cost: the table of docs/hardware/faults.md.

    python examples/papers/neuron_faults.py               # digits, 5 training seeds; a minute on one core
    python examples/papers/neuron_faults.py --data mnist  # MNIST in $SNNROBUST_DATA; longer

An ordinary and a spiking network (Direct encoding) of one hidden layer of 128 neurons are trained from each seed without faults.
Test accuracy in %, the mean over chips, then over training seeds, with Student's 95 % interval. Stuck ReLUs give the mean of what
the layer's active neurons give.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from snnrobust import data
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import (
    Backend,
    BitErrors,
    DeadNeurons,
    NeuronVariation,
    SpikeInsertion,
    SpikeLoss,
    StuckNeurons,
    fleet,
)
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, ordinary, spiking

STEPS, EPOCHS = 8, {"digits": 10, "mnist": 1}
RATES = (0.05, 0.1, 0.2, 0.5)


def train(kind: str, name: str, seed: int) -> nn.Module:
    with keyed(derive(seed, "weights")):
        model: nn.Module = ordinary((Dense(128),), data.SHAPES[name], 10)
        if kind == "SNN":
            model = spiking((Dense(128),), data.SHAPES[name], 10, Direct(STEPS), norm="BatchNorm")
    BPTT(lr=3e-3, seed=seed).fit(model, data.load(name, "train"), epochs=EPOCHS[name], progress=False)
    return model.eval()


def backends(kind: str, rate: float, active: float) -> dict[str, Backend]:
    both: dict[str, Backend] = {
        "dead neurons": DeadNeurons(rate),
        "stuck neurons": StuckNeurons(rate, value=1.0 if kind == "SNN" else active),
        "outputs lost, drawn each step": SpikeLoss(rate),
        "weight bits flipped, rate / 10": BitErrors(rate / 10),
    }
    if kind == "ANN":
        return both
    return both | {
        "spikes inserted, drawn each step": SpikeInsertion(rate),
        "spikes inserted, drawn each inference": SpikeInsertion(rate, drawn="inference"),
        "threshold varies, normal": NeuronVariation(threshold=rate),
        "leak rate varies, normal": NeuronVariation(leak=rate),
    }


def mean_activation(model: nn.Module, x: Tensor) -> float:
    """Of the ReLUs that are active."""
    (relu,) = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    seen: list[Tensor] = []
    handle = relu.register_forward_hook(lambda m, given, y: seen.append(y))
    with torch.no_grad():
        model(x)
    handle.remove()
    return float(seen[0][seen[0] > 0].mean())


def accuracy(model: nn.Module, backend: Backend, x: Tensor, y: Tensor, chips: int, seed: int) -> float:
    """In %."""
    found = []
    for i, chip in enumerate(fleet(model, backend, chips, seed=seed * chips)):
        with torch.no_grad(), draws(chip, derive(seed, i)):
            found.append(100 * float((chip(x).argmax(1) == y).double().mean()))
    return float(np.mean(found))


def cell(values: list[float]) -> str:
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults of neurons, spikes and weight bits.")
    parser.add_argument("--data", choices=sorted(EPOCHS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--chips", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="test images")
    arguments = parser.parse_args()
    test = data.load(arguments.data, "test")
    x, y = data.take(test, min(arguments.images, len(test)))
    print(f"{arguments.data}, {len(y)} test images, {arguments.seeds} training seeds, {arguments.chips} chips each\n")
    print(f"| network | fault | none | {' | '.join(f'{rate:g}' for rate in RATES)} |\n|{'---|' * (3 + len(RATES))}")
    for kind in ("ANN", "SNN"):
        models = [train(kind, arguments.data, seed) for seed in range(arguments.seeds)]
        active = [mean_activation(m, x) if kind == "ANN" else 1.0 for m in models]
        clean = cell([accuracy(m, DeadNeurons(0.0), x, y, 1, seed) for seed, m in enumerate(models)])
        for name in backends(kind, 0.0, 1.0):
            cells = [
                cell(
                    [
                        accuracy(m, backends(kind, rate, active[seed])[name], x, y, arguments.chips, seed)
                        for seed, m in enumerate(models)
                    ]
                )
                for rate in RATES
            ]
            print(f"| {kind} | {name} | {clean} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
