"""Surgical noise in hybrid 8T-6T SRAM as a defence, and the parameter attack: the tables of docs/hardware/surgical_noise.md.

    python examples/papers/sram_surgical_noise.py                     # Fashion-MNIST in $SNNROBUST_DATA, 3 training seeds
    python examples/papers/sram_surgical_noise.py --data digits       # a small stand-in, in about a minute

A small convolutional network, ordinary and spiking, is trained from each seed. Layers and memories are chosen on 500 training
images that no network saw, by the loss of FGSM images crafted on the memory without errors, as the published procedure does; the
choice is judged on test images and on other chips, under FGSM and PGD crafted on the memory without errors and on each chip
through its own gradient. The parameter attack chooses among the cells that fail at a voltage, on 256 images. Accuracies and
gains are in %, means over training seeds with Student's 95 % interval. Finished seeds are kept in --output and not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snnrobust import data
from snnrobust.attacks import FGSM, PGD, Attack, Goal, Linf, SRAMAttack, crafted
from snnrobust.attacks.selection import measure, worst_of
from snnrobust.codesign import SurgicalNoise, SurgicalResult
from snnrobust.draws import Stream, derive, keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import SRAM, deploy_each
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking

LAYERS = (Conv(8), Pool(), Conv(16), Pool(), Dense(48))
EPS = {"fashion-mnist": "8/255", "mnist": 0.1, "digits": 0.1}
STEPS, EPOCHS, TRAINED, SELECTED, GIVEN = 4, 3, 6_000, 500, 256
KINDS = ("ANN", f"SNN, T = {STEPS}")
VOLTAGES = (0.83, 0.79)
RATIOS = ("6:2", "4:4", "2:6")
MEMORIES = ("chip", "inference")
PARTS = ("defence", "attack", "harder")
HARDER = 200
ATTACKED = ((0.83, "4:4"), (0.83, "0:8"), (0.79, "4:4"), (0.79, "0:8"))
SETTINGS = {
    "layers": repr(LAYERS), "time_steps": STEPS, "epochs": EPOCHS, "trained": TRAINED, "selected": SELECTED, "given": GIVEN,
    "voltages": VOLTAGES, "ratios": RATIOS, "attacked": ATTACKED,
}  # fmt: skip

Images = tuple[Tensor, Tensor]


def images(name: str, judged: int) -> tuple[TensorDataset, Images, Images]:
    """To train with; to choose with; to judge with."""
    x, y = data.take(data.load(name, "train"))
    selected = min(SELECTED, len(x) // 4)
    trained = min(TRAINED, len(x) - selected)
    test = data.load(name, "test")
    return (
        TensorDataset(x[:trained], y[:trained]),
        (x[-selected:], y[-selected:]),
        data.take(test, min(judged, len(test))),
    )


def train(kind: str, name: str, trained: TensorDataset, seed: int) -> nn.Module:
    shape = data.SHAPES[name]
    with keyed(derive(seed, "weights")):
        model: nn.Module = ordinary(LAYERS, shape, 10)
        if kind != "ANN":
            model = spiking(LAYERS, shape, 10, Direct(STEPS), norm="BatchNorm")
    BPTT(lr=3e-3, seed=seed).fit(model, trained, epochs=EPOCHS, progress=False)
    return model


def defence(model: nn.Module, name: str, drawn: str, chosen_on: Images, judged_on: Images, seed: int) -> dict[str, Any]:
    threat = Linf(EPS[name])
    judges: dict[str, Attack] = {"FGSM": FGSM(threat), "PGD-10": PGD(threat, steps=10)}
    chip = drawn == "chip"
    search = SurgicalNoise(
        attack=FGSM(threat),
        configurations=[SRAM(v, ratio=ratio, drawn=drawn) for v in VOLTAGES for ratio in RATIOS],  # type: ignore[arg-type]
        judges=judges,
        chips=2 if chip else 1,
        judge_chips=2 if chip else 1,
        draws=3,
        judge_draws=8,
        eot=4,
    )
    result = search(model, chosen_on, judged_on, seed=seed)
    found: dict[str, Any] = {
        "chosen": {layer: [sram.voltage, sram.ratio] for layer, sram in result.chosen.items()},
        "clean": [float(shares.mean()) for shares in result.clean],
        "attacks": {j.attack: _judged(j) for j in result.judgements},
        "selection": _selection(result),
        "text": str(result),
    }
    return found


def _judged(j: Any) -> dict[str, float]:
    return {kind: float(getattr(j, kind).mean()) for kind in ("ideal", "software", "on_chip")}


def _selection(result: SurgicalResult) -> dict[str, float]:
    """What the search itself saw: adversarial accuracy before and after, on the images that it chose with."""
    after = result.combined[-1][1] if result.combined else result.baseline
    return {"before": result.baseline.accuracy, "after": after.accuracy}


def attack(model: nn.Module, voltage: float, ratio: str, given: Images, judged: Images, seed: int) -> dict[str, Any]:
    few = tuple(t[:GIVEN] for t in given)
    result = SRAMAttack(sram=SRAM(voltage, ratio=ratio), rounds=10)(model, few, judged, seed=seed)  # type: ignore[arg-type]
    confident = []
    with torch.no_grad():
        for x, y in zip(judged[0].split(256), judged[1].split(256), strict=True):
            top, predicted = result.model(x).softmax(1).max(1)
            confident.append(top[predicted != y])
    return {
        "stored": result.judgement.accuracy[0], "undervolted": result.undervolted[0], "attacked": result.judgement.accuracy[-1],
        "random": float(np.mean([t.accuracy[-1] for t in result.random])), "flips": len(result.flips), "weak": result.weak,
        "confidence": float(torch.cat(confident).mean()), "text": str(result),
    }  # fmt: skip


def harder(model: nn.Module, name: str, defended: dict[str, Any], judged: Images, seed: int) -> dict[str, Any]:
    """The choice with maps drawn in each pass, under more draws of each gradient and more steps; worst of two attacks."""
    x, y = (t[:HARDER] for t in judged)
    chosen = {layer: SRAM(v, ratio=ratio, drawn="inference") for layer, (v, ratio) in defended["chosen"].items()}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ideal = deploy_each(model, {n: SRAM(1.0) for n in layers}, seed=seed)
    chip = deploy_each(model, {n: chosen.get(n, SRAM(1.0)) for n in layers}, seed=seed)
    found: dict[str, Any] = {}
    pgd = PGD(Linf(EPS[name]), steps=20)
    shown = pgd(ideal, x, y, seed=seed)
    stream = Stream(derive(seed, "harder"), torch.arange(len(x)))

    def accuracy(victim: nn.Module, images: Tensor) -> float:
        return float(measure(victim.eval(), images, Goal(y), stream.fork("judge"), 64).correct.double().mean() / 64)

    found["ideal"], found["software"] = accuracy(ideal, shown), accuracy(chip, shown)
    candidates = [x, shown]
    for draws in (4, 16) if chosen else ():
        candidates.append(crafted(pgd, "eot", draws=draws)(chip, x, y, seed=seed))
        found[f"EOT({draws})"] = accuracy(chip, candidates[-1])
    worst = worst_of(chip, candidates, Goal(y), stream.fork("select"), 16)
    found["worst"] = accuracy(chip, worst)
    return found


def run(kind: str, name: str, seed: int, judged: int, folder: Path, parts: list[str]) -> dict[str, Any]:
    """What there is in ``folder`` of one network, and what there is not yet."""
    files = {part: folder / f"{kind[:3].lower()}-{seed}-{part}.json" for part in parts}
    if not all(file.exists() for file in files.values()):
        trained, chosen_on, judged_on = images(name, judged)
        print(f"{kind}, seed {seed}", flush=True)
        model = train(kind, name, trained, seed)
    found: dict[str, Any] = {"kind": kind, "seed": seed, "seconds": 0.0}
    for part, file in files.items():
        if not file.exists():
            began = time.process_time()
            made: dict[str, Any]
            if part == "defence":
                made = {drawn: defence(model, name, drawn, chosen_on, judged_on, seed) for drawn in MEMORIES}
            elif part == "attack":
                made = {f"{v} {ratio}": attack(model, v, ratio, chosen_on, judged_on, seed) for v, ratio in ATTACKED}
            else:
                made = harder(model, name, found["defence"]["inference"], judged_on, seed)
            file.write_text(json.dumps({part: made, "seconds": time.process_time() - began}, indent=1))
        record = json.loads(file.read_text())
        found |= {part: record[part], "seconds": found["seconds"] + record["seconds"]}
    return found


# --- tables ---------------------------------------------------------------------------------------------------


def interval(values: list[float], sign: bool = False) -> str:
    values = [100 * v for v in values]
    mean = float(np.mean(values))
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    if len(values) == 1:
        return text
    return f"{text} ± {float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)):.1f}"


def tables(runs: list[dict[str, Any]]) -> str:
    kinds = [kind for kind in KINDS if any(r["kind"] == kind for r in runs)]
    made = [table(runs, kinds) for part, table in TABLES.items() if part in runs[0]]
    return "\n\n".join(made)


def defence_table(runs: list[dict[str, Any]], kinds: list[str]) -> str:
    lines = [
        "| network | maps drawn | attack | clean, ideal | clean, chosen | adv., ideal | adv., chosen, crafted on the ideal "
        "memory | gain | adv., chosen, crafted on the chip | gain |",
        f"|{'---|' * 10}",
    ]
    for kind in kinds:
        own = [r for r in runs if r["kind"] == kind]
        for drawn in MEMORIES:
            found = [r["defence"][drawn] for r in own]
            for name in found[0]["attacks"]:
                a = [d["attacks"][name] for d in found]
                cells = [
                    *(interval([d["clean"][i] for d in found]) for i in (0, 1)),
                    interval([v["ideal"] for v in a]),
                    *(
                        text
                        for way in ("software", "on_chip")
                        for text in (
                            interval([v[way] for v in a]),
                            interval([v[way] - v["ideal"] for v in a], sign=True),
                        )
                    ),
                ]
                lines.append(f"| {kind} | {drawn} | {name} | {' | '.join(cells)} |")
    lines += ["", "| network | maps drawn | seed | layers and memories that were chosen |", "|---|---|---|---|"]
    for kind in kinds:
        for drawn in MEMORIES:
            for r in (r for r in runs if r["kind"] == kind):
                chosen = r["defence"][drawn]["chosen"]
                words = ", ".join(f"`{layer}` {ratio} at {v}" for layer, (v, ratio) in chosen.items()) or "none"
                lines.append(f"| {kind} | {drawn} | {r['seed']} | {words} |")
    return "\n".join(lines)


def attack_table(runs: list[dict[str, Any]], kinds: list[str]) -> str:
    lines = [
        "| network | voltage | 8T:6T | weak cells | stored | all weak cells fail | as many random ones as chosen | chosen flips "
        "| attacked | drop | mean confidence of errors |",
        f"|{'---|' * 11}",
    ]
    for kind in kinds:
        own = [r for r in runs if r["kind"] == kind]
        for key in own[0]["attack"]:
            a = [r["attack"][key] for r in own]
            voltage, ratio = key.split()
            cells = [
                f"{np.mean([v['weak'] for v in a]):,.0f}",
                *(interval([v[way] for v in a]) for way in ("stored", "undervolted", "random")),
                f"{np.mean([v['flips'] for v in a]):,.0f}",
                interval([v["attacked"] for v in a]),
                interval([v["stored"] - v["attacked"] for v in a]),
                interval([v["confidence"] for v in a]),
            ]
            lines.append(f"| {kind} | {voltage} V_min | {ratio} | {' | '.join(cells)} |")
    return "\n".join(lines)


def harder_table(runs: list[dict[str, Any]], kinds: list[str]) -> str:
    columns = ("ideal", "software", "EOT(4)", "EOT(16)", "worst")
    heading = (
        "network",
        "ideal memory",
        "crafted on it, on the chosen one",
        *columns[2:4],
        "worst of them for each image",
        "gain",
    )
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    for kind in kinds:
        found = [r["harder"] for r in runs if r["kind"] == kind]
        cells = [interval([f.get(c, f["ideal"]) for f in found]) for c in columns]
        lines.append(
            f"| {kind} | {' | '.join(cells)} | {interval([f['worst'] - f['ideal'] for f in found], sign=True)} |"
        )
    return "\n".join(lines)


TABLES = {"defence": defence_table, "harder": harder_table, "attack": attack_table}


def main() -> None:
    parser = argparse.ArgumentParser(description="Surgical noise as a defence, and the attack on the parameters.")
    parser.add_argument("--data", choices=sorted(EPS), default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judged", type=int, default=500, help="test images")
    parser.add_argument("--output", type=Path, default=Path("runs/surgical_noise"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(SETTINGS | {"data": arguments.data, "judged": arguments.judged}))
    kept = arguments.output / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        parser.error(f"{arguments.output} holds runs of other settings: choose another --output")
    kept.write_text(json.dumps(settings, indent=1))
    runs = []
    for seed in range(arguments.seeds):
        for kind in KINDS:
            runs.append(run(kind, arguments.data, seed, arguments.judged, arguments.output, arguments.parts))
    seconds = sum(r["seconds"] for r in runs)
    print(
        f"\n{arguments.data}, eps {EPS[arguments.data]}, chosen on {SELECTED} and judged on {arguments.judged} images, "
        f"{arguments.seeds} training seeds, {seconds / 60:.0f} minutes of one core\n\n{tables(runs)}"
    )


if __name__ == "__main__":
    main()
