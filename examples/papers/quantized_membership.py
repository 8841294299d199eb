"""Does quantization hide who was in the training data: the tables of docs/quantization/privacy.md.

    python examples/papers/quantized_membership.py            # Fashion-MNIST in $SNNROBUST_DATA, 3 victims; fifteen minutes
    python examples/papers/quantized_membership.py --quick    # digits, a minute; the numbers mean nothing

An ordinary and a spiking network of two hidden layers learn few samples by heart. Victims and shadows are trained once and
quantized alike by each quantizer: weights after training (all layers or the last alone), and with fine-tuning through the
rounding. Beside each stands the float network, stopped as soon as it is as accurate. Values are means over victims (training
seeds) with Student's 95 % interval. What is done is kept in --out; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn
from torch.nn.utils import parametrize

from snnrobust import data
from snnrobust.attacks import Linf, standard
from snnrobust.attacks.membership import Settings as Attacks
from snnrobust.codesign import FittedQuantizer, MembershipExperiment, early_stops, membership_experiment, over_victims
from snnrobust.codesign.quantized_membership import LIRA, REGRESSION, WEAK, Pair, Quantize
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.energy import count_operations
from snnrobust.evaluation import evaluate
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import Binary, Integer, Quantizer, Ternary

STEPS = 4
KINDS = ("ANN", "SNN")
LR = 1e-3
ATTACKED = ("float", "4 bits", "ternary", "binary", "last layer binary", "ternary, fine-tuned")


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist"
    members: int = 1000
    others: int = 10_000
    width: int = 128
    epochs: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 25, 40, 60)
    tuned: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    shadows: int = 16
    images: int = 100
    attacked: int = 2
    eps: str = "4/255"


FULL = Settings()
QUICK = Settings("digits", 200, 500, 32, (1, 4, 20), 2, (0, 1), 2, 8, 1)


# --- quantizers: weights alone, each output channel with a scale of its own; biases and normalisation stay float ---


RULES = {
    **{str(bits): Quantizer(Integer(bits), axis=0) for bits in (8, 4, 3)},
    "ternary": Quantizer(Ternary(), "least-squares", axis=0),
    "binary": Quantizer(Binary(), "least-squares", axis=0),
}


def rounded(w: torch.Tensor, rule: str) -> torch.Tensor:
    """``w`` ``[out, *]`` on the levels of ``rule``; of ``"2"``: four from the smallest weight to the largest."""
    if rule != "2":
        return RULES[rule](w)
    rows = w.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (high - low) / 3
    return (low + ((rows - low) / step).round() * step).reshape(w.shape)


class Rounded(nn.Module):
    """A parametrization of ``weight``: rounded forward, the identity backward."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w + (rounded(w.detach(), self.rule) - w.detach())


def weights(rule: str, last_only: bool = False) -> Quantize:
    """Rounded once."""

    def quantize(model: nn.Module) -> nn.Module:
        made = deepcopy(model)
        layers = [m for m in made.modules() if isinstance(m, nn.Linear)]
        for layer in layers[-1:] if last_only else layers:
            layer.weight.data = rounded(layer.weight.data, rule)
        return made

    return quantize


def fine_tuned(rule: str, epochs: int) -> FittedQuantizer:
    """Trained on with rounded weights, then left with them; ``"float"`` only trains on."""

    def tune(model: nn.Module, pair: Pair, seed: int) -> None:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)] if rule != "float" else []
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", Rounded(rule))
        BPTT(lr=LR, seed=seed).fit(model, pair, epochs=epochs, progress=False)
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight")

    return FittedQuantizer(deepcopy, tune)


def rows(s: Settings) -> dict[str, tuple[str, bool, Quantize | FittedQuantizer | None]]:
    """Rule, last layer only, and quantizer of each row."""

    found: dict[str, tuple[str, bool, Quantize | FittedQuantizer | None]] = {"float": ("32", False, None)}
    for rule in ("8", "4", "3", "2", "ternary", "binary"):
        found[label(rule)] = (rule, False, weights(rule))
    for rule in ("4", "2", "ternary", "binary"):
        found[f"last layer {label(rule)}"] = (rule, True, weights(rule, last_only=True))
    for rule in ("4", "ternary", "binary"):
        found[f"{label(rule)}, fine-tuned"] = (rule, False, fine_tuned(rule, s.tuned))
    found["float, trained on as long"] = ("32", False, fine_tuned("float", s.tuned))
    return found


def label(rule: str) -> str:
    return f"{rule} bits" if rule.isdigit() else rule


