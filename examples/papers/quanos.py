"""Hybrid bits by adversarial noise sensitivity and by activation density: the tables of docs/quantization/quanos.md.

    python examples/papers/quanos.py                          # Fashion-MNIST, 2 seeds; an hour of one core; runs/quanos
    python examples/papers/quanos.py --train 60000 --n 1000   # as it should be done, on a larger machine
    python examples/papers/quanos.py --quick                  # ten minutes; the numbers mean nothing
    python examples/papers/quanos.py --tables                 # computes nothing: the tables of what is there

After Panda 2020 (arXiv:2004.11233) and Vasquez et al. 2021 (arXiv:2101.04354). An ordinary and a spiking network of the same
layers are trained in floating point, with 8 bits everywhere, with the bits that each rule allocates after the first epochs, with
the one number of bits nearest to QUANOS's mean, and as controls with QUANOS's bits in the first layer only, of its weights, of
the image, or of both. Robust accuracy is that under the standard suite on the first test images. A cell that is done is on disk;
an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnrobust import attacks, data, models
from snnrobust.attacks import FGSM, Linf
from snnrobust.codesign import ByDensity, HybridPrecision, quanos
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.energy import CMOS45, PrecisionScalable, count_operations, estimate
from snnrobust.evaluation import evaluate
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import Integer, Quantizer, SignalQuantizer, calibrate, precision, quantize
from snnrobust.statistics import mean_interval

KINDS = ("ANN", "SNN")
FLOAT, EIGHT, MORE, FEWER = "float", "8 bits", "QUANOS, sensitive layers more", "QUANOS, sensitive layers fewer"
DENSITY, MEAN = "activation density", "one number of bits, QUANOS's mean"
FIRST = "8 bits, the first layer as QUANOS has it"
WEIGHTS, IMAGE = "8 bits, the first layer's weights as QUANOS has them", "8 bits, the image as QUANOS has it"
ORDER = (FLOAT, EIGHT, MORE, FEWER, DENSITY, MEAN, FIRST, WEIGHTS, IMAGE)
PUBLISHED = """Published (QUANOS): robustness 3 to 4 % above 8 bits, more than 5 times smaller, more than 2 times less energy at
equal accuracy."""


@dataclass(frozen=True)
class Settings:
    dataset: str = "fashion-mnist"
    train: int = 3000
    test: int = 2000
    n: int = 100
    eps: str = "8/255"
    steps: int = 4
    early: int = 2
    epochs: int = 6


QUICK = Settings(train=200, test=200, n=4, early=1, epochs=2)


def build(kind: str, seed: int, s: Settings) -> nn.Module:
    layers = (Conv(16), Pool(kind="max"), Conv(32), Pool(kind="max"), Dense(64))
    with keyed(derive(seed, "weights")):
        if kind == "ANN":
            return models.ordinary(layers, data.SHAPES[s.dataset], 10)
        return models.spiking(layers, data.SHAPES[s.dataset], 10, Direct(s.steps))


def trainings(
    kind: str, seed: int, s: Settings
) -> dict[str, Callable[[dict[str, Any]], tuple[nn.Module, dict[str, Any]]]]:
    """By name: from the results so far to a trained model and what is to be told of it."""
    train = data.take(data.load(s.dataset, "train"), s.train)
    rule = BPTT(lr=2e-3, batch_size=32, schedule="cosine", seed=seed)
    attack = FGSM(Linf(s.eps))
    weights, inputs = Quantizer(Integer(8), axis=0), Quantizer(Integer(8), affine=True)

    def plain(_: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        model = build(kind, seed, s)
        rule.fit(model, train, epochs=s.epochs, progress=False)
        return model, {}

    def uniform(bits: int, first: int | None = None, image: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
        """``first`` of the first layer, ``image`` of its inputs alone."""
        model = build(kind, seed, s)
        own = {} if first is None else {next(iter(precision(model))): first}
        model = quantize(model, weights=weights.with_bits(bits), inputs=inputs.with_bits(bits), bits=own)
        if image is not None:
            next(m for m in model.modules() if isinstance(m, SignalQuantizer)).recipe = inputs.with_bits(image)
        calibrate(model, train[0][:256], allow_silent=True)
        rule.fit(model, train, epochs=s.epochs, progress=False)
        return model, {}

    def hybrid(procedure: HybridPrecision) -> tuple[nn.Module, dict[str, Any]]:
        found = procedure(build(kind, seed, s), train, epochs=s.epochs, progress=False)
        return found.model, {"measured": found.rounds[-1].measured}

    own: dict[str, Any] = {"early": s.early, "weights": weights, "inputs": inputs, "seed": seed}
    own["samples"] = min(256, s.train)
    return {
        FLOAT: plain,
        EIGHT: lambda _: uniform(8),
        MORE: lambda _: hybrid(quanos(rule, attack, direction="more", most=8, **own)),
        FEWER: lambda _: hybrid(quanos(rule, attack, direction="fewer", most=8, **own)),
        DENSITY: lambda _: hybrid(
            HybridPrecision(rule=rule, allocation=ByDensity(keep_ends=True), **{**own, "bits": 8})
        ),
        MEAN: lambda done: uniform(max(2, round(done[MORE]["mean_bits"]))),
        FIRST: lambda done: uniform(8, done[MORE]["bits"][0]),
        WEIGHTS: lambda done: uniform(8, done[MORE]["bits"][0], image=8),
        IMAGE: lambda done: uniform(8, image=done[MORE]["bits"][0]),
    }


def measure(model: nn.Module, s: Settings) -> dict[str, Any]:
    x, y = data.take(data.load(s.dataset, "test"), s.test)
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(250)]) == y
    suite = {"standard": attacks.standard(Linf(s.eps))}
    verdict = evaluate(model, (x, y), suite, n=s.n, controls=False, progress=False, examples=0)
    rows = {row["attack"]: row for row in verdict.rows}
    layers = precision(model)
    counted = count_operations(model, x[:64])
    energies = {
        name: estimate(counted, costs, bits=layers)
        for name, costs in (("cmos", CMOS45()), ("scalable", PrecisionScalable()))
    }
    count = sum(p.count for p in layers.values())
    return {
        "clean": float(right.double().mean()), "robust": rows["worst case"]["accuracy"],
        "bits": [p.weights for p in layers.values()], "bytes": sum(p.bytes for p in layers.values()),
        "mean_bits": sum(p.weights * p.count for p in layers.values()) / count,
        **{f"{name}_{part}": getattr(e, part) / 1e3 for name, e in energies.items() for part in ("usual", "total")},
    }  # fmt: skip


def run(kind: str, seed: int, s: Settings, folder: Path) -> None:
    """Train and measure what is not on disk."""
    path = folder / f"{kind}-{seed}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, train in trainings(kind, seed, s).items():
        if name in results:
            continue
        began = time.process_time()
        model, told = train(results)
        results[name] = {**measure(model, s), **told}
        write_bytes(path, json.dumps(results, indent=1).encode())
        found = results[name]
        print(
            f"{kind}, seed {seed}: {name}: clean {found['clean']:.3f}, robust {found['robust']:.2f}, bits {found['bits']}, "
            f"{time.process_time() - began:.0f} CPU seconds", flush=True,
        )  # fmt: skip


def movable(bits: int, s: Settings) -> tuple[float, float]:
    """The share of the attacked images' pixels whose code of ``bits`` some change within the budget moves; and of those not 0."""
    x, _ = data.take(data.load(s.dataset, "test"), s.n)
    quantizer, eps = Quantizer(Integer(bits, signed=False), "constant", affine=True, limits=(0.0, 1.0)), Linf(s.eps).eps
    moved = torch.stack([quantizer((x + e).clamp(0, 1)) != quantizer(x) for e in (-eps, eps)]).any(0).double()
    return float(moved.mean()), float(moved[x > 0].mean())


