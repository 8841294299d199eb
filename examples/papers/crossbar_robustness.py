"""What a crossbar with resistive wires does to robustness: the tables of docs/hardware/crossbar_robustness.md.

    python examples/papers/crossbar_robustness.py            # Fashion-MNIST in $SNNROBUST_DATA, 3 seeds; an hour on one core
    python examples/papers/crossbar_robustness.py --quick    # digits, one seed, a minute; the numbers mean nothing

An ordinary and a spiking network (convolutions with BatchNorm) are trained from each seed and put on crossbars of several sizes,
each with its output calibrated again in several ways. PGD is crafted on the ideal model and shown to the chip ("software", SH),
and crafted through the chip itself with its exact gradient ("chip", HH); with read noise also with EOT. Random signs of the same
size are the control. Further: adversarial images of one chip on another, the standard suite, and accuracy over time steps. The
wires are those of many papers on crossbars as they were remembered, not verified: driver and sense 1 kilohm, 5 and 10 ohm a cell;
devices 20 to 200 kilohm with a variation of 10 %. What is done is kept in --out; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snnrobust import data, models
from snnrobust.attacks import PGD, Linf, crafted, standard
from snnrobust.attacks.losses import dlr
from snnrobust.attacks.random_noise import RandomSign
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, Crossbar, GaussianNoise, deploy, recalibrate
from snnrobust.learning_rules import BPTT
from snnrobust.models.checkpoint import write_bytes
from snnrobust.statistics import mean_interval, paired_interval

LAYERS = (models.Conv(16, stride=2), models.Conv(32, stride=2), models.Dense(128))
WIRES = {"r_driver": 1000.0, "r_row": 5.0, "r_column": 10.0, "r_sense": 1000.0}
DEVICES = {"r_on": 20e3, "r_off": 200e3, "variation": 0.1, "distribution": "gaussian"}
GAINS = ("none", "tile", "column", "BatchNorm")
CHIP = 100
"""Number of the first chip."""


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist"
    seeds: int = 3
    images: int = 1000
    trained: int = 10_000
    epochs: int = 3
    fitted: int = 1000
    eps: str = "6/255"
    steps: int = 20
    sizes: tuple[int, ...] = (16, 32, 64)
    spiking_sizes: tuple[int, ...] = (16, 64)
    time_steps: tuple[int, ...] = (1, 2, 4, 8)
    noise: float = 0.2
    suite: int = 200
    counted: int = 2000


FULL = Settings()
QUICK = Settings("digits", 1, 24, 600, 2, 100, "20/255", 2, (16,), (16,), (1, 2), suite=8, counted=50)
STEPS = 4
"""Time steps of the spiking network that is attacked."""


class Study:
    def __init__(self, settings: Settings, folder: Path) -> None:
        self.s, self.folder = settings, folder
        x, y = data.take(data.load(settings.data, "train"))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.train = TensorDataset(x[order[: settings.trained]], y[order[: settings.trained]])
        self.fitting = x[order[: settings.fitted]]
        test = data.load(settings.data, "test")
        self.many = data.take(test, min(settings.counted, len(test)))
        self.x, self.y = (t[: settings.images] for t in self.many)
        self.threat = Linf(settings.eps)
        self._adversarial: dict[str, Tensor] = {}

    # --- models and chips ---

    def model(self, kind: str, seed: int) -> nn.Module:
        """``kind`` is ANN, or T for a spiking network of T time steps."""
        path = self.folder / "models" / f"{kind}-{seed}.pt"
        with keyed(derive(seed, "weights")):
            shape = data.SHAPES[self.s.data]
            made: nn.Module = models.ordinary(LAYERS, shape, 10)
            if kind != "ANN":
                made = models.spiking(LAYERS, shape, 10, Direct(int(kind)), norm="BatchNorm")
        if not path.exists():
            print(f"training {kind}, seed {seed}", flush=True)
            BPTT(lr=3e-3, seed=seed).fit(made, self.train, epochs=self.s.epochs, progress=False)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(made.state_dict(), path)
        made.load_state_dict(torch.load(path, weights_only=True))
        return made.eval()

    def chip(self, model: nn.Module, size: int, gain: str, number: int = CHIP, noise: float = 0.0) -> nn.Module:
        crossbar = Crossbar(
            size, size, **WIRES, **DEVICES, output_gain="none" if gain == "BatchNorm" else gain, progress=False  # type: ignore[arg-type]
        )  # fmt: skip
        backend = Chain(crossbar, GaussianNoise(multiplicative=noise, drawn="step")) if noise else crossbar
        made = deploy(model, backend, seed=number)
        return recalibrate(made, self.fitting, seed=number) if gain == "BatchNorm" else made

    # --- what is measured ---

    def logits(self, model: nn.Module, x: Tensor, draw: int = 0) -> Tensor:
        out = []
        with torch.no_grad():
            for first in range(0, len(x), 250):
                part = x[first : first + 250]
                with draws(model, derive(draw, "judged"), torch.arange(first, first + len(part))):
                    out.append(model(part))
        return torch.cat(out)

    def right(self, model: nn.Module, x: Tensor, judged: int = 1) -> list[float]:
        """For each image the share of ``judged`` draws in which it is classified rightly."""
        hits = [self.logits(model, x, k).argmax(1) == self.y[: len(x)] for k in range(judged)]
        return torch.stack(hits).float().mean(0).tolist()

    def pgd(self) -> PGD:
        return PGD(self.threat, steps=self.s.steps)

    def adversarial(self, name: str, model: nn.Module, seed: int, attack: Any = None) -> Tensor:
        """Crafted once and kept."""
        path = self.folder / "adversarial" / f"{name}.pt"
        if name not in self._adversarial:
            if not path.exists():
                made = [
                    (attack or self.pgd())(model, x, y, seed=seed, sample_ids=ids)
                    for x, y, ids in zip(
                        self.x.split(250), self.y.split(250), torch.arange(len(self.x)).split(250), strict=True
                    )
                ]
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(torch.cat(made), path)
            self._adversarial[name] = torch.load(path, weights_only=True)
        return self._adversarial[name]

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / "cells" / f"{name}.json"
        if not path.exists():
            began = time.process_time()
            found = make()
            found["seconds"] = time.process_time() - began
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps(found).encode())
            print(f"{name}: {found['seconds']:.0f} s", flush=True)
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]

    def done(self, name: str) -> dict[str, Any] | None:
        path = self.folder / "cells" / f"{name}.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    # --- parts ---

    def ideal(self, kind: str, seed: int) -> None:
        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            noise = RandomSign(self.threat)(model, self.x, self.y, seed=seed)
            attacked = self.adversarial(f"{kind}-{seed}-ideal", model, seed)
            return {
                "clean": self.right(model, self.x), "random": self.right(model, noise), "chip": self.right(model, attacked),
                "scale": float(self.logits(model, self.x).std()),
            }  # fmt: skip

        self.cell(f"{kind}-{seed}-ideal", make)

    def fitted(self, kind: str, seed: int) -> None:
        """The control of recalibration: BatchNorm of the ideal model fitted to the same images."""

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            again = recalibrate(model, self.fitting, seed=CHIP)
            noise = RandomSign(self.threat)(model, self.x, self.y, seed=seed)
            software = self.adversarial(f"{kind}-{seed}-ideal", model, seed)
            attacked = self.adversarial(f"{kind}-{seed}-0-BatchNorm", again, seed)
            found: dict[str, Any] = {
                "clean": self.right(again, self.x), "random": self.right(again, noise), "software": self.right(again, software),
                "chip": self.right(again, attacked), "scale": float(self.logits(again, self.x).std()),
            }  # fmt: skip
            found["cosine"], found["signs"] = self.mismatch(model, again)
            return found

        self.cell(f"{kind}-{seed}-0-BatchNorm", make)

    def chips(self, kind: str, seed: int, size: int, gain: str) -> None:
        name = f"{kind}-{seed}-{size}-{gain}"

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            chip = self.chip(model, size, gain)
            software = self.adversarial(f"{kind}-{seed}-ideal", model, seed)
            noise = RandomSign(self.threat)(model, self.x, self.y, seed=seed)
            hardware = self.adversarial(name, chip, seed)
            found: dict[str, Any] = {
                "clean": self.right(chip, self.x), "random": self.right(chip, noise), "software": self.right(chip, software),
                "chip": self.right(chip, hardware), "back": self.right(model, hardware),
                "scale": float(self.logits(chip, self.x).std()),
            }  # fmt: skip
            found["cosine"], found["signs"] = self.mismatch(model, chip)
            return found

        self.cell(name, make)

    def scale_free(self, kind: str, seed: int, size: int | None, gain: str) -> None:
        """PGD on the DLR loss, which does not see how large the logits are: wires and gains change that."""
        name = f"{kind}-{seed}-ideal" if size is None else f"{kind}-{seed}-{size}-{gain}"

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            if size is None:
                victim = model
            elif size == 0:
                victim = recalibrate(model, self.fitting, seed=CHIP)
            else:
                victim = self.chip(model, size, gain)
            attack = replace(self.pgd(), loss=dlr)
            return {"dlr": self.right(victim, self.adversarial(f"{name}-dlr", victim, seed, attack))}

        self.cell(f"{name}-dlr", make)

    def mismatch(self, model: nn.Module, chip: nn.Module) -> tuple[float, float]:
        """Of the gradients of ideal model and chip on images that both get right: cosine, and share of equal signs."""
        x, y = self.x[:100], self.y[:100]
        gradients = []
        for each in (model, chip):
            leaf = x.clone().requires_grad_()
            with draws(each, derive(0, "judged"), torch.arange(len(x))):
                loss = nn.functional.cross_entropy(each(leaf), y, reduction="sum")
            gradients.append(torch.autograd.grad(loss, leaf)[0].flatten(1))
        a, b = gradients
        cosine = nn.functional.cosine_similarity(a, b)
        moving = (a != 0) & (b != 0)
        equal = ((a.sign() == b.sign()) & moving).sum(1) / moving.sum(1).clamp(min=1)
        return float(cosine.mean()), float(equal[moving.any(1)].mean())

    def transfer(self, kind: str, seed: int, size: int) -> None:
        """Images of chip A on chips A, B and C, after BatchNorm was fitted to each."""
        name = f"{kind}-{seed}-{size}-transfer"

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            of_a = self.adversarial(f"{kind}-{seed}-{size}-BatchNorm", self.chip(model, size, "BatchNorm"), seed)
            of_ideal = self.adversarial(f"{kind}-{seed}-ideal", model, seed)
            found: dict[str, Any] = {"software": [], "other": [], "own": []}
            for number in (CHIP + 1, CHIP + 2):
                chip = self.chip(model, size, "BatchNorm", number)
                own = self.adversarial(f"{kind}-{seed}-{size}-{number}", chip, seed)
                for what, x in (("software", of_ideal), ("other", of_a), ("own", own)):
                    found[what].append(self.right(chip, x))
            return found

        self.cell(name, make)

    def noisy(self, kind: str, seed: int, size: int, craft: str) -> None:
        """Read noise: crafted on the ideal model, on the chip with frozen noise, and with EOT. Judged in 4 fresh draws."""

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            chip = self.chip(model, size, "BatchNorm", noise=self.s.noise)
            if craft == "software":
                x = self.adversarial(f"{kind}-{seed}-ideal", model, seed)
            else:
                attack = crafted(self.pgd(), craft, model)  # type: ignore[arg-type]
                x = self.adversarial(f"{kind}-{seed}-{size}-noisy-{craft}", chip, seed, attack)
            return {"clean": self.right(chip, self.x, 4), craft: self.right(chip, x, 4)}

        self.cell(f"{kind}-{seed}-{size}-noisy-{craft}", make)

    def suite(self, kind: str, seed: int, size: int, gain: str) -> None:
        """The standard suite on the ideal model and on a chip."""
        n = self.s.suite

        def make() -> dict[str, Any]:
            model = self.model(kind, seed)
            found = {}
            for name, victim in (("ideal", model), ("chip", self.chip(model, size, gain))):
                x = standard(self.threat)(victim, self.x[:n], self.y[:n], seed=seed)
                found[name] = self.right(victim, x)
            return found

        self.cell(f"{kind}-{seed}-{size}-{gain}-suite", make)

    def over_time(self, T: int, seed: int, size: int) -> None:
        """Clean accuracy and error of the logits with more reads of the same chip."""

        def make() -> dict[str, Any]:
            model = self.model(str(T), seed)
            x, y = self.many
            ideal = self.logits(model, x)
            found: dict[str, Any] = {"ideal": _accuracy(ideal, y)}
            chips = {gain: (gain, 0.0) for gain in GAINS} | {"read noise": ("BatchNorm", self.s.noise)}
            for name, (gain, noise) in chips.items():
                logits = self.logits(self.chip(model, size, gain, noise=noise), x)
                found[name] = _accuracy(logits, y)
                found[f"{name}, error"] = float((logits - ideal).norm() / ideal.norm())
                found[f"{name}, agreement"] = float((logits.argmax(1) == ideal.argmax(1)).float().mean())
            return found

        self.cell(f"{T}-{seed}-{size}-time", make)

    def over_time_ideal(self, T: int, seed: int) -> None:
        """The control: the ideal model, its BatchNorm fitted to the same images."""

        def make() -> dict[str, Any]:
            again = recalibrate(self.model(str(T), seed), self.fitting, seed=CHIP)
            return {"accuracy": _accuracy(self.logits(again, self.many[0]), self.many[1])}

        self.cell(f"{T}-{seed}-0-time", make)

    def run(self, parts: list[str]) -> None:
        spiking, largest = str(STEPS), self.s.sizes[-1]
        seeds = range(self.s.seeds)
        plan: dict[str, list[Callable[[], None]]] = {
            "ann": [lambda i=i, of=of: of("ANN", i) for i in seeds for of in (self.ideal, self.fitted)]
            + [lambda i=i, n=n, g=g: self.chips("ANN", i, n, g) for i in seeds for n in self.s.sizes for g in GAINS],
            "transfer": [lambda i=i: self.transfer("ANN", i, largest) for i in seeds],
            "noise": [
                lambda i=i, c=c: self.noisy("ANN", i, largest, c) for i in seeds for c in ("software", "frozen", "eot")
            ],
            "snn": [lambda i=i, of=of: of(spiking, i) for i in seeds for of in (self.ideal, self.fitted)]
            + [
                lambda i=i, n=n, g=g: self.chips(spiking, i, n, g)
                for i in seeds
                for n in self.s.spiking_sizes
                for g in ("none", "BatchNorm")
            ],
            "time": [lambda i=i, T=T: self.over_time(T, i, largest) for T in self.s.time_steps for i in seeds]
            + [lambda i=i, T=T: self.over_time_ideal(T, i) for T in self.s.time_steps for i in seeds],
            "dlr": [
                lambda k=k, i=i, n=n, g=g: self.scale_free(k, i, n, g)
                for k, sizes, gains in (
                    ("ANN", self.s.sizes, GAINS),
                    (spiking, self.s.spiking_sizes, ("none", "BatchNorm")),
                )
                for i in seeds
                for n, g in [(None, ""), (0, "BatchNorm"), *((n, g) for n in sizes for g in gains)]
            ],
            "suite": [lambda i=i: self.suite("ANN", i, largest, "BatchNorm") for i in seeds]
            + [lambda: self.suite(spiking, 0, self.s.spiking_sizes[0], "none")],
        }
        for part in parts or plan:
            for step in plan[part]:
                step()


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).float().mean())


# --- tables ---


def percent(values: Any) -> str:
    """Mean over seeds and images, with an interval over images."""
    v = np.asarray(values).mean(0)
    low, high = mean_interval(v)
    return f"{100 * v.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(a: Any, b: Any) -> str:
    """Difference of means, with an interval over images, and for each seed."""
    a, b = np.asarray(a), np.asarray(b)
    low, high = paired_interval(a.mean(0), b.mean(0))
    seeds = ", ".join(f"{100 * d:+.1f}" for d in (a - b).mean(1))
    return f"{100 * (a - b).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] ({seeds})"


def table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def gathered(study: Study, name: str) -> list[dict[str, Any]]:
    found = [study.done(name.format(seed=seed)) for seed in range(study.s.seeds)]
    return [f for f in found if f is not None]


def robustness(study: Study, kind: str) -> str:
    """The strongest attacker takes for each image the worst of what was crafted on model and chip, by both losses."""
    base = gathered(study, f"{kind}-{{seed}}-ideal")
    if not base:
        return ""
    of_base = worst(base, gathered(study, f"{kind}-{{seed}}-ideal-dlr"), ("chip",))
    rows = [[
        "tile", "calibration", "clean", "random signs", "software-crafted", "chip-crafted", "strongest",
        "gain, software-crafted", "gain, chip-crafted", "gain, strongest", "seeds",
    ]]  # fmt: skip
    rows.append(["ideal", "", *(percent([b[k] for b in base]) for k in ("clean", "random", "chip", "chip"))])
    rows[-1] += [percent(of_base) if of_base else "", "", "", "", str(len(base))]
    for size in (0, *study.s.sizes):
        for gain in GAINS:
            found = gathered(study, f"{kind}-{{seed}}-{size}-{gain}")
            if not found:
                continue
            strongest = worst(found, gathered(study, f"{kind}-{{seed}}-{size}-{gain}-dlr"), ("software", "chip"))
            ideal = [b["chip"] for b in base[: len(found)]]
            rows.append([
                str(size or "ideal"), gain,
                *(percent([f[k] for f in found]) for k in ("clean", "random", "software", "chip")),
                percent(strongest) if strongest else "",
                *(points([f[k] for f in found], ideal) for k in ("software", "chip")),
                points(strongest, of_base) if strongest and len(strongest) == len(of_base) else "", str(len(found)),
            ])  # fmt: skip
    return table(rows)


def worst(found: list[dict[str, Any]], further: list[dict[str, Any]], which: tuple[str, ...]) -> list[list[float]]:
    """For each seed and image; empty where the attack on the DLR loss was not run."""
    if len(further) < len(found):
        return []
    return [np.min([*(f[k] for k in which), d["dlr"]], axis=0).tolist() for f, d in zip(found, further, strict=True)]


def mechanism(study: Study, kind: str) -> str:
    base = gathered(study, f"{kind}-{{seed}}-ideal")
    rows = [
        [
            "tile",
            "calibration",
            "scale of logits",
            "cosine of gradients",
            "equal signs",
            "accuracy under PGD: cross-entropy",
            "DLR",
        ]
    ]
    for size in (None, 0, *study.s.sizes):
        for gain in GAINS if size is not None else ("",):
            name = f"{kind}-{{seed}}-ideal" if size is None else f"{kind}-{{seed}}-{size}-{gain}"
            found, further = gathered(study, name), gathered(study, f"{name}-dlr")
            if not found:
                continue
            scale = np.mean([f["scale"] / b["scale"] for f, b in zip(found, base, strict=False)])
            same = [f"{np.mean([f[k] for f in found]):.2f}" if size is not None else "1" for k in ("cosine", "signs")]
            rows.append([str(size or "ideal"), gain, f"{scale:.2f}", *same, percent([f["chip"] for f in found])])
            rows[-1].append(percent([d["dlr"] for d in further]) if further else "")
    return table(rows) if len(rows) > 1 else ""


def transfers(study: Study, kind: str) -> str:
    size = study.s.sizes[-1]
    found, base = gathered(study, f"{kind}-{{seed}}-{size}-transfer"), gathered(study, f"{kind}-{{seed}}-ideal")
    if not found:
        return ""
    means = {k: [np.mean(f[k], 0).tolist() for f in found] for k in ("software", "other", "own")}
    rows = [["images of", "accuracy of chips B and C", "less than with their own, points"]]
    for label, k in (("the ideal model", "software"), ("chip A", "other"), ("the chip itself", "own")):
        rows.append([label, percent(means[k]), points(means[k], means["own"])])
    rows.append(["(the ideal model, on itself)", percent([b["chip"] for b in base[: len(found)]]), ""])
    return table(rows)


def noises(study: Study, kind: str) -> str:
    size = study.s.sizes[-1]
    rows = [["crafted", "accuracy", "clean", "seeds"]]
    for craft in ("software", "frozen", "eot"):
        found = gathered(study, f"{kind}-{{seed}}-{size}-noisy-{craft}")
        if found:
            rows.append(
                [craft, percent([f[craft] for f in found]), percent([f["clean"] for f in found]), str(len(found))]
            )
    return table(rows) if len(rows) > 1 else ""


def times(study: Study) -> str:
    size = study.s.sizes[-1]
    columns = [*GAINS, "read noise"]
    rows = [["T", "ideal", "ideal, BatchNorm", *columns, "lost of the latter to BatchNorm, points", "seeds"]]
    for T in study.s.time_steps:
        found, control = (gathered(study, f"{T}-{{seed}}-{n}-time") for n in (size, 0))
        if found and len(control) == len(found):
            fitted = [c["accuracy"] for c in control]
            cells = [_spread([100 * f[k] for f in found]) for k in columns]
            lost = [100 * (c - f["BatchNorm"]) for c, f in zip(fitted, found, strict=True)]
            cells = [*(_spread([100 * v for v in each]) for each in ([f["ideal"] for f in found], fitted)), *cells]
            rows.append([str(T), *cells, _spread(lost), str(len(found))])
    return table(rows) if len(rows) > 1 else ""


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{np.mean(values):.{digits}f} ({', '.join(f'{v:.{digits}f}' for v in values)})"


def suites(study: Study) -> str:
    rows = [["network", "chip", "ideal model", "chip under the suite", "gain, points", "seeds"]]
    for kind, size, gain in (("ANN", study.s.sizes[-1], "BatchNorm"), (str(STEPS), study.s.spiking_sizes[0], "none")):
        found = gathered(study, f"{kind}-{{seed}}-{size}-{gain}-suite")
        if found:
            ideal, chip = ([f[k] for f in found] for k in ("ideal", "chip"))
            name = kind if kind == "ANN" else f"SNN, T = {kind}"
            rows.append([name, f"{size}, {gain}", percent(ideal), percent(chip), points(chip, ideal), str(len(found))])
    return table(rows) if len(rows) > 1 else ""


def draw(study: Study, kind: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base = gathered(study, f"{kind}-{{seed}}-ideal")
    of_base = worst(base, gathered(study, f"{kind}-{{seed}}-ideal-dlr"), ("chip",))
    labels = {
        "clean": ("clean", "0.5"),
        "software": ("crafted on the ideal model", "tab:blue"),
        "chip": ("crafted on the chip", "tab:orange"),
        "strongest": ("strongest of all", "tab:red"),
    }
    figure, axes = plt.subplots(1, len(GAINS), figsize=(3 * len(GAINS), 3.2), sharey=True, layout="constrained")
    for axis, gain in zip(axes, GAINS, strict=True):
        for what, (label, colour) in labels.items():
            sizes, means = [], []
            for size in study.s.sizes:
                name = f"{kind}-{{seed}}-{size}-{gain}"
                found = gathered(study, name)
                values = [f[what] for f in found] if what != "strongest" else []
                if what == "strongest":
                    values = worst(found, gathered(study, f"{name}-dlr"), ("software", "chip"))
                if values:
                    sizes.append(size)
                    means.append(100 * float(np.mean(values)))
            axis.plot(sizes, means, "o-", color=colour, label=label)
        if of_base:
            axis.axhline(100 * float(np.mean(of_base)), color="k", ls=":", label="ideal model, strongest of its own")
        axis.set(title=f"calibration: {gain}", xlabel="tile", xticks=study.s.sizes, ylim=(0, 100))
    axes[0].set_ylabel("accuracy, %")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _same(path: Path, settings: Settings) -> None:
    """Of the results that are there; more seeds are another matter."""
    now = json.loads(json.dumps({k: v for k, v in asdict(settings).items() if k != "seeds"}))
    if not path.exists():
        write_bytes(path, json.dumps(now).encode())
    elif json.loads(path.read_bytes()) != now:
        raise SystemExit(f"{path.parent} holds results of other settings: use another --out")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a crossbar with resistive wires does to robustness.")
    parser.add_argument("--quick", action="store_true", help="digits, small; the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--eps", default=None)
    parser.add_argument(
        "--parts", nargs="*", default=[], help="of ann, transfer, noise, snn, time, dlr, suite; default all"
    )
    parser.add_argument("--tables", action="store_true", help="run nothing: tables of what is there")
    parser.add_argument("--out", type=Path, default=Path("runs/crossbar-robustness"))
    arguments = parser.parse_args()
    changed = {k: v for k in ("seeds", "eps") if (v := getattr(arguments, k)) is not None}
    settings = Settings(**{**asdict(QUICK if arguments.quick else FULL), **changed})
    arguments.out.mkdir(parents=True, exist_ok=True)
    _same(arguments.out / "settings.json", settings)
    torch.set_num_threads(1)
    study = Study(settings, arguments.out)
    if not arguments.tables:
        study.run(arguments.parts)
    kinds = {"ANN": "Ordinary network", str(STEPS): f"Spiking network, T = {STEPS}"}
    pieces = [
        f"{settings.data}, Linf {settings.eps}, PGD-{settings.steps}, {settings.images} images, "
        "accuracies in % [95 % over images]"
    ]
    for kind, title in kinds.items():
        pieces += [f"### {title}", robustness(study, kind), "#### Mechanism", mechanism(study, kind)]
    pieces += ["### Other chips", transfers(study, "ANN"), "### Read noise", noises(study, "ANN")]
    pieces += ["### Time steps", times(study), "### Standard suite", suites(study)]
    text = "\n\n".join(p for p in pieces if p)
    write_bytes(arguments.out / "tables.md", text.encode())
    print(text)
    if gathered(study, "ANN-{seed}-ideal"):
        draw(study, "ANN", arguments.out / "crossbar-robustness.png")


if __name__ == "__main__":
    main()
