"""Robust accuracy over time steps and leaks under Poisson coding, and which part of it is quantization, noise or spikes.

    python examples/poisson_grid.py            # MNIST, 1 seed; about 15 minutes on one core, writes runs/poisson-grid
    python examples/poisson_grid.py --quick    # half a minute; the numbers mean nothing

After Sharmin et al. 2020 (arXiv 2003.10399), who found spiking networks with a Poisson input more robust than ordinary ones, the
more so with fewer time steps and more leak. Here the images are MNIST's, averaged over 2 x 2 pixels to 14 x 14, and every network
is a perceptron 196-128-128-10; they differ in two things:

- what it sees: the image; the image rounded to T + 1 levels; the mean of T Bernoulli draws (for spiking neurons the draws);
- what its hidden units emit: ReLU; T + 1 levels (QCFS); the spikes of a LIF neuron in T steps, by leak.

Each is trained until its validation accuracy reaches a target, so that clean accuracies are matched, and attacked by the worst of
its own PGD (through EOT where it draws), for spiking ones PGD along the rate gradient, and transfer from the ReLU network. The
worst is selected on some draws and judged on others. A cell that is done is on disk; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import attacks, data, figures, models
from snnrobust.attacks import selection
from snnrobust.draws import Stream, derive, draws, evaluating, is_stochastic, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.evaluation.report import resubmitted
from snnrobust.layers import QCFS, MeanOutput
from snnrobust.models.checkpoint import read_tensors, write_bytes, write_tensors
from snnrobust.neurons import LIF
from snnrobust.statistics import mean_interval, paired_interval

SHAPE, HIDDEN = (1, 14, 14), (128, 128)


@dataclass(frozen=True)
class Settings:
    """By T, from the first that it is at least: images, and draws of EOT a step."""

    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    leaks: tuple[float, ...] = (1.0, 0.95, 0.8)
    eps: tuple[float, ...] = (0.1, 0.05)
    images: Mapping[int, int] = field(default_factory=lambda: {0: 300, 50: 200})
    eot: Mapping[int, int] = field(default_factory=lambda: {0: 16, 10: 8, 20: 4, 50: 2})
    select: int = 8
    judge: int = 32
    pgd: int = 20
    target: float = 0.96
    most: int = 2000  # training steps
    train: int = 60_000
    validation: int = 1000
    doubled: tuple[int, ...] = (5, 20)


FULL = Settings()
QUICK = Settings(
    (2, 4), (1.0, 0.8), (0.1,), {0: 20}, {0: 1}, 2, 10, pgd=2, target=0.9, most=20, train=2000, validation=100, doubled=(2,)
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    inputs: str  # "image", "rounded" or "Bernoulli"
    units: str  # "ReLU", "levels" or "LIF"
    steps: int = 0  # 0: it has neither time nor levels
    leak: float = 0.0  # of LIF

    @property
    def name(self) -> str:
        leak = f"-{self.leak:g}" if self.units == "LIF" else ""
        return f"{self.units}{leak}-{self.inputs}-T{self.steps}"

    @property
    def label(self) -> str:
        units = {"ReLU": "ReLU", "levels": "T + 1 levels", "LIF": f"LIF, leak {self.leak:g}"}[self.units]
        return f"{units}; {self.inputs}"


PLAIN = Network("image", "ReLU")


def networks(settings: Settings) -> Iterator[Network]:
    """Those of a T together, so that what is done first can be read first."""
    yield PLAIN
    for T in settings.steps:
        yield from (Network("rounded", "ReLU", T), Network("Bernoulli", "ReLU", T))
        yield from (Network(seen, "levels", T) for seen in ("image", "rounded", "Bernoulli"))
        yield from (Network(seen, "LIF", T, leak) for seen in ("image", "Bernoulli") for leak in settings.leaks)


class Rate(nn.Module):
    """The mean of T Bernoulli draws."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.encoder = Poisson(steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).mean(0)


