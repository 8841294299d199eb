"""Binary-Relax on an adversarially trained EnResNet: the tables of docs/quantization/binary_relax.md.

    python examples/papers/binary_relax.py             # Fashion-MNIST, 2 seeds; 1.5 hours of one core; writes runs/binary_relax
    python examples/papers/binary_relax.py --train 60000 --epochs 200 --relaxed 120 --n 1000 --members 3   # larger
    python examples/papers/binary_relax.py --quick     # a few minutes; the numbers mean nothing
    python examples/papers/binary_relax.py --tables    # computes nothing: the tables of what is there

After Yin et al. 2018 and Li, Wang and Xin 2020 (arXiv:2008.13305). Ensembles of small pre-activation residual networks with noise
after each block, ordinary ones and a spiking one, are trained with the weighted natural and adversarial loss: in floating point,
and with ternary and 4-bit weights, straight through from the start or relaxed at first. Robust accuracy is that under the
standard suite on the first test images. A cell that is done is on disk; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnrobust import attacks, data, models
from snnrobust.attacks import Linf
from snnrobust.codesign import BinaryRelax
from snnrobust.defenses import TradeOff
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.energy import count_operations, estimate
from snnrobust.evaluation import evaluate
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import Integer, Quantizer, Ternary, precision, quantize, sparsity
from snnrobust.statistics import mean_interval

KINDS = ("ANN", "SNN")
TERNARY = Quantizer(Ternary(), "least-squares", axis=0)
COMMON = Quantizer(Ternary(), "least-squares")  # as the source; with a scale for each output none can be all zero
FOUR = Quantizer(Integer(4), axis=0)


@dataclass(frozen=True)
class Settings:
    dataset: str = "fashion-mnist"
    train: int = 1500
    test: int = 2000
    n: int = 50
    eps: str = "8/255"
    epochs: int = 8
    spiking_epochs: int = 12  # a spiking network learns slower, also with a higher learning rate
    lr: float = 3e-3
    spiking_lr: float = 1e-2
    relaxed: int = 5
    attack_steps: int = 2
    blocks: int = 1
    members: int = 2
    steps: int = 4


QUICK = Settings(train=64, test=100, n=2, epochs=2, spiking_epochs=2, relaxed=1)


@dataclass(frozen=True)
class Row:
    """Weights, whether they are relaxed at first, and the weight of the adversarial loss."""

    weights: Quantizer | None
    relax: bool = False
    alpha: float = 0.5


ROWS = {
    "float": Row(None),
    "ternary, straight through": Row(TERNARY),
    "ternary, Binary-Relax": Row(TERNARY, relax=True),
    "4 bits, straight through": Row(FOUR),
    "4 bits, Binary-Relax": Row(FOUR, relax=True),
    "float, adversarial loss alone": Row(None, alpha=1.0),
    "ternary, Binary-Relax, adversarial loss alone": Row(TERNARY, relax=True, alpha=1.0),
    "ternary, one scale a layer, Binary-Relax": Row(COMMON, relax=True),
    "ternary, one scale a layer, Binary-Relax, adversarial loss alone": Row(COMMON, relax=True, alpha=1.0),
}
PUBLISHED = """Published (abstract of Li, Wang and Xin 2020): ternary and 4-bit weights are sparse; under adversarial training
that is not channel by channel; the trade-off loss preserves natural accuracy and improves channel sparsity, at no loss under weak
attacks and a minor one under strong attacks. None of their numbers
could be verified."""


def train(kind: str, seed: int, row: Row, s: Settings) -> nn.Module:
    members, encoder = (s.members, None) if kind == "ANN" else (1, Direct(s.steps))
    epochs, lr = (s.epochs, s.lr) if kind == "ANN" else (s.spiking_epochs, s.spiking_lr)
    with keyed(derive(seed, "weights")):
        model: nn.Module = models.en_resnet(
            data.SHAPES[s.dataset],
            10,
            members=members,
            blocks=s.blocks,
            widths=(8, 16),
            eval_noise=0.0,
            encoder=encoder,
        )
    rule = TradeOff(
        eps=s.eps, steps=s.attack_steps, weight=row.alpha, lr=lr, batch_size=32, schedule="cosine", seed=seed
    )
    pair = data.take(data.load(s.dataset, "train"), s.train)
    if row.weights is None:
        rule.fit(model, pair, epochs=epochs, progress=False)
    else:
        model = quantize(model, weights=row.weights)
        relaxed = s.relaxed if row.relax else 0
        BinaryRelax(rule=rule, relaxed=relaxed, growth="linear").fit(model, pair, epochs=epochs, progress=False)
    return model.eval()


def measure(model: nn.Module, s: Settings) -> dict[str, Any]:
    x, y = data.take(data.load(s.dataset, "test"), s.test)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(250)]) == y
    suite = {"standard": attacks.standard(Linf(s.eps))}
    verdict = evaluate(model, (x, y), suite, n=s.n, controls=False, progress=False, examples=0)
    robust = {row["attack"]: row["accuracy"] for row in verdict.rows}["worst case"]
    layers, zeros = precision(model), sparsity(model).total
    energy = estimate(count_operations(model, x[:32]), bits=layers)
    return {
        "clean": float(right.double().mean()), "robust": robust, "bytes": sum(p.bytes for p in layers.values()),
        "zero": zeros.share, "silent": zeros.silent / zeros.outputs, "unused": zeros.unused / zeros.inputs,
        "usual": energy.usual / 1e3, "total": energy.total / 1e3,
    }  # fmt: skip


def run(kind: str, seed: int, s: Settings, folder: Path, rows: list[str]) -> None:
    """Train and measure what is not on disk."""
    path = folder / f"{kind}-{seed}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in rows:
        if name in results:
            continue
        began = time.process_time()
        results[name] = measure(train(kind, seed, ROWS[name], s), s)
        write_bytes(path, json.dumps(results, indent=1).encode())
        found, seconds = results[name], time.process_time() - began
        print(
            f"{kind}, seed {seed}: {name}: clean {found['clean']:.3f}, robust {found['robust']:.2f}, {seconds:.0f} CPU s",
            flush=True,
        )


def table(kind: str, seeds: int, s: Settings, folder: Path) -> str:
    files = [folder / f"{kind}-{seed}.json" for seed in range(seeds)]
    results = [json.loads(f.read_text()) for f in files if f.exists()]
    heading = (
        kind, f"clean % (n = {s.test})", f"robust % (n = {s.n})", "zero weights, silent outputs, unused inputs: %", "kB",
        "nJ: operations, with traffic and the rest",
    )  # fmt: skip
    lines = [f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}"]
    for name in ROWS:
        rows = [r[name] for r in results if name in r]
        if not rows:
            continue
        right, n = round(sum(r["robust"] for r in rows) * s.n), s.n * len(rows)
        low, high = mean_interval(np.array([1.0] * right + [0.0] * (n - right)))
        lines.append(
            f"| {name} | {_each(rows, 'clean')} | {_each(rows, 'robust')} ({100 * low:.0f} to {100 * high:.0f}) | "
            f"{', '.join(f'{100 * _mean(rows, key):.1f}' for key in ('zero', 'silent', 'unused'))} | "
            f"{_mean(rows, 'bytes') / 1e3:.1f} | {_mean(rows, 'usual'):,.0f}, {_mean(rows, 'total'):,.0f} |"
        )
    return "\n".join(lines)


def _each(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * r[key] for r in rows]
    return f"{np.mean(values):.1f} [{', '.join(f'{v:.1f}' for v in values)}]"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Binary-Relax on an adversarially trained EnResNet.")
    parser.add_argument("--out", type=Path, default=Path("runs/binary_relax"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
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
                run(kind, seed, settings, folder, options.rows)
    print("\n\n".join([*(table(kind, options.seeds, settings, folder) for kind in KINDS), PUBLISHED]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
