"""Noise in every product of a network: training through it, voting over it, and whether it defends against attacks.

    python examples/papers/noisy_computations.py                    # all four parts, 3 seeds; writes runs/noisy-computations
    python examples/papers/noisy_computations.py --part mult        # Tables 2 and 7: multiplicative noise in a CNN on MNIST
    python examples/papers/noisy_computations.py --part add         # Table 3: additive noise in a CNN on MNIST
    python examples/papers/noisy_computations.py --part lstm        # Tables 6 and 9: an LSTM on pen strokes
    python examples/papers/noisy_computations.py --part blackbox    # Table 11, and white-box attacks beside it
    python examples/papers/noisy_computations.py --quick            # a minute; the numbers mean nothing
    python examples/papers/noisy_computations.py --tables           # computes nothing: tables of what is there

After Qin and Vucinic 2018, "Noisy computations during inference: harmful or helpful?" (arXiv:1811.10649). Networks are trained at
each sigma and tested at each sigma. For each sigma of the test the training sigma is chosen on validation images, which the
training has not seen; beside it stands the one that does best on the test images themselves. Accuracies are means over seeds and
draws of the noise; intervals (95 %) are over test images, those of differences paired. The black-box examples are crafted on
another network without noise; white-box ones on the target itself: without its noise, with one frozen draw of it, and through
its expectation. Networks, epochs and images are fewer than in the paper. A cell that is done is on disk; an interrupted run goes
on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import attacks, data, defenses, figures, models
from snnrobust.defenses.voting import mode
from snnrobust.draws import derive, draws, keyed
from snnrobust.hardware import GaussianNoise, deploy
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Normalise, Pool, Recurrent
from snnrobust.models.checkpoint import read_tensors, write_bytes, write_tensors
from snnrobust.statistics import holm, mean_interval, paired_greater, paired_interval

GRIDS, BLACKBOX = ("mult", "add", "lstm"), "blackbox"
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "mult": {
        "plain": (99.5, 99.3, 93.5, 65.7, 38.8, 21.1),
        "best": (99.6, 99.5, 99.3, 94.6, 86.1, 77.7),
        "votes": (99.6, 99.6, 99.6, 99.6, 99.6, 99.5),
    },
    "add": {"plain": (99.5, 99.3, 95.8, 80.5, 58.8, 38.7), "best": (99.6, 99.5, 99.4, 99.2, 99.0, 98.4)},
    "lstm": {
        "plain": (94.8, 88.0, 49.8, 23.6, 17.0, 15.5),
        "best": (95.6, 95.7, 94.3, 87.3, 77.0, 66.9),
        "votes": (95.6, 96.1, 95.9, 94.6, 92.7, 89.6),
    },
}
"""Percent, by sigma of the test 0, 0.2, ..., 1."""
PUBLISHED_BLACKBOX = (97.40, 97.79, 97.90, 97.71, 97.00)
"""Five rows whose sigmas are not legible in our copy; the first is taken for no noise."""
TITLES = {
    "mult": "CNN on MNIST, multiplicative noise (Tables 2 and 7)",
    "add": "CNN on MNIST, additive noise, batch normalisation without trainable scale and offset (Table 3)",
    "lstm": "LSTM on pen strokes, multiplicative noise in its gates and output (Tables 6 and 9)",
    BLACKBOX: "CNN on MNIST, adversarially trained, multiplicative noise at inference (Table 11)",
}
POINTS, COUNTS = 40, (1, 2, 3, 5, 7, 10, 15, 20)


@dataclass(frozen=True)
class Settings:
    train: int = 10_000
    epochs: int = 3
    lstm_epochs: int = 5
    blackbox_epochs: int = 4
    n: int = 500
    validation: int = 200
    votes: int = 20
    additive_draws: int = 5
    channels: tuple[int, int, int] = (8, 16, 64)
    hidden: int = 64
    white: int = 100
    steps: int = 20
    restarts: int = 3
    eot: int = 4


FULL, SIGMAS, ATTACKED = Settings(), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.1, 0.2, 0.3, 0.4)
QUICK = Settings(
    train=300, epochs=1, lstm_epochs=1, blackbox_epochs=1, n=20, validation=10, votes=3, additive_draws=2, channels=(2, 4, 8),
    hidden=8, white=6, steps=2, restarts=2, eot=2,
)  # fmt: skip
EPS, STEP = 0.3, 0.05


@cache
def samples(part: str, split: str) -> tuple[Tensor, Tensor]:
    if part == "lstm":
        # what the file holds, (dx, dy) filled up with zeros, is 56 x - 28: the model's first layer
        return data.take(data.mnist_strokes(data.data_root() / "mnist-strokes", split, POINTS, "relative"))
    return data.take(data.load("mnist", split))


def cnn(settings: Settings) -> nn.Module:
    """Table 1; the paper's widths are not legible in our copy."""
    a, b, c = settings.channels
    layers = (Conv(a), Conv(a), Pool(kind="max"), Conv(b), Conv(b), Pool(kind="max"), Dense(c))
    return models.ordinary(layers, (1, 28, 28), 10)