class Rounded(nn.Module):
    """T + 1 levels from 0 to 1, each of an equal part of [0, 1]; straight-through in the backward pass."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * (self.steps + 1)).floor().clamp(max=self.steps) / self.steps
        return x + (rounded - x).detach()


def built(network: Network, seed: int) -> nn.Module:
    """Untrained; all networks of a seed start from the same weights."""
    T = network.steps
    with keyed(derive(seed, "weights")):
        if network.units == "LIF":
            encoder = Direct(T) if network.inputs == "image" else Poisson(T)
            hidden = tuple(models.Dense(n) for n in HIDDEN)
            return models.spiking(hidden, SHAPE, 10, encoder, LIF(decay=network.leak), "none", MeanOutput())
        layers: list[nn.Module] = [nn.Flatten()]
        if network.inputs != "image":
            layers.insert(0, Rounded(T) if network.inputs == "rounded" else Rate(T))
        for wide, n in zip((196, *HIDDEN), HIDDEN, strict=False):
            # the largest rate of a LIF neuron is 1, so there the levels start
            layers += [nn.Linear(wide, n), nn.ReLU() if network.units == "ReLU" else QCFS(T, threshold=1.0)]
        return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 10))


def images(split: str) -> tuple[Tensor, Tensor]:
    x, y = data.take(data.load("mnist", split))
    return F.avg_pool2d(x, 2), y


def trained(network: Network, seed: int, settings: Settings, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    model, path = built(network, seed), folder / f"{network.name}-seed{seed}.safetensors"
    if not path.exists():
        began = time.perf_counter()
        print(f"training {path.stem}", flush=True)
        x, y = images("train")
        held = min(settings.validation, len(x) // 4)
        validation, x, y = (x[-held:], y[-held:]), x[:-held][: settings.train], y[:-held][: settings.train]
        order = np.random.default_rng(derive(seed, "order"))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        reached, step = 0.0, 0
        while step < settings.most and reached < settings.target:  # networks stop in the middle of an epoch
            for index in torch.from_numpy(order.permutation(len(x))).split(128)[: settings.most - step]:
                with draws(model.train(), derive(seed, "train", step), index):
                    loss = F.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if step % 25 == 0:
                    reached = right(model, *validation, derive(seed, "validation", step))
                if reached >= settings.target:
                    break
        found = {"steps": step, "validation": reached, "seconds": time.perf_counter() - began}
        write_tensors(path, "grid network", model.state_dict(), found)
    tensors, found = read_tensors(path, "grid network")
    model.load_state_dict(tensors)
    return model.eval(), found


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor, key: int) -> float:
    """Accuracy in one draw."""
    with evaluating(model), draws(model, key):
        return float((model(x).argmax(1) == y).float().mean())


def of(table: Mapping[int, int], steps: int) -> int:
    return table[max(least for least in table if least <= steps)]


def suite(
    network: Network, model: nn.Module, plain: nn.Module, settings: Settings, eps: float, pgd: int = 1, eot: int = 1
) -> dict[str, attacks.Attack]:
    """The network's own attack; ``pgd`` and ``eot`` are factors on its steps and draws."""
    threat, steps = attacks.Linf(eps), settings.pgd * pgd

    def climb(source: attacks.GradientSource) -> attacks.PGD:
        samples = of(settings.eot, network.steps) * eot
        return attacks.PGD(threat, steps, gradient=attacks.EOT(samples, source) if is_stochastic(model) else source)

    own = {"own": climb(attacks.Backprop())} | ({"rate": climb(attacks.RGA())} if network.units == "LIF" else {})
    return own if network == PLAIN else {**own, "transfer": attacks.Transfer(attacks.PGD(threat, steps), plain)}


def judged(
    path: Path, model: nn.Module, candidates: dict[str, attacks.Attack], settings: Settings, n: int, seed: int
) -> dict[str, Any]:
    """Right draws of each image, of the clean input (no candidate) or of the worst of it and the candidates."""
    if path.exists():
        return json.loads(path.read_bytes())
    print(f"  {path.stem}", flush=True)
    began = time.perf_counter()
    x, y = (t[:n] for t in images("test"))
    goal, ids = attacks.Goal(y), torch.arange(len(y))
    select, judge = (settings.select, settings.judge) if is_stochastic(model) else (1, 1)

    def measured(inputs: Tensor, purpose: str, n: int) -> selection.Measurement:
        with evaluating(model):
            return selection.measure(model, inputs, goal, Stream(derive(seed, purpose), ids), n)

    winner, alone = x, {}
    standing = measured(x, "select", select if candidates else 1)
    for name, attack in candidates.items():
        x_adv = attack(model, x, y, seed=derive(seed, "craft", name), sample_ids=ids)
        challenger = measured(x_adv, "select", select)
        alone[name] = float(challenger.correct.double().mean()) / select
        wins = selection.better(challenger, standing)
        winner = torch.where(wins.view(-1, 1, 1, 1), x_adv, winner)
        standing = selection.Measurement(*(torch.where(wins, *pair) for pair in zip(challenger, standing, strict=True)))
    correct = measured(winner, "judge", judge).correct
    found = {
        "correct": correct.tolist(), "draws": judge, "selected_on": select, "alone": alone,
        "distance": float((winner.double() - x.double()).abs().max()), "seconds": time.perf_counter() - began,
    }  # fmt: skip
    write_bytes(path, json.dumps(found).encode())
    return found


