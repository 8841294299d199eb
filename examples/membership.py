"""Does a network remember its training data, and is a spiking one more discreet: the table of docs/attacks/membership.md.

    python examples/membership.py                  # digits, 5 victims a network; a few minutes on one core
    python examples/membership.py --data mnist     # MNIST in $SNNROBUST_DATA: 10,000 non-members; longer

Victims and shadows of a network are trained alike, each shadow on a random half of a pool that shares no sample with victims.
Values are means over victims (training seeds), with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from snnrobust import data
from snnrobust.attacks import MembershipReport, OfflineLiRA, ShadowMIA, ThresholdMIA, train_shadows
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, ordinary, spiking


class Setting(NamedTuple):
    members: int
    others: int
    width: int
    epochs: int


SETTINGS = {"digits": Setting(300, 500, 64, 40), "mnist": Setting(1000, 10_000, 128, 40)}
NETWORKS = {"ANN": None, "SNN, T = 2": 2, "SNN, T = 8": 8}
Pair = tuple[Tensor, Tensor]


def trainer(name: str, steps: int | None) -> Callable[[Pair, int], nn.Module]:
    setting = SETTINGS[name]

    def train(pair: Pair, seed: int) -> nn.Module:
        layers = (Dense(setting.width), Dense(setting.width))
        with keyed(derive(seed, "weights")):
            if steps is None:
                model: nn.Module = ordinary(layers, data.SHAPES[name], 10)
            else:
                model = spiking(layers, data.SHAPES[name], 10, Direct(steps), norm="BatchNorm")
        BPTT(lr=3e-3, seed=seed).fit(model, pair, epochs=setting.epochs, progress=False)
        return model

    return train


@torch.no_grad()
def accuracy(model: nn.Module, pair: Pair) -> float:
    return float((model.eval()(pair[0]).argmax(1) == pair[1]).double().mean())


def text(values: list[float]) -> str:
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)):.3f}"


def tpr(reports: list[MembershipReport], index: int) -> str:
    found = [r.at_fpr[index].tpr for r in reports]
    return "not resolvable" if None in found else text([e.value for e in found if e is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description="Membership inference on an ordinary network and on spiking ones.")
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shadows", type=int, default=16)
    arguments = parser.parse_args()
    m, n = SETTINGS[arguments.data][:2]
    x, y = data.take(data.load(arguments.data, "train"), 3 * m)
    members, pool = (x[:m], y[:m]), (x[m:], y[m:])
    others = data.take(data.load(arguments.data, "test"), n)
    print(f"{arguments.data}: {m} members, {n} non-members, {arguments.seeds} victims, {arguments.shadows} shadows\n")
    heading = (
        "network",
        "accuracy on members",
        "on others",
        "attack",
        "AUC",
        "balanced accuracy",
        "TPR at 1 % FPR",
        "at 0.1 %",
    )
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for network, steps in NETWORKS.items():
        train = trainer(arguments.data, steps)
        victims = [train(members, seed) for seed in range(arguments.seeds)]
        shadows = train_shadows(train, pool, arguments.shadows)
        known = [text([accuracy(v, pair) for v in victims]) for pair in (members, others)]
        for attack in (
            ThresholdMIA(signal="correct"),
            ThresholdMIA(signal="loss"),
            ThresholdMIA(signal="modified_entropy"),
            ShadowMIA(shadows=shadows),
            OfflineLiRA(shadows=shadows),
        ):
            reports = [attack(v, members, others, seed=seed) for seed, v in enumerate(victims)]
            cells = (
                *known, reports[0].attack, text([r.auc.value for r in reports]),
                text([r.balanced_accuracy.value for r in reports]), tpr(reports, 1), tpr(reports, 0),
            )  # fmt: skip
            print(f"| {network} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