# --- measurements ---


def trainer(s: Settings, kind: str) -> Callable[[Pair, int], list[nn.Module]]:
    def train(pair: Pair, seed: int) -> list[nn.Module]:
        layers, shape = (Dense(s.width), Dense(s.width)), data.SHAPES[s.data]
        with keyed(derive(seed, "weights")):
            model = (
                ordinary(layers, shape, 10)
                if kind == "ANN"
                else spiking(layers, shape, 10, Direct(STEPS), norm="BatchNorm")
            )
        return early_stops(BPTT(lr=LR, seed=seed), model, pair, s.epochs)

    return train


def hardware_of(model: nn.Module, x: torch.Tensor, rule: str, last_only: bool) -> dict[str, float]:
    """Size of the weights, and energy of an inference at 45 nm in float arithmetic.

    4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate; 5 pJ to read 32 bits of weight for each, and in proportion for fewer bits
    (our assumption).
    """
    counted = count_operations(model, x)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    bits = {"32": 32.0, "ternary": 2.0, "binary": 1.0}.get(rule) or float(rule)
    each = [bits if not last_only or i == len(layers) - 1 else 32.0 for i in range(len(layers))]
    size = sum(b * m.weight.numel() for b, m in zip(each, layers, strict=True)) / 8 / 1024
    macs = [float(layer.mac.sum()) for layer in counted.layers]
    acs = [float(layer.ac.sum()) for layer in counted.layers]
    arithmetic = 4.6 * sum(macs) + 0.9 * sum(acs)
    reads = sum(5 * b / 32 * (m + a) for b, m, a in zip(each, macs, acs, strict=True))
    return {"kB": size, "nJ arithmetic": arithmetic / 1e3, "nJ weights": reads / 1e3}


class Study:
    def __init__(self, s: Settings, folder: Path) -> None:
        self.s, self.folder = s, folder
        x, y = data.take(data.load(s.data, "train"), 3 * s.members)
        self.members, self.pool = (x[: s.members], y[: s.members]), (x[s.members :], y[s.members :])
        self.others = data.take(data.load(s.data, "test"), s.others)

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(asdict(self.s)))
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise SystemExit(f"{path} is of other settings: give another --out")
            return dict(found["cell"])
        print(f"measuring {name}", flush=True)
        found = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps({"settings": settings, "cell": found}, indent=1).encode())
        return found

    def run(self, kind: str) -> dict[str, dict[str, Any]]:
        made: list[MembershipExperiment] = []

        def experiment() -> MembershipExperiment:
            if not made:
                made.append(
                    membership_experiment(
                        trainer(self.s, kind), self.members, self.others, self.pool,
                        seeds=self.s.seeds, shadows=self.s.shadows, settings=Attacks(batch_size=1000),
                    )
                )  # fmt: skip
            return made[0]

        def measure(name: str) -> dict[str, Any]:
            rule, last_only, quantize = rows(self.s)[name]
            found = experiment().leakage(quantize, name=name)
            control = experiment().early_stopped(found)
            first = experiment().quantized(quantize)[0]
            cost = hardware_of(first, self.others[0][:200], rule, last_only)
            return {"leakage": found.json(), "control": control.json(), "cost": cost}

        def attack(name: str, k: int) -> dict[str, Any]:
            model, attacks = experiment().quantized(rows(self.s)[name][2])[k], {"suite": standard(Linf(self.s.eps))}
            found = evaluate(
                model, self.others, attacks, n=self.s.images, seed=k, examples=0, controls=False, progress=False
            )
            return {r["attack"]: [r["accuracy"], r["low"], r["high"]] for r in found.rows}

        every = rows(self.s)
        cells = {name: self.cell(f"{kind}-{name}", partial(measure, name)) for name in every}
        for name in ATTACKED:
            for k in range(min(self.s.attacked, len(self.s.seeds))):
                cells[name][f"robust-{k}"] = self.cell(f"{kind}-{name}-robust-{k}", partial(attack, name, k))
        return cells


# --- tables ---


def text(values: list[float | None], digits: int = 3) -> str:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "not resolvable"
    found = over_victims(known)
    return f"{found.value:.{digits}f}" + (f" ± {found.high - found.value:.{digits}f}" if len(known) > 1 else "")