Results = dict[tuple[Network, str], list[dict[str, Any]]]  # by network and column: of each seed


def measure(network: Network, seed: int, settings: Settings, folder: Path) -> dict[str, dict[str, Any]]:
    """All cells of one network."""
    model, training = trained(network, seed, settings, folder)
    plain, _ = trained(PLAIN, seed, settings, folder)
    n = of(settings.images, network.steps)

    def cell(name: str, candidates: dict[str, attacks.Attack]) -> dict[str, Any]:
        path = folder / f"{network.name}-seed{seed}-{name.replace(',', '').replace(' ', '-')}.json"
        return judged(path, model, candidates, settings, n, seed)

    found = {"training": training, "clean": cell("clean", {})}
    for eps in settings.eps:
        found[f"eps {eps:g}"] = cell(f"eps {eps:g}", suite(network, model, plain, settings, eps))
        if seed == 0 and network.steps in settings.doubled and network.leak in (0.0, settings.leaks[1]):
            for name, factors in (("steps", {"pgd": 2}), ("draws", {"eot": 2})):
                if name == "steps" or is_stochastic(model):
                    twice = suite(network, model, plain, settings, eps, **factors)
                    found[f"{name} x 2, eps {eps:g}"] = cell(f"{name} x 2, eps {eps:g}", twice)
    number, threat = len(suite(network, model, plain, settings, max(settings.eps))), attacks.Linf(max(settings.eps))
    found["null"] = cell("null", {f"noise {i}": attacks.RandomSign(threat) for i in range(number)})
    return found


def percent(values: Any) -> str:
    low, high = mean_interval(values)
    return f"{100 * values.mean():.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def table(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def shares(results: Results, network: Network, column: str) -> Any:
    """Share of right draws of each image, mean over the seeds; as many images as all of them have."""
    cells = results[network, column]
    return np.mean([np.array(c["correct"]) / c["draws"] for c in cells], 0)


def grid(results: Results, settings: Settings) -> str:
    """RA_1 with its interval, and RA_10, by network and T; then noise and training steps."""

    def cell(network: Network, column: str) -> str:
        found = results.get((network, column), [])
        if column == "training" or not found:
            return ", ".join(str(f["steps"]) for f in found)
        ten = [resubmitted(np.array(f["correct"]), f["draws"]) for f in found]
        return percent(shares(results, network, column)) + ("" if column == "null" else f"; {100 * np.mean(ten):.1f}")

    titles = {column: f"{column}: RA_1; RA_10" for column in ("clean", *(f"eps {e:g}" for e in sorted(settings.eps)))}
    titles |= {"null": f"random signs, eps {max(settings.eps):g}: RA_1", "training": "training steps"}
    kinds = list(dict.fromkeys(replace(network, steps=0) for network in networks(settings)))[1:]
    tables = []
    for column, title in titles.items():
        rows = [[PLAIN.label, cell(PLAIN, column), *["as left"] * (len(settings.steps) - 1)]]
        rows += [[kind.label, *(cell(replace(kind, steps=T), column) for T in settings.steps)] for kind in kinds]
        tables.append(table([title, *(f"T = {T}, n = {of(settings.images, T)}" for T in settings.steps)], rows))
    return "\n\n".join(tables)


