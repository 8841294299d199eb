"""Pruning and conductance levels by ADMM, beside one-shot mappings: the table of docs/quantization/admm.md.

    python examples/papers/admm_compression.py                          # Fashion-MNIST, 2 seeds; 20 minutes; writes runs/admm
    python examples/papers/admm_compression.py --train 60000 --n 1000   # as it should be done, on a larger machine
    python examples/papers/admm_compression.py --quick                  # two minutes; the numbers mean nothing
    python examples/papers/admm_compression.py --tables                 # computes nothing: the table of what is there

After Yuan et al. 2019 (arXiv:1908.11691). An ordinary and a spiking network of the same layers are trained; half of the filters
of the first convolution and three quarters of those of the second and of the hidden dense layer are pruned; what is left is
mapped to the levels of differential pairs. One-shot variants project at once and train for as many epochs in all. Robust
accuracy is that under the standard suite on the first test images, of the model with the removed channels taken out. A cell that
is done is on disk; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnrobust import attacks, data, models
from snnrobust.attacks import Linf
from snnrobust.codesign import ADMMWarning, Compressed, compress
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.energy import count_operations
from snnrobust.evaluation import evaluate
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import CrossbarCosts, Filters, Keep, NearestLevel, compact, footprint, pair_levels
from snnrobust.statistics import mean_interval

KINDS = ("ANN", "SNN")
SHARES = (0.5, 0.25, 0.25)
BITS = (4, 3, 2)
MAC, AC = 4.6, 0.9  # pJ at 45 nm, 32-bit floating point
PUBLISHED = """Published, VGG-16 / ResNet-18: compression 29.81 / 20.88, power -98.38 / -96.96 %, area -98.29 / -97.47 %, accuracy
-0.5 / -0.76 points."""


@dataclass(frozen=True)
class Settings:
    dataset: str = "fashion-mnist"
    train: int = 2000
    test: int = 2000
    n: int = 100
    eps: str = "8/255"
    steps: int = 4
    epochs: int = 5
    admm: int = 10
    retrain: int = 5
    level_admm: int = 6
    level_retrain: int = 4
    tile: int = 32


QUICK = Settings(train=200, test=200, n=4, epochs=1, admm=2, retrain=1, level_admm=1, level_retrain=1)


def build(kind: str, seed: int, s: Settings) -> nn.Module:
    layers = (Conv(16), Pool(kind="max"), Conv(32), Pool(kind="max"), Dense(64))
    with keyed(derive(seed, "weights")):
        if kind == "ANN":
            return models.ordinary(layers, data.SHAPES[s.dataset], 10)
        return models.spiking(layers, data.SHAPES[s.dataset], 10, Direct(s.steps))


def synaptic(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def levels_of(bits: int) -> NearestLevel:
    """2^b - 1 levels: pairs of devices with 2^(b-1) equidistant states, one of the two in the lowest."""
    return NearestLevel(pair_levels(tuple(float(i) for i in range(2 ** (bits - 1)))))


@dataclass(frozen=True)
class Variant:
    model: nn.Module
    bits: int = 32
    masks: dict[str, torch.Tensor] | None = None
    residuals: dict[str, Any] = field(default_factory=dict)


LONGER = "dense, trained as long as the pruned"


def variants(kind: str, seed: int, s: Settings, done: Collection[str]) -> Iterator[tuple[str, Variant]]:
    """By name; those that are done are left out where no other needs them."""
    train = data.take(data.load(s.dataset, "train"), s.train)
    rule = BPTT(lr=3e-3, batch_size=32, schedule="cosine", seed=seed)
    dense = build(kind, seed, s)
    BPTT(lr=2e-3, batch_size=32, schedule="cosine", seed=seed).fit(dense, train, epochs=s.epochs, progress=False)
    yield "dense", Variant(dense)
    if LONGER not in done:
        longer = deepcopy(dense)
        rule.fit(longer, train, epochs=s.admm + s.retrain, progress=False)
        yield LONGER, Variant(longer)
    names = synaptic(dense)
    keep = {name: Keep(Filters(), share) for name, share in zip(names, SHARES, strict=False)}
    pull = {"rho": 0.1, "growth": 2.0, "progress": False}
    if "one-shot filters" not in done:
        once = compress(dense, rule, train, keep=keep, epochs=0, retrain=s.admm + s.retrain, progress=False)
        yield "one-shot filters", Variant(once.model, masks=once.masks)
    others = {"ADMM filters", *(by_admm(bits) for bits in BITS), DIRECTLY}
    if others <= set(done):
        return
    pruned = compress(dense, rule, train, keep=keep, epochs=s.admm, retrain=s.retrain, **pull)
    yield "ADMM filters", _variant(pruned)
    for bits in BITS:
        levels = {name: levels_of(bits) for name in names}
        short, long = s.level_retrain, s.level_admm + s.level_retrain
        if by_admm(bits) not in done:
            mapped = compress(
                pruned.model, rule, train, levels=levels, masks=pruned.masks, epochs=s.level_admm, retrain=short, **pull
            )
            yield by_admm(bits), _variant(mapped, bits)
        if bits == BITS[-1] and DIRECTLY not in done:
            plain = compress(
                pruned.model, rule, train, levels=levels, masks=pruned.masks, epochs=0, retrain=long, progress=False
            )
            yield DIRECTLY, _variant(plain, bits)


def by_admm(bits: int) -> str:
    return f"ADMM filters, {bits} bits by ADMM"


DIRECTLY = f"ADMM filters, {BITS[-1]} bits by straight-through alone"
ORDER = ("dense", LONGER, "one-shot filters", "ADMM filters", *map(by_admm, BITS), DIRECTLY)


def _variant(c: Compressed, bits: int = 32) -> Variant:
    found = c.quantization or c.pruning
    return Variant(c.model, bits, c.masks, {} if found is None else found.to_json())


def measure(variant: Variant, s: Settings) -> dict[str, Any]:
    model = variant.model
    x, y = data.take(data.load(s.dataset, "test"), s.test)
    small = compact(model, x[:1])
    with torch.no_grad():
        logits, whole = (torch.cat([m(part) for part in x.split(250)]) for m in (small, model))
    suite = {"standard": attacks.standard(Linf(s.eps))}
    report = evaluate(small, (x, y), suite, n=s.n, controls=False, progress=False, examples=0)
    rows = {row["attack"]: row for row in report.rows}
    counted = count_operations(small, x[:64])
    size = footprint(model, bits=variant.bits, rows=s.tile, columns=s.tile, masks=variant.masks, costs=CrossbarCosts())
    return {
        "clean": float((logits.argmax(1) == y).double().mean()), "differs": float((logits - whole).abs().max()),
        "clean_n": rows["clean"]["accuracy"], "robust": rows["worst case"]["accuracy"],
        "nanojoule": (MAC * counted.mac + AC * counted.ac) / 1e3, **size.to_json(),
    }  # fmt: skip


def run(kind: str, seed: int, s: Settings, folder: Path) -> None:
    """Train and measure what is not on disk."""
    done = folder / f"{kind}-{seed}.json"
    results = json.loads(done.read_text()) if done.exists() else {}
    if set(ORDER) <= results.keys():
        return
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ADMMWarning)  # the table has the residuals
        for name, variant in variants(kind, seed, s, results):
            if name in results:
                continue
            results[name] = {**measure(variant, s), "residuals": variant.residuals}
            write_bytes(done, json.dumps(results, indent=1).encode())
            spent, found = time.process_time() - began, results[name]
            print(
                f"{kind}, seed {seed}: {name}: clean {found['clean']:.3f}, robust {found['robust']:.2f}, compression "
                f"{found['compression']:.1f}, {spent:.0f} CPU seconds so far", flush=True,
            )  # fmt: skip


def table(kind: str, seeds: Sequence[int], s: Settings, folder: Path) -> str:
    files = [folder / f"{kind}-{seed}.json" for seed in seeds]
    results = [json.loads(f.read_text()) for f in files if f.exists()]
    if not results:
        return ""
    heading = (
        kind, f"clean % (n = {s.test})", f"robust % (n = {s.n})", "primal, dual", "kept", "kB", "compression",
        "crossbars", "packed", "converters, area = power", "nJ",
    )  # fmt: skip
    lines = [f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}"]
    for name in ORDER:
        rows = [r[name] for r in results if name in r]
        if not rows:
            continue
        dense = [r["dense"] for r in results if name in r]
        right, n = round(sum(r["robust"] for r in rows) * s.n), s.n * len(rows)
        low, high = mean_interval(np.array([1.0] * right + [0.0] * (n - right)))
        last = [r["residuals"]["rounds"][-1] for r in rows if r["residuals"]]
        saved = [-100 * (1 - r[what] / d[what]) for what in ("adcs", "area") for r, d in zip(rows, dense, strict=True)]
        lines.append(
            f"| {name} | {_each(rows, 'clean', 100)} | {_each(rows, 'robust', 100)} ({100 * low:.0f} to {100 * high:.0f}) | "
            + (", ".join(f"{np.mean([r[k] for r in last]):.3f}" for k in ("primal", "dual")) if last else "")
            + f" | {_mean(rows, 'kept'):,.0f} | {_mean(rows, 'bits') / 8e3:.2f} | {_mean(rows, 'compression'):.1f} | "
            f"{_mean(rows, 'crossbars'):.0f} | {_mean(rows, 'packed_crossbars'):.0f} | "
            f"{np.mean(saved[: len(rows)]):.1f}, {np.mean(saved[len(rows) :]):.1f} % | {_mean(rows, 'nanojoule'):,.0f} |"
        )
    return "\n".join(lines)


def _each(rows: Sequence[dict[str, Any]], key: str, factor: float) -> str:
    values = [factor * r[key] for r in rows]
    return f"{np.mean(values):.1f} [{', '.join(f'{v:.1f}' for v in values)}]"


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pruning and conductance levels by ADMM.")
    parser.add_argument("--out", type=Path, default=Path("runs/admm"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"default {value}")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in asdict(Settings()) if getattr(options, name) is not None}
    settings, folder = (QUICK, options.out / "quick") if options.quick else (Settings(), options.out)
    settings = replace(settings, **given)
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / "settings.json", json.dumps(asdict(settings))
    if path.exists() and path.read_text() != mine:
        raise SystemExit(f"{folder} holds results of other settings: choose another --out")
    write_bytes(path, mine.encode())
    if not options.tables:
        for seed in range(options.seeds):
            for kind in options.only:
                run(kind, seed, settings, folder)
    tables = [table(kind, range(options.seeds), settings, folder) for kind in KINDS]
    text = "\n\n".join([*filter(None, tables), PUBLISHED]) + "\n"
    write_bytes(folder / "tables.md", text.encode())
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