def source_cnn(settings: Settings) -> nn.Module:
    """Two 5 x 5 convolutions and two linear layers, as in Madry et al. 2018, with fewer channels."""
    a, b, c = settings.channels
    return nn.Sequential(
        *(nn.Conv2d(1, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(49 * b, c), nn.ReLU(), nn.Linear(c, 10)),
    )


def untrained(part: str, settings: Settings) -> nn.Module:
    if part == "lstm":
        return models.ordinary((Normalise(0.5, 1 / 56), Recurrent(settings.hidden)), (POINTS, 2), 10)
    model = cnn(settings)
    if part == "add":  # scale 1 and offset 0 for good: the signal has variance 1 whatever is learnt
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
    return model


def noise(part: str, sigma: float) -> GaussianNoise:
    if part == "lstm":
        return GaussianNoise(multiplicative=sigma)
    kind = "additive" if part == "add" else "multiplicative"
    return GaussianNoise(**{kind: sigma}, at="after_norm")  # type: ignore[arg-type]


def trained(path: Path, model: nn.Module, rule: BPTT, part: str, epochs: int, settings: Settings) -> nn.Module:
    """On all but the last ``settings.validation`` training images."""
    if not path.exists():
        print(f"training {path.parent.name}/{path.stem}", flush=True)
        x, y = samples(part, "train")
        kept, began = min(settings.train, len(x) - settings.validation), time.perf_counter()
        rule.fit(model, (x[:kept], y[:kept]), epochs=epochs, progress=False)
        models.save(model, path)
        write_bytes(path.with_suffix(".json"), json.dumps({"seconds": time.perf_counter() - began}).encode())
    return models.load(path)


def noise_trained(part: str, seed: int, sigma: float, settings: Settings, folder: Path) -> nn.Module:
    with keyed(derive(seed, "weights", part)):  # the same for all sigmas
        model = untrained(part, settings)
    shared: dict[str, Any] = {"batch_size": 64, "schedule": "cyclic", "seed": seed, "lr": 2e-3}
    epochs = settings.epochs
    if part == "lstm":
        shared |= {"lr": 5e-3, "clip": 1.0}
        epochs = settings.lstm_epochs
    rule = defenses.NoiseTraining(backend=noise(part, sigma), **shared) if sigma else BPTT(**shared)
    return trained(folder / f"seed{seed}-sigma{sigma:g}.safetensors", model, rule, part, epochs, settings)


Cell = dict[str, Tensor]  # predictions, uint8: [draws, samples], and of so many votes each, [counts, samples]


@torch.no_grad()
def predicted(chip: nn.Module, x: Tensor, n: int, key: int) -> Cell:
    """By single draws, and by the first 1, 2, ... of them together."""
    voting, singles, voted = defenses.Voting(chip, n), [], []
    for ids in torch.arange(len(x)).split(250):
        with draws(voting, key, ids):
            ballots = voting.ballots(x[ids])
        singles.append(ballots.argmax(2))
        voted.append(torch.stack([mode(ballots[:k]).argmax(1) for k in COUNTS if k <= n]))
    return {"single": torch.cat(singles, 1).byte(), "voted": torch.cat(voted, 1).byte()}


def cell(part: str, seed: int, learnt: float, met: float, settings: Settings, folder: Path) -> Cell:
    """Trained at one sigma and tested at another, on validation and test images."""
    path = folder / f"seed{seed}-sigma{learnt:g}-on{met:g}.safetensors"
    if not path.exists():
        chip = deploy(noise_trained(part, seed, learnt, settings, folder), noise(part, met), seed=0)
        n = 1 if met == 0 else settings.additive_draws if part == "add" else settings.votes
        found: Cell = {}
        for split, size in (("train", settings.validation), ("test", settings.n)):
            x, y = samples(part, split)
            x, y = (x[-size:], y[-size:]) if split == "train" else (x[:size], y[:size])
            made = predicted(chip, x, n, derive(seed, part, split, learnt, met))
            found |= {f"{split} {name}": (p == y).byte() for name, p in made.items()}
        write_tensors(path, "cell", found, None)
    return read_tensors(path, "cell")[0]


@dataclass(frozen=True)
class Grid:
    """Whether predictions are right, by training and test sigma; ``[seeds, images]``, mean over draws."""

    sigmas: tuple[float, ...]
    cells: dict[tuple[float, float], list[Cell]]

    def right(self, learnt: float, met: float, what: str, split: str = "test", votes: int = 0) -> Any:
        found = [c[f"{split} {what}"] for c in self.cells[learnt, met]]
        if what == "voted":  # without noise there is one draw, and all votes are alike
            places = [min(COUNTS.index(votes) if votes else len(f) - 1, len(f) - 1) for f in found]
            return np.stack([f[i].double().numpy() for f, i in zip(found, places, strict=True)])
        return np.stack([f.double().mean(0).numpy() for f in found])

    def best(self, met: float, what: str, split: str) -> float:
        """The training sigma that does best on ``split``, the smallest of equal ones."""
        return max(self.sigmas, key=lambda s: (self.right(s, met, what, split).mean(), -s))


def shown(values: Any) -> str:
    """Mean and interval over images of ``[seeds, images]``, and the range of seeds."""
    low, high = mean_interval(np.clip(values.mean(0), 0, 1))
    each = 100 * values.mean(1)
    spread = f"; {each.min():.1f} to {each.max():.1f}" if len(each) > 1 else ""
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]{spread}"