def tables(kind: str, cells: dict[str, dict[str, Any]], s: Settings) -> str:
    def table(heading: str, lines: list[list[str]]) -> str:
        names = [kind, *heading.split("|")]
        return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *lines)) + "\n"

    leaks: list[list[str]] = []
    weak: list[list[str]] = []
    published: list[list[str]] = []
    costs: list[list[str]] = []
    paired: list[list[str]] = []
    plain = cells["float"]["leakage"]["attacks"][REGRESSION]
    for name, cell in cells.items():
        found = cell["leakage"]
        learnt = found["attacks"][REGRESSION]
        leaks.append(measured(name, found))
        control = cell["control"]
        if name != "float":
            epochs = s.epochs[control["checkpoint"]]
            note = "" if control["matched"] else ", less accurate"
            leaks.append(measured(f"↳ float after {epochs} epochs{note}", control))
        if REGRESSION + WEAK in found["attacks"]:
            shown = []
            for strong, other in ((REGRESSION, REGRESSION + WEAK), (LIRA, LIRA + WEAK)):
                shown += [text(found["attacks"][a]["auc"]) for a in (strong, other)]
            shown += [text(found["attacks"][a]["tpr at 0.01"]) for a in (LIRA, LIRA + WEAK)]
            weak.append([name, *shown])
        if name != "float":
            differences = []
            for other in (cells["float"]["leakage"], cell["control"]):
                for key, measure in ((REGRESSION, "auc"), (LIRA, "auc"), (LIRA, "tpr at 0.01")):
                    both = zip(found["attacks"][key][measure], other["attacks"][key][measure], strict=True)
                    differences.append(text([None if None in (a, b) else a - b for a, b in both]))
            paired.append([name, *differences])
        changes = []
        for key in ("calibrated", "tpr", "f1"):
            relative = [100 * (a / b - 1) for a, b in zip(learnt[key], plain[key], strict=True)]
            changes += [text(learnt[key]), text(relative, 0)] if name != "float" else [text(learnt[key]), ""]
        published.append([name, *changes])
        cost = cell["cost"]
        robust = [cell[key] for key in sorted(cell) if key.startswith("robust-")]
        pooled = "; ".join(
            f"{100 * r['suite'][0]:.1f} [{100 * r['suite'][1]:.1f}, {100 * r['suite'][2]:.1f}]" for r in robust
        )
        costs.append(
            [name, text([100 * v for v in found["on_others"]], 1), pooled or "—", f"{cost['kB']:.1f}",
             f"{cost['nJ arithmetic']:.0f}", f"{cost['nJ weights']:.0f}"]
        )  # fmt: skip
    return "\n".join(
        [
            table(
                "accuracy on members|on others|AUC, loss|AUC, regression|AUC, LiRA|balanced accuracy, regression|"
                "TPR at 1 % FPR, LiRA|at 0.1 %, LiRA",
                leaks,
            ),
            table("AUC, regression|float shadows|AUC, LiRA|float shadows|TPR at 1 % FPR, LiRA|float shadows", weak),
            table(
                "AUC, regression, less float|AUC, LiRA, less float|TPR at 1 %, less float|"
                "AUC, regression, less control|AUC, LiRA, less control|TPR at 1 %, less control",
                paired,
            ),
            table("MIA accuracy|change, %|TPR|change, %|member F1|change, %", published),
            table(f"clean accuracy, %|RA_1 at {s.eps}, % [95 %]|weights, kB|arithmetic, nJ|weight reads, nJ", costs),
        ]
    )


def measured(name: str, found: dict[str, Any]) -> list[str]:
    attacks = found["attacks"]
    return [
        name, text(found["on_members"]), text(found["on_others"]), text(attacks["threshold on loss"]["auc"]),
        text(attacks[REGRESSION]["auc"]), text(attacks[LIRA]["auc"]), text(attacks[REGRESSION]["balanced_accuracy"]),
        text(attacks[LIRA]["tpr at 0.01"]), text(attacks[LIRA]["tpr at 0.001"]),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Membership inference on quantized networks.")
    parser.add_argument("--quick", action="store_true", help="digits, tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/quantized_membership"))
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    for name in ("members", "others", "width", "shadows", "images", "tuned", "attacked"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--data", choices=sorted(data.DATASETS))
    arguments = parser.parse_args()
    s = QUICK if arguments.quick else FULL
    given = {key: value for key, value in vars(arguments).items() if key not in ("quick", "out", "only") and value}
    if "seeds" in given:
        given["seeds"] = tuple(given["seeds"])
    study = Study(replace(s, **given), arguments.out)
    for kind in arguments.only:
        print(tables(kind, study.run(kind), study.s), flush=True)


if __name__ == "__main__":
    main()