def parts(results: Results, settings: Settings) -> str:
    """What each difference between networks adds to RA_1, in points, by T."""
    tables = []
    for column in (f"eps {e:g}" for e in sorted(settings.eps)):
        rows: dict[str, list[str]] = {}
        for T in settings.steps:
            for name, without, given in comparisons(T, settings):
                cell = rows.setdefault(name, [name])
                if (without, column) not in results or (given, column) not in results:
                    cell.append("")
                    continue
                a, b = shares(results, without, column), shares(results, given, column)
                a, b = a[: len(b)], b[: len(a)]
                low, high = paired_interval(b, a)
                cell.append(f"{100 * (b - a).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        tables.append(table([f"added to RA_1, {column}", *(f"T = {T}" for T in settings.steps)], list(rows.values())))
    return "\n\n".join(tables)


def comparisons(T: int, settings: Settings) -> Iterator[tuple[str, Network, Network]]:
    noisy, levels = Network("Bernoulli", "levels", T), Network("image", "levels", T)
    yield "quantization of the units", PLAIN, levels
    yield "quantization of the input", PLAIN, Network("rounded", "ReLU", T)
    yield "noise of the input", PLAIN, Network("Bernoulli", "ReLU", T)
    yield "noise and quantization of the units", PLAIN, noisy
    for seen, base in (("image", levels), ("Bernoulli", noisy)):
        for leak in settings.leaks:
            yield f"spikes, leak {leak:g}, in place of levels; {seen}", base, Network(seen, "LIF", T, leak)
    for leak in settings.leaks:
        yield f"all three, leak {leak:g}", PLAIN, Network("Bernoulli", "LIF", T, leak)


def suites(results: Results, settings: Settings) -> str:
    """Each attack alone, on the selection draws; and RA_1 of the first seed with twice the steps, or draws a step."""
    names, rows = ("own", "rate", "transfer"), []
    for network in networks(settings):
        for column in (f"eps {e:g}" for e in sorted(settings.eps)):
            if (network, column) in results:
                alone = [c["alone"] for c in results[network, column]]
                numbers = [f"{100 * np.mean([a[k] for a in alone]):.1f}" if k in alone[0] else "" for k in names]
                for found in (results.get((network, f"{more}{column}")) for more in ("", "steps x 2, ", "draws x 2, ")):
                    numbers.append(
                        "" if found is None else f"{100 * np.mean(found[0]['correct']) / found[0]['draws']:.1f}"
                    )
                rows.append([str(network.steps or "-"), network.label, column, *numbers])
    return table(["T", "units; input", "budget", *names, "RA_1, first seed", "steps x 2", "draws x 2"], rows)


def plot(results: Results, settings: Settings, path: Path) -> None:
    column = f"eps {min(settings.eps):g}"
    kinds = [Network("", "ReLU"), Network("", "levels"), *(Network("", "LIF", leak=leak) for leak in settings.leaks)]
    with figures.style():
        made = figures.figure(8.2, 3.6)
        for axes, seen in zip(made.subplots(1, 2, sharey=True), ("image", "Bernoulli"), strict=True):
            axes.axhline(
                100 * shares(results, PLAIN, column).mean(), color=figures.INK, lw=1, ls=":", label="ReLU; image"
            )
            for i, kind in list(enumerate(kinds))[seen == "image" :]:
                of_T = {T: replace(kind, inputs=seen, steps=T) for T in settings.steps}
                values = {T: shares(results, of_T[T], column) for T in of_T if (of_T[T], column) in results}
                means = np.array([v.mean() for v in values.values()])
                bars = np.array([mean_interval(v) for v in values.values()]).reshape(-1, 2).T
                axes.errorbar(
                    np.array(list(values)) * (1 + 0.03 * (i - 2)), 100 * means, yerr=100 * np.abs(bars - means), ms=4, lw=1.3,
                    color=figures.SERIES[i], marker=figures.MARKERS[i], elinewidth=0.8, label=f"{kind.label}{seen}",
                )  # fmt: skip
            axes.set(xscale="log", xlabel="time steps T", ylim=(0, 100))
            axes.set_xticks(settings.steps, [str(T) for T in settings.steps])
            axes.minorticks_off()
            axes.legend(fontsize=8)
        made.axes[0].set_ylabel(f"RA_1 in %, {column}, Linf")
        figures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Poisson coding: time steps, leak, and their controls.")
    parser.add_argument("--output", type=Path, default=Path("runs/poisson-grid"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few small cells, to see that it runs")
    parser.add_argument("--tables", action="store_true", help="compute nothing: tables of what is there")
    options = parser.parse_args()
    settings, folder = (QUICK, options.output / "quick") if options.quick else (FULL, options.output)
    results: Results = {}
    for network in networks(settings):
        for seed in range(options.seeds):
            if options.tables and not (folder / f"{network.name}-seed{seed}-null.json").exists():
                continue
            for column, found in measure(network, seed, settings, folder).items():
                results.setdefault((network, column), []).append(found)
    text = "\n\n".join(make(results, settings) for make in (grid, parts, suites)) + "\n"
    write_bytes(folder / "tables.md", text.encode())
    plot(results, settings, folder / "grid.png")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