def gain(a: Any, b: Any) -> str:
    low, high = paired_interval(a.mean(0), b.mean(0))
    return f"{100 * (a.mean() - b.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def grid_tables(part: str, grid: Grid) -> str:
    met, votes = grid.sigmas, part != "add"
    rows: list[list[str]] = []

    def published(name: str) -> list[str]:
        values = dict(zip(SIGMAS, PUBLISHED[part][name], strict=True))
        return [f"{values[s]:.1f}" if s in values else "" for s in met]

    rows.append(["training without noise, published", *published("plain")])
    rows.append(["training without noise", *(shown(grid.right(0.0, s, "single")) for s in met)])
    kinds = {"single": ("one draw", "best")} | ({"voted": ("votes", "votes")} if votes else {})
    for what, (name, key) in kinds.items():
        chosen = {split: [grid.best(s, what, split) for s in met] for split in ("train", "test")}
        rows.append([f"best, {name}, published", *published(key)])
        for split, where in (("train", "validation"), ("test", "test images")):
            pairs = list(zip(chosen[split], met, strict=True))
            rows.append([f"best, {name}, chosen on {where}", *(shown(grid.right(t, s, what)) for t, s in pairs)])
            rows.append(["... training sigma", *(f"{t:g}" for t in chosen[split])])
        ours = [grid.right(t, s, what) for t, s in zip(chosen["train"], met, strict=True)]
        plain = [grid.right(0.0, s, what) for s in met]
        rows.append([f"gain over no noise in training, {name}", *map(gain, ours, plain)])
        if what == "voted":
            rows.append(["training without noise, votes", *(shown(grid.right(0.0, s, "voted")) for s in met)])
            once = [grid.right(grid.best(s, "single", "train"), s, "single") for s in met]
            rows.append(["gain of votes over the best of one draw", *map(gain, ours, once)])
            rows.append(["votes less one answer without any noise (sigma 0)", *(gain(o, once[0]) for o in ours)])
    return markdown(["sigma of the test", *(f"{s:g}" for s in met)], rows)


def vote_curve(grid: Grid) -> dict[float, dict[int, Any]]:
    """By test sigma and number of votes, of the training sigma that was chosen for all votes."""
    found: dict[float, dict[int, Any]] = {}
    for met in grid.sigmas[1:]:
        learnt = grid.best(met, "voted", "train")
        size = len(grid.cells[learnt, met][0]["test voted"])
        found[met] = {k: grid.right(learnt, met, "voted", votes=k) for k in COUNTS[:size]}
    return found


