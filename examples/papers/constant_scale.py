"""Constant, min-max and learned scales of quantized weights against noise at the accumulator, beside training with noise.

    python examples/papers/constant_scale.py                   # Fashion-MNIST in $SNNROBUST_DATA; twenty minutes of one core
    python examples/papers/constant_scale.py --quick           # a minute; the numbers mean nothing
    python examples/papers/constant_scale.py --methods float noisy varied --no-suite
    python examples/papers/constant_scale.py --tables          # computes nothing: tables of what is there

After On Hardening DNNs against Noisy Computations (Wang, Borras, Klein and Froening, arXiv:2501.14531), at a small size. Every
network is put on chips with noise N(0, sigma^2) on each product Wx + b, before the normalisation. The midpoint noise level is
that of a logistic fitted to accuracy over sigma. Beside sigma in units of the products stands sigma relative to the largest
stored weight of each layer, which is what an array that is programmed to its full range sees. "filled" networks begin with
weights scaled up to the range that those of a constant scale have, and are trained like others: they tell the scale from the
size of the weights. The suite attacks the networks of the first seeds without noise, and those of seed 0 on one noisy chip, some
methods only. A cell that is done is on disk; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import attacks, data, models
from snnrobust.codesign import NoiseCurve, accuracy_over_noise, fit_midpoint, plot_midpoints
from snnrobust.defenses import NoiseStrength, NoiseTraining
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct
from snnrobust.energy import count_operations, estimate
from snnrobust.energy.report import GROUPS
from snnrobust.evaluation import evaluate
from snnrobust.hardware import Backend, GaussianNoise, deploy, signal_to_noise
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import Integer, Quantizer, frozen, precision, quantize

KINDS = ("ANN", "SNN")
NETWORKS: dict[str, tuple[Any, ...]] = {
    "mlp": (Dense(64), Dense(64)),
    "cnn": (Conv(8), Pool(), Conv(16), Pool(), Dense(32)),
}
SIGMAS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.025, 102.4, 13))
RELATIVE = tuple(float(f"{s:.3g}") for s in np.geomspace(0.05, 205, 13))


@dataclass(frozen=True)
class Method:
    """scale: of quantized weights, "" for none; filled: weights begin as large as ``limit``; training: plain, noisy or varied."""

    scale: str = ""
    filled: bool = False
    training: str = "plain"
    limit: float = 0.25


METHODS = {
    "float": Method(),
    "float, filled": Method(filled=True),
    "noisy": Method(training="noisy"),
    "varied": Method(training="varied"),
    "min-max": Method("minmax"),
    "min-max, filled": Method("minmax", True),
    "learned": Method("learned"),
    "learned, filled": Method("learned", True),
    "constant": Method("constant", True),
    "constant x 4": Method("constant", True, limit=1.0),
    "min-max, noisy": Method("minmax", training="noisy"),
    "learned, noisy": Method("learned", training="noisy"),
    "constant, noisy": Method("constant", True, "noisy"),
}

ON_CHIP = ("float", "noisy", "learned", "constant", "constant, noisy")


@dataclass(frozen=True)
class Settings:
    network: str = "mlp"
    bits: int = 4
    seeds: int = 3
    train: int = 6000
    epochs: int = 5
    sigma: float = 1.0
    test: int = 1000
    chips: int = 3
    eps: float = 0.02
    attacked: int = 60
    attacked_seeds: int = 2
    attacked_noisy: int = 32
    draws: tuple[int, int] = (8, 32)
    suite: bool = True

    def name(self, kind: str, seed: int, method: str) -> str:
        label = method.replace(", ", "-").replace(" ", "")
        label += f"-{self.bits}bit" if METHODS[method].scale else ""
        return f"{self.network}-{kind}-{label}-seed{seed}"


QUICK = Settings(seeds=1, train=600, epochs=2, test=200, chips=1, attacked=4, attacked_noisy=2, draws=(2, 2))


def synaptic(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def untrained(kind: str, method: Method, settings: Settings, seed: int) -> nn.Module:
    """The same draws for all methods."""
    layers = NETWORKS[settings.network]
    with keyed(derive(seed, "weights", kind)):
        make = models.ordinary if kind == "ANN" else partial(models.spiking, encoder=Direct(4))
        model: nn.Module = make(layers, (1, 28, 28), 10)
    if method.filled:
        with torch.no_grad():
            for layer in synaptic(model).values():
                layer.weight *= method.limit / layer.weight.abs().max()
    return quantized(model, method, settings.bits) if method.scale else model


def quantized(model: nn.Module, method: Method, bits: int) -> nn.Module:
    limits = (-method.limit, method.limit) if method.scale == "constant" else None
    recipe = Quantizer(Integer(bits), scale=method.scale, limits=limits)  # type: ignore[arg-type]
    return quantize(model, weights=recipe)


def train(model: nn.Module, name: str, settings: Settings, seed: int) -> None:
    method = METHODS[name]
    shared: dict[str, Any] = {"lr": 3e-3, "schedule": "cyclic", "seed": seed}
    rule = BPTT(**shared)
    if method.training != "plain":
        strength = NoiseStrength(spread=0.5) if method.training == "varied" else None
        rule = NoiseTraining(backend=GaussianNoise(additive=settings.sigma), strength=strength, **shared)
    images = data.take(data.load("fashion-mnist", "train"), settings.train)
    rule.fit(model, images, epochs=settings.epochs, progress=False)


def relative(model: nn.Module) -> Callable[[float], dict[str, Backend]]:
    """Noise in units of the largest weight that each layer stores."""
    largest = {name: float(layer.weight.detach().abs().max()) for name, layer in synaptic(model).items()}
    return lambda sigma: {name: GaussianNoise(additive=sigma * size) for name, size in largest.items()}


def curve_json(curve: NoiseCurve) -> dict[str, Any]:
    found: dict[str, Any] = {"sigmas": curve.sigmas, "accuracy": curve.accuracy.tolist()}
    found["intervals"] = curve.intervals().tolist()
    try:
        fit = fit_midpoint(curve)
    except ValueError as error:
        return found | {"error": str(error)}
    return found | {"midpoint": fit.sigma, "low": fit.low, "high": fit.high, "slope": fit.slope, "misfit": fit.error}


def robust(model: nn.Module, test: tuple[Tensor, Tensor], settings: Settings, sigma: float, seed: int) -> list[float]:
    """Accuracy under the standard suite and its interval: without noise, or on one noisy chip."""
    chip = deploy(model, GaussianNoise(additive=sigma), seed=derive(seed, "attacked") >> 1) if sigma else model
    report = evaluate(
        chip, test, {"standard": attacks.standard(attacks.Linf(settings.eps))}, seed=seed, controls=False, progress=False,
        n=settings.attacked_noisy if sigma else settings.attacked, selection_draws=settings.draws[0],
        judge_draws=settings.draws[1], examples=0,
    )  # fmt: skip
    worst, clean = (next(r for r in report.rows if r["attack"] == name) for name in ("worst case", "clean"))
    return [worst["accuracy"], worst["low"], worst["high"], clean["accuracy"]]


def cell(kind: str, seed: int, name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    path = folder / f"{settings.name(kind, seed, name)}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def done(more: dict[str, Any]) -> None:
        found.update(more)
        write_bytes(path, json.dumps(found, indent=1).encode())

    wanted = {"curve", "energy"} | ({"robust"} if settings.suite and seed < settings.attacked_seeds else set())
    if settings.suite and seed == 0 and name in ON_CHIP:
        wanted |= {"robust noisy"}
    if wanted <= found.keys():
        return found
    print(path.stem, flush=True)
    method, weights = METHODS[name], path.with_suffix(".safetensors")
    if not weights.exists():
        model = untrained(kind, method, settings, seed)
        train(model, name, settings, seed)
        models.save(model, weights)
    learnt = models.load(weights)
    bits = precision(learnt)
    model = frozen(learnt).eval()  # with plain weights
    test = data.take(data.load("fashion-mnist", "test"), settings.test)
    x = test[0][:200]
    if "curve" not in found:
        curve = accuracy_over_noise(model, test, SIGMAS, chips=settings.chips, seed=seed)
        scaled = accuracy_over_noise(model, test, RELATIVE, noise=relative(model), chips=settings.chips, seed=seed)
        done({"curve": curve_json(curve), "relative": curve_json(scaled)})
    if "energy" not in found:
        chip = deploy(model, GaussianNoise(additive=1.0), seed=0)
        report = estimate(count_operations(model, x), bits=bits)
        stored = [layer.weight.detach() for layer in synaptic(model).values()]
        done(
            {
                "ratio": list(signal_to_noise(chip, x).values()),
                "rms over largest": [float(w.square().mean().sqrt() / w.abs().max()) for w in stored],
                "kbyte": sum(layer.bytes for layer in bits.values()) / 1000,
                "energy": {group: report.of(group=group) / 1000 for group in GROUPS},  # nJ
            }
        )
    if "robust" in wanted and "robust" not in found:
        done({"robust": robust(model, test, settings, 0.0, seed)})
    if "robust noisy" in wanted and "robust noisy" not in found:
        done({"robust noisy": robust(model, test, settings, settings.sigma / 2, seed)})
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and the range of seeds."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def midpoints(cells: Sequence[dict[str, Any]], what: str) -> str:
    found = [c[what].get("midpoint") for c in cells]
    return "no fit" if None in found else spread(found, 2)


def tables(cells: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    lines = []
    for kind in KINDS:
        rows = {name: found for (k, name), found in cells.items() if k == kind}
        if not rows:
            continue
        lines += [
            f"\n| {kind} | clean, % | midpoint noise level | ... relative to the largest weight "
            "| signal to noise at sigma 1, dB, by layer | rms over largest weight | kB of weights |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in rows.items():
            ratio = " / ".join(f"{v:.0f}" for v in np.mean([c["ratio"] for c in found], 0))
            share = " / ".join(f"{v:.2f}" for v in np.mean([c["rms over largest"] for c in found], 0))
            clean = spread([100 * c["curve"]["accuracy"][0] for c in found])
            lines.append(
                f"| {name} | {clean} | {midpoints(found, 'curve')} | {midpoints(found, 'relative')} | {ratio} | {share} "
                f"| {found[0]['kbyte']:.0f} |"
            )
        lines += [
            f"\n| {kind} | under the suite without noise, % | ... on one noisy chip (seed 0) | clean on it, % "
            "| energy of a sample: operations, nJ | ... with traffic and what is usually forgotten, nJ |",
            "|---|---|---|---|---|---|",
        ]
        for name, found in rows.items():
            under = [100 * c["robust"][0] for c in found if "robust" in c]
            attacked = spread(under) if under else ""
            first = found[0].get("robust noisy")
            noisy = f"{100 * first[0]:.0f} [{100 * first[1]:.0f}, {100 * first[2]:.0f}]" if first else ""
            clean = f"{100 * first[3]:.0f}" if first else ""
            usual = spread([c["energy"]["usual"] for c in found], 0)
            whole = spread([sum(c["energy"].values()) for c in found], 0)
            lines.append(f"| {name} | {attacked} | {noisy} | {clean} | {usual} | {whole} |")
    return "\n".join(lines)


def figure(kind: str, names: Sequence[str], settings: Settings, folder: Path) -> None:
    """Curves of the first seed."""
    found = {}
    test = data.take(data.load("fashion-mnist", "test"), settings.test)
    for name in names:
        model = frozen(models.load(folder / f"{settings.name(kind, 0, name)}.safetensors")).eval()
        curve = accuracy_over_noise(model, test, SIGMAS, chips=settings.chips)
        found[name] = fit_midpoint(curve)
    plot_midpoints(folder / f"{settings.network}-{kind}-{settings.bits}bit.png", found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Scales of quantized weights against noise, beside training with noise."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/constant-scale"))
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--train", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--attacked", type=int, help="images for the suite")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--no-suite", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", choices=METHODS, nargs="+", help="of these methods, from trained networks")
    parser.add_argument("--tables", action="store_true", help="of the cells that are there")
    given = parser.parse_args()
    more = {name: getattr(given, name) for name in ("seeds", "train", "epochs", "attacked") if getattr(given, name)}
    settings = replace(QUICK if given.quick else Settings(), network=given.network, bits=given.bits, **more)
    settings = replace(settings, suite=not given.no_suite)
    folder = given.out / "quick" if given.quick else given.out
    folder.mkdir(parents=True, exist_ok=True)
    if given.figure:
        for kind in given.kinds:
            figure(kind, given.figure, settings, folder)
        return
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(settings.seeds):
        for kind in given.kinds:
            for name in given.methods:
                path = folder / f"{settings.name(kind, seed, name)}.json"
                if given.tables:
                    ready = path.exists() and "energy" in (found := json.loads(path.read_text()))
                    if ready:
                        cells.setdefault((kind, name), []).append(found)
                else:
                    cells.setdefault((kind, name), []).append(cell(kind, seed, name, settings, folder))
    text = tables(cells)
    write_bytes(folder / f"{settings.network}-{settings.bits}bit.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