def table(kind: str, seeds: int, s: Settings, folder: Path) -> str:
    files = [folder / f"{kind}-{seed}.json" for seed in range(seeds)]
    results = [json.loads(f.read_text()) for f in files if f.exists()]
    heading = (
        kind, f"clean % (n = {s.test})", f"robust % (n = {s.n})", "bits by layer, each seed", "kB", "smaller than 8 bits",
        "nJ: operations, with traffic and the rest (45 nm)", "nJ, precision-scalable",
    )  # fmt: skip
    lines = [f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}"]
    for name in ORDER:
        rows = [r[name] for r in results if name in r]
        if not rows:
            continue
        right, n = round(sum(r["robust"] for r in rows) * s.n), s.n * len(rows)
        low, high = mean_interval(np.array([1.0] * right + [0.0] * (n - right)))
        eight = np.mean([r[EIGHT]["bytes"] for r in results if EIGHT in r])
        lines.append(
            f"| {name} | {_each(rows, 'clean')} | {_each(rows, 'robust')} ({100 * low:.0f} to {100 * high:.0f}) | "
            f"{'; '.join(' '.join(map(str, r['bits'])) for r in rows)} | {_mean(rows, 'bytes') / 1e3:.1f} | "
            f"{eight / _mean(rows, 'bytes'):.2f} | {_mean(rows, 'cmos_usual'):,.0f}, {_mean(rows, 'cmos_total'):,.0f} | "
            f"{_mean(rows, 'scalable_usual'):,.0f}, {_mean(rows, 'scalable_total'):,.0f} |"
        )
    for name in (MORE, DENSITY):
        measured = [r[name]["measured"] for r in results if name in r]
        if measured:
            what = "ANS" if name == MORE else "density"
            told = "; ".join(", ".join(f"{v:.2f}" for v in m.values()) for m in measured)
            lines.append(f"\n{what} by layer, each seed: {told}")
    return "\n".join(lines)


def _each(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * r[key] for r in rows]
    return f"{np.mean(values):.1f} [{', '.join(f'{v:.1f}' for v in values)}]"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Hybrid bits by sensitivity and by density.")
    parser.add_argument("--out", type=Path, default=Path("runs/quanos"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), help=f"default {value}")
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
    tables = [table(kind, options.seeds, settings, folder) for kind in KINDS]
    shares = (
        f"{bits} bits {every:.0%} ({some:.0%})" for bits in (3, 4, 6, 8) for every, some in [movable(bits, settings)]
    )
    codes = f"Pixels (those that are not 0) whose code can be changed: {', '.join(shares)}"
    print("\n\n".join([*tables, codes, PUBLISHED]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