def vote_table(grid: Grid) -> str:
    curves = vote_curve(grid)
    counts = list(next(iter(curves.values())))
    rows = [[f"{met:g}", *(f"{100 * curve[k].mean():.1f}" for k in counts)] for met, curve in curves.items()]
    return markdown(["sigma of the test, votes", *map(str, counts)], rows)


def crafted(path: Path, model: nn.Module, attack: attacks.Attack, x: Tensor, y: Tensor, seed: int) -> Tensor:
    if not path.exists():
        print(f"crafting {path.parent.name}/{path.stem}", flush=True)
        write_tensors(path, "inputs", {"x": attack(model, x, y, seed=seed)}, None)
    return read_tensors(path, "inputs")[0]["x"]


def blackbox(seed: int, settings: Settings, folder: Path) -> Iterator[tuple[float, str, Any]]:
    """Sigma, kind of input, and the share of right draws of each image: ``[3, images]``, of all draws and of either half."""
    network: dict[str, nn.Module] = {}
    for name, make in (("source", source_cnn), ("target", cnn)):
        with keyed(derive(seed, "weights", name)):
            model = make(settings)
        rule = defenses.PGDTraining(
            eps=EPS, steps=5, step_size=0.1, share=0.5, lr=2e-3, schedule="cyclic", batch_size=64, seed=seed
        )
        path = folder / f"seed{seed}-{name}.safetensors"
        network[name] = trained(path, model, rule, BLACKBOX, settings.blackbox_epochs, settings)
    x, y = (t[: settings.n] for t in samples(BLACKBOX, "test"))
    threat, white = attacks.Linf(EPS), slice(0, settings.white)
    many = attacks.PGD(threat, settings.steps, STEP, restarts=settings.restarts)
    inputs = {
        "clean": x,
        "black-box": crafted(folder / f"seed{seed}-black-box.safetensors", network["source"], many, x, y, seed),
    }
    for sigma in ATTACKED:
        chip = deploy(network["target"], noise("mult", sigma), seed=0)
        sources: dict[str, attacks.GradientSource] = {"no noise": attacks.Backprop()}
        if sigma:
            sources |= {"frozen": attacks.Frozen(key=derive(seed, "frozen")), "eot": attacks.EOT(settings.eot)}
        if sigma == max(ATTACKED) and seed == 0:
            sources["eot x 4"] = attacks.EOT(4 * settings.eot)
        for name, source in sources.items():
            victim, where = (network["target"], "") if name == "no noise" else (chip, f"-sigma{sigma:g}")
            path = folder / f"seed{seed}-white-{name.replace(' ', '-')}{where}.safetensors"
            pgd = attacks.PGD(threat, settings.steps, STEP, gradient=source)
            inputs[name] = crafted(path, victim, pgd, x[white], y[white], seed)
        for name, given in inputs.items():
            if name in sources or name in ("clean", "black-box"):
                path = folder / f"seed{seed}-sigma{sigma:g}-{name.replace(' ', '-')}-right.safetensors"
                if not path.exists():
                    made = predicted(chip, given, settings.votes if sigma else 1, derive(seed, "judge", sigma, name))
                    write_tensors(path, "cell", {k: (p == y[: len(given)]).byte() for k, p in made.items()}, None)
                right = read_tensors(path, "cell")[0]
                single, half = right["single"].double(), -(-len(right["single"]) // 2)
                yield sigma, name, np.stack([t.mean(0).numpy() for t in (single, single[:half], single[-half:])])
                if name == "black-box":
                    yield sigma, "black-box, votes", np.stack([right["voted"][-1].double().numpy()] * 3)


Attacked = dict[tuple[float, str], Any]  # by sigma and kind of input, [seeds, 3, images]


def worst(found: Attacked, sigma: float, names: Sequence[str]) -> Any:
    """For each image the input with the fewest right draws in one half of the draws, judged on the other; ``[seeds, images]``."""
    each = np.stack([found[sigma, name] for name in names if (sigma, name) in found])
    return np.take_along_axis(each[:, :, 2], each[:, :, 1].argmin(0)[None], 0)[0]


def blackbox_tables(found: Attacked) -> str:
    whole = {key: values[:, 0] for key, values in found.items()}
    base, rows = whole[0.0, "black-box"], []
    tests = [paired_greater(whole[s, "black-box"].mean(0), base.mean(0)) for s in ATTACKED[1:]]
    for i, s in enumerate(ATTACKED):
        black = whole[s, "black-box"]
        row = [f"{s:g}", shown(whole[s, "clean"]), shown(black)]
        row += ["", ""] if s == 0 else [gain(black, base), f"{holm(tests)[i - 1]:.3f}"]
        rows.append([*row, shown(whole[s, "black-box, votes"])])
    heading = ["sigma", "clean", "black-box", "gain", "p (Holm)", "black-box, votes"]
    whites, white_rows = ("no noise", "frozen", "eot", "eot x 4"), []
    for s in ATTACKED:
        cells = [shown(whole[s, name]) if (s, name) in whole else "" for name in whites]
        least = worst(found, s, whites[:3])
        white_rows.append([f"{s:g}", *cells, shown(least), "" if s == 0 else gain(least, whole[0.0, "no noise"])])
    white_heading = ["sigma", *(f"PGD, {name}" for name in whites[:3]), "eot x 4, seed 0", "worst of three", "gain"]
    published = ", ".join(f"{value:.2f}" for value in PUBLISHED_BLACKBOX)  # of levels that need not be ours
    said = f"Published, for five noise levels whose values are not legible in our copy: {published} %."
    return f"{said}\n\n{markdown(heading, rows)}\n\n{markdown(white_heading, white_rows)}"


def drawn(at: Any, line: dict[Any, Any], i: int, label: str) -> None:
    values = [100 * np.mean(v) for v in line.values()]
    at.plot(list(line), values, color=figures.SERIES[i], marker=figures.MARKERS[i], ms=4, label=label)


def plot(grids: dict[str, Grid], attacked: Attacked | None, path: Path) -> None:
    with figures.style():
        made = figures.figure(11.0, 6.4)
        axes = made.subplots(2, 3)
        for at, part in zip(axes[0], GRIDS, strict=True):
            at.set(title=part, xlabel="sigma of the test", ylim=(0, 101))
            for i, name in enumerate(PUBLISHED[part]):
                at.plot(SIGMAS, PUBLISHED[part][name], ls=":", color=figures.SERIES[i], label=f"{name}, published")
            if part in grids:
                grid = grids[part]
                for i, name in enumerate(PUBLISHED[part]):
                    what = "voted" if name == "votes" else "single"
                    learnt = {s: 0.0 if name == "plain" else grid.best(s, what, "train") for s in grid.sigmas}
                    drawn(at, {s: grid.right(t, s, what) for s, t in learnt.items()}, i, name)
        for at, part in zip(axes[1], ("mult", "lstm"), strict=False):
            at.set(title=f"{part}: votes", xlabel="votes", xscale="log")
            for i, (met, curve) in enumerate(vote_curve(grids[part]).items() if part in grids else ()):
                drawn(at, curve, i, f"sigma {met:g}")
            at.set_xticks(COUNTS, list(map(str, COUNTS)))
            at.minorticks_off()
        at = axes[1, 2]
        at.set(title=f"attacks, Linf {EPS:g}", xlabel="sigma at inference", ylim=(0, 101))
        found = {} if attacked is None else attacked
        for i, name in enumerate(("clean", "black-box", "no noise", "frozen", "eot") if found else ()):
            drawn(at, {s: found[s, name][:, 0] for s in ATTACKED if (s, name) in found}, i, name)
        for at in axes.flat:
            if at.lines:
                at.legend(fontsize=7)
        axes[0, 0].set_ylabel("accuracy in %")
        axes[1, 0].set_ylabel("accuracy in %")
        figures.save(made, path)


def grid_of(part: str, seeds: Sequence[int], sigmas: tuple[float, ...], settings: Settings, folder: Path) -> Grid:
    pairs = [(t, s) for t in sigmas for s in sigmas]
    return Grid(sigmas, {p: [cell(part, seed, *p, settings, folder) for seed in seeds] for p in pairs})


def attacked_of(seeds: Sequence[int], settings: Settings, folder: Path) -> Attacked:
    found: dict[tuple[float, str], list[Any]] = {}
    for seed in seeds:
        for sigma, name, right in blackbox(seed, settings, folder):
            found.setdefault((sigma, name), []).append(right)
    return {key: np.stack(values) for key, values in found.items()}


def agreed(folder: Path, settings: Settings) -> None:
    """What is in ``folder`` was made with these settings."""
    path, mine = folder / "settings.json", json.dumps(asdict(settings))
    if path.exists() and path.read_text() != mine:
        raise SystemExit(f"{folder} holds results of other settings ({path.name}): choose another --output")
    write_bytes(path, mine.encode())


def report(done: dict[str, list[int]], sigmas: tuple[float, ...], settings: Settings, output: Path) -> str:
    """Tables of the seeds that are done, and the figure."""
    grids = {p: grid_of(p, done[p], sigmas, settings, output / p) for p in GRIDS if done[p]}
    attacked = attacked_of(done[BLACKBOX], settings, output / BLACKBOX) if done[BLACKBOX] else None
    texts = []
    for part, grid in grids.items():
        texts += [f"## {TITLES[part]}; seeds: {len(done[part])}, n = {settings.n}", grid_tables(part, grid)]
        texts += [vote_table(grid)] if part != "add" else []
    if attacked is not None:
        size = f"n = {settings.n}, white-box {settings.white}"
        texts += [f"## {TITLES[BLACKBOX]}; seeds: {len(done[BLACKBOX])}, {size}", blackbox_tables(attacked)]
    text = "\n\n".join(texts) + "\n"
    write_bytes(output / "tables.md", text.encode())
    summary: dict[str, dict[str, list[float]]] = {}  # accuracy of single draws, each seed
    for part, grid in grids.items():
        summary[part] = {f"{t:g} on {s:g}": grid.right(t, s, "single").mean(1).tolist() for t, s in grid.cells}
    if attacked is not None:
        summary[BLACKBOX] = {f"{name} on {s:g}": v[:, 0].mean(1).tolist() for (s, name), v in attacked.items()}
    write_bytes(output / "summary.json", json.dumps(summary, indent=1).encode())
    plot(grids, attacked, output / "noisy_computations.png")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Noisy computations during inference.")
    parser.add_argument("--output", "--out", type=Path, default=Path("runs/noisy-computations"))
    parser.add_argument("--part", choices=(*GRIDS, BLACKBOX, "all"), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help=f"of all trainings; default {FULL.epochs}, else {FULL.lstm_epochs}")
    parser.add_argument("--train", type=int, help=f"training images, default {FULL.train:,}")
    parser.add_argument("--n", type=int, help=f"test images, the first, default {FULL.n:,}")
    parser.add_argument("--all-sigmas", action="store_true", help="0, 0.1, ..., 1 as in the paper, not 0, 0.2, ..., 1")
    parser.add_argument("--quick", action="store_true", help="few small cells, to see that it runs")
    parser.add_argument("--tables", action="store_true", help="compute nothing: tables of what is there")
    options = parser.parse_args()
    settings, output = (QUICK, options.output / "quick") if options.quick else (FULL, options.output)
    given = {name: getattr(options, name) for name in ("epochs", "train", "n") if getattr(options, name) is not None}
    if options.epochs is not None:
        given |= {"lstm_epochs": options.epochs, "blackbox_epochs": options.epochs}
    settings = replace(settings, **given)
    sigmas = tuple(i / 10 for i in range(11)) if options.all_sigmas else (0.0, 1.0) if options.quick else SIGMAS
    parts = (*GRIDS, BLACKBOX) if options.part == "all" else (options.part,)
    agreed(output, settings)
    done: dict[str, list[int]] = {part: [] for part in (*GRIDS, BLACKBOX)}
    text = ""
    for seed in range(options.seeds):
        for part in done:  # what other runs have left in the folder is shown too
            mark = output / part / f"seed{seed}-{'attacks' if part == BLACKBOX else len(sigmas)}.done"
            if not mark.exists():
                if options.tables or part not in parts:
                    continue
                if part == BLACKBOX:
                    attacked_of([seed], settings, output / part)
                else:
                    grid_of(part, [seed], sigmas, settings, output / part)
                write_bytes(mark, b"")
            done[part].append(seed)
            text = report(done, sigmas, settings, output)
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
