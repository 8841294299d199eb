"""``python -m benchmarks.libraries``: single attacks beside those of foolbox and torchattacks, on one small network for digits.

Robust accuracy of the same images at the same budgets; a difference below zero says that ours is the stronger attack.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import peers
from snnrobust import attacks, data
from snnrobust.attacks import L2, Linf
from snnrobust.draws import keyed
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, ordinary

RESTARTS = 3  # of APGD, whose random starts differ
LINF, EUCLIDEAN = (0.03, 0.05, 0.08, 0.12), (0.2, 0.4, 0.6, 0.8)
Found = Callable[[float], Tensor]  # budget -> inputs


def victim(n: int, epochs: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network trained on digits, and ``n`` test images, in float32, which some of the attacks need."""
    with keyed(0):
        model = ordinary((Conv(4), Dense(32)), (1, 8, 8), 10)
    BPTT(lr=1e-2).fit(model, data.load("digits", "train"), epochs=epochs, progress=False)
    x, y = data.take(data.load("digits", "test"), n)
    return model.eval(), x, y


def pairs(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, queries: int
) -> dict[str, tuple[Sequence[float], Found, Found]]:
    """By name: the budgets, ours, theirs."""
    foolbox: Any = importlib.import_module("foolbox")

    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def ours(make: Callable[[float], attacks.Attack]) -> Found:
        return lambda eps: make(eps)(model, x, y, seed=0)

    def foolbox_(attack: Any) -> Found:
        return lambda eps: attack(fmodel, x, y, epsilons=[eps])[1][0]

    start = {"random_start": False}
    theirs = {
        "PGD": foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps, **start),
        "CW": foolbox.attacks.L2CarliniWagnerAttack(5, steps=200, stepsize=0.05, initial_const=0.1),
        "DeepFool L2": foolbox.attacks.L2DeepFoolAttack(),
        "DeepFool Linf": foolbox.attacks.LinfDeepFoolAttack(),
    }
    mine: dict[str, tuple[Sequence[float], Found]] = {
        "PGD": (LINF, ours(lambda e: attacks.PGD(Linf(e), steps=steps, step_size=2.5 * e / steps, random_start=False))),
        "CW": (EUCLIDEAN, ours(lambda e: attacks.CW(L2(e), steps=200, search_steps=5))),
        "DeepFool L2": (EUCLIDEAN, ours(lambda e: attacks.DeepFool(L2(e), classes=None))),
        "DeepFool Linf": (LINF, ours(lambda e: attacks.DeepFool(Linf(e), classes=None))),
    }
    found = {f"{name}, foolbox": (*mine[name], foolbox_(theirs[name])) for name in mine}
    return found | _torchattacks(model, x, y, steps, queries, ours)


def _torchattacks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    queries: int,
    ours: Callable[[Callable[[float], attacks.Attack]], Found],
) -> dict[str, tuple[Sequence[float], Found, Found]]:
    t: Any = peers.optional(lambda: importlib.import_module("torchattacks"))
    if t is None:
        return {}

    common = {"norm": "Linf", "steps": steps, "n_restarts": RESTARTS, "seed": 0}

    def theirs(make: Callable[[float], Any]) -> Found:
        def run(eps: float) -> Tensor:
            found: Tensor = make(eps)(x, y)
            model.eval()  # it leaves the model in training mode
            return found

        return run

    return {
        "APGD, torchattacks": (LINF, ours(lambda e: attacks.APGD(Linf(e), steps=steps, restarts=RESTARTS)),
                               theirs(lambda e: t.APGD(model, eps=e, **common))),
        "APGD DLR, torchattacks": (LINF, ours(lambda e: attacks.APGD(Linf(e), steps=steps, restarts=RESTARTS, loss=attacks.dlr)),
                                   theirs(lambda e: t.APGD(model, eps=e, loss="dlr", **common))),
        "FAB Linf, torchattacks": (LINF, ours(lambda e: attacks.FAB(Linf(e), steps=steps)),
                                   theirs(lambda e: t.FAB(model, norm="Linf", eps=e, steps=steps))),
        "FAB L2, torchattacks": (EUCLIDEAN, ours(lambda e: attacks.FAB(L2(e), steps=steps)),
                                 theirs(lambda e: t.FAB(model, norm="L2", eps=e, steps=steps))),
        "Square Linf, torchattacks": (LINF, ours(lambda e: attacks.Square(Linf(e), queries=queries)),
                                      theirs(lambda e: t.Square(model, norm="Linf", eps=e, n_queries=queries, seed=0))),
        "Square L2, torchattacks": (EUCLIDEAN, ours(lambda e: attacks.Square(L2(e), queries=queries)),
                                    theirs(lambda e: t.Square(model, norm="L2", eps=e, n_queries=queries, seed=0))),
    }  # fmt: skip


def robust(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: attacks.ThreatModel) -> float:
    """Accuracy in %; an input beyond the budget, but for rounding, is no success."""
    with torch.no_grad():
        wrong = model(x_adv.detach()).argmax(1) != y
    legal = threat.distance(x, x_adv) <= float(threat.eps) + 1e-5  # type: ignore[arg-type]
    with torch.no_grad():
        clean = model(x).argmax(1) != y
    return 100 * float(1 - ((wrong & legal) | clean).double().mean())


def main(arguments: Sequence[str] | None = None) -> Mapping[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args(arguments)
    model, x, y = victim(options.n)
    table = Table("attack, and whose beside", "eps", "ours, %", "theirs, %", "largest difference, points")
    worst = {}
    for name, (budgets, ours, theirs) in pairs(model, x, y, options.steps, options.queries).items():
        kind = Linf if budgets is LINF else L2
        both = [[robust(model, x, y, find(e), kind(e)) for e in budgets] for find in (ours, theirs)]
        worst[name] = max(a - b for a, b in zip(*both, strict=True))
        numbers = (", ".join(f"{v:.1f}" for v in values) for values in both)
        table.add_row(name, ", ".join(map(str, budgets)), *numbers, f"{worst[name]:+.1f}")
    console = Console(width=130, highlight=False)
    console.print(f"digits, n = {options.n}, {options.steps} steps, {options.queries} queries, one network, one seed")
    console.print(table)
    return worst


if __name__ == "__main__":
    main()
