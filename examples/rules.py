"""One network, trained by every learning rule: accuracy, time, memory, and how far each rule's gradient is from the true one.

    python examples/rules.py                       # digits, 2 seeds, 15 epochs: a few minutes; writes runs/rules
    python examples/rules.py --rules BPTT FA DFA   # some of them
    python examples/rules.py --trainer dfa         # one of them

Rules have their defaults, but for the learning rate (SETTINGS). The network is conv-small without normalisation behind
Direct(8), or what a rule needs instead (the table says it). Accuracy is on the 500 test images of the digits. The angle is that
between the rule's gradient and BPTT's on 200 training images, at the weights that the rule has found so far, mean over the layers
that are learnt: 0 is the same direction, 90 no relation. Memory is by how much the process grows in one training step on 512
images at T = 32, in a process of its own for each rule.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from snnrobust import data, figures
from snnrobust.experiments.build import build_model
from snnrobust.experiments.config import ModelSection
from snnrobust.learning_rules import RULES, Supervised, alignment, rule_name
from snnrobust.models.checkpoint import write_bytes

ALL = ("BPTT", "FA", "DFA", "LE", "OTTT", "DECOLLE", "EProp", "ElasticZO", "Conversion", "STDB", "STDP")
SETTINGS = {
    rule: {"lr": 5e-3} for rule in ("BPTT", "FA", "DFA", "LE", "ElasticZO")
}  # as OTTT and DECOLLE have by default
TWO_PHASES = ("Conversion", "STDB", "STDP")  # more than one gradient trains them, so there is no angle
BASE: dict[str, Any] = {"architecture": "conv-small", "norm": "none"}
SHAPE = (1, 8, 8)


def network(rule: str, seed: int, steps: int = 8) -> nn.Module:
    encoder = {"encoder": {"type": "Direct", "time_steps": steps}}
    section = ModelSection.model_validate({"name": "one", **BASE, **encoder, **RULES[rule].needs})
    return build_model(section, SHAPE, 10, seed)


def train(rule: str, seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    path = folder / f"{rule}-{epochs}epochs-seed{seed}.json"
    if path.exists():
        return json.loads(path.read_bytes())
    print(f"training {path.stem}", flush=True)
    model, trainer = network(rule, seed), RULES[rule](seed=seed, **SETTINGS.get(rule, {}))
    images, test = data.load("digits", "train"), data.load("digits", "test")
    probe, state = data.take(images, 200), path.with_suffix(".training")
    angles = [] if rule in TWO_PHASES else [angle(trainer, model, *probe)]
    state.unlink(missing_ok=True)
    for until in [epochs] if rule in TWO_PHASES else range(1, epochs + 1):  # goes on from the state of the epoch before
        history = trainer.fit(model, images, test, epochs=until, checkpoint=state, progress=False)
        if rule not in TWO_PHASES:
            angles.append(angle(trainer, model, *probe, history.learnt))
    found = {
        "accuracy": [r["validation_accuracy"] for r in history.records], "final": accuracy(model), "angles": angles,
        "seconds": float(np.mean([r["seconds"] for r in history.records])),
    }  # fmt: skip
    write_bytes(path, json.dumps(found).encode())
    return found


def angle(rule: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor, learnt: Any = None) -> float | None:
    """Mean over the layers that have one."""
    if not isinstance(rule, Supervised):
        return None
    found = [a for a in alignment(rule, model, x, y, learnt=learnt or None).values() if a == a]
    return float(np.mean(found)) if found else None


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    x, y = data.take(data.load("digits", "test"))
    return float((model(x).argmax(1) == y).float().mean())


def memory(rule: str) -> int:
    """Bytes by which this process grows in one step; a small step came before, so that what is loaded once is there."""
    x, y = data.take(data.load("digits", "train"), 512)
    fit(rule, x[:8], y[:8], 2)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is resident now
    before = resident("VmRSS")
    fit(rule, x, y, 32)
    return max(0, resident("VmHWM") - before)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def fit(rule: str, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RULES[rule](batch_size=len(x)).fit(network(rule, 0, steps), (x, y), epochs=1, progress=False)


def measured_memory(rule: str) -> float:
    """NaN where it cannot be measured: it takes Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    command = [sys.executable, __file__, "--memory", rule]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "SNNROBUST_BUFFERS": "off"}
    )
    return int(done.stdout.split()[-1])


def table(results: dict[str, list[dict[str, Any]]], peaks: dict[str, float]) -> str:
    rows = [
        "| rule | network | test accuracy in %: mean (each seed) | seconds an epoch | MiB of a step | angle at the end |"
    ]
    rows.append("|" + "---|" * 6)
    for rule, found in results.items():
        each = [100 * r["final"] for r in found]
        needs = {**BASE, **RULES[rule].needs}
        about = f"{needs['architecture']}, norm {needs['norm']}, {needs.get('neuron', {'type': 'LIF'})['type']}"
        angles = [r["angles"][-1] for r in found if r["angles"] and r["angles"][-1] is not None]
        last = f"{np.mean(angles):.0f}°" if angles else ""
        shown = f"{np.mean(each):.1f} ({', '.join(f'{a:.1f}' for a in each)})"
        seconds = np.mean([r["seconds"] for r in found])
        rows.append(f"| {rule} | {about} | {shown} | {seconds:.2f} | {peaks[rule] / 2**20:.0f} | {last} |")
    return "\n".join(rows)


def plot(results: dict[str, list[dict[str, Any]]], peaks: dict[str, float], path: Path) -> None:
    colours = dict(zip(results, [*figures.SERIES, *figures.SERIES], strict=False))
    dashes = {rule: "-" if i < len(figures.SERIES) else "--" for i, rule in enumerate(results)}
    with figures.style():
        made = figures.figure(10.0, 7.0)
        (left, right), (below, last) = made.subplots(2, 2)
        for rule, found in results.items():
            style = {"color": colours[rule], "ls": dashes[rule], "lw": 1.4, "label": rule}
            curve = 100 * np.mean([[np.nan if a is None else a for a in r["accuracy"]] for r in found], 0)
            left.plot(range(1, len(curve) + 1), curve, **style, marker="o" if np.isnan(curve[0]) else None)
            angles = [[np.nan if a is None else a for a in r["angles"]] for r in found]
            if angles[0]:
                right.plot(range(len(angles[0])), np.mean(angles, 0), **style)
        right.axhline(90, color=figures.MUTED, lw=0.8, ls=":")
        names, at = list(results), np.arange(len(results))
        below.barh(at, [np.mean([r["seconds"] for r in results[n]]) for n in names], color=[colours[n] for n in names])
        last.barh(at, [peaks[n] / 2**20 for n in names], color=[colours[n] for n in names])
        for axes, what in ((below, "seconds an epoch"), (last, "memory of a training step in MiB")):
            axes.set_yticks(at, names)
            axes.invert_yaxis()
            axes.set_xlabel(what)
        left.set(xlabel="epoch", ylabel="test accuracy in %", ylim=(max(0, left.get_ylim()[0]), 100))
        right.set(xlabel="epoch", ylabel="angle to BPTT's gradient in degrees", ylim=(0, 120))
        left.legend(fontsize=8, ncols=2)
        figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="One network, trained by every learning rule.")
    parser.add_argument("--rules", nargs="+", metavar="RULE", default=list(ALL), help=f"default: {', '.join(ALL)}")
    parser.add_argument("--trainer", metavar="RULE", help="only this one")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("runs/rules"))
    parser.add_argument("--memory", metavar="RULE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory(rule_name(options.memory)))
        return
    names = [rule_name(r) for r in ([options.trainer] if options.trainer else options.rules)]
    options.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    results = {r: [train(r, seed, options.epochs, options.output) for seed in range(options.seeds)] for r in names}
    peaks = {r: measured_memory(r) for r in names}
    text = table(results, peaks)
    write_bytes(options.output / "table.md", text.encode())
    plot(results, peaks, options.output / "rules.png")
    print(text, f"\n{time.perf_counter() - began:.0f} s; figure: {options.output / 'rules.png'}", sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
