"""``python -m benchmarks.oracle``: how far attacks stay behind the true worst case, where all of it can be tried.

Digits as 8 x 8 binary images, a small spiking network that rounds its input (with the straight-through gradient), at most two
pixels changed: 1 + 64 + 64 * 63 / 2 = 2,081 inputs an image. As the network sees nothing but bits, these are all that any L0
attack can show it, whatever values it writes. The gap of an attack is the accuracy that it leaves less the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import attacks, data, learning_rules
from snnrobust.attacks import L0
from snnrobust.attacks.attack import Attack
from snnrobust.encoders import Direct
from snnrobust.models import Dense, spiking
from snnrobust.statistics import mean_interval

__all__ = ["ATTACKS", "Binary", "broken", "flips", "table", "victim"]

ATTACKS: dict[str, Callable[[L0], Attack]] = {
    "RandomNoise": attacks.RandomNoise,
    "FGSM": attacks.FGSM,
    "PGD, 40 steps": lambda threat: attacks.PGD(threat, steps=40),
    "PGD, 40 steps, 10 restarts": lambda threat: attacks.PGD(threat, steps=40, restarts=10),
    "NES, 2,000 queries, sigma 0.3": lambda threat: attacks.NES(threat, queries=2000, sigma=0.3),
    "SPSAAttack, 2,000 queries, delta 0.6": lambda threat: attacks.SPSAAttack(
        threat, queries=2000, samples=50, delta=0.6
    ),
    "SparseRS, 100 queries": lambda threat: attacks.SparseRS(threat, queries=100),
    "SparseRS, 500 queries": lambda threat: attacks.SparseRS(threat, queries=500),
    "SparseRS, 2,000 queries": lambda threat: attacks.SparseRS(threat, queries=2000),
}
"""Those that work in L0."""


class Binary(nn.Module):
    """``model`` behind a threshold of one half, whose gradient is that of the identity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        bits = (x >= 0.5).to(x.dtype)
        return self.model(x + (bits - x).detach())  # type: ignore[no-any-return]


def victim(seed: int = 0, epochs: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on binary digits, and the binary test images with their labels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Binary(spiking((Dense(64),), (1, 8, 8), 10, Direct(4), norm="none"))
        learning_rules.BPTT(lr=1e-2, seed=seed).fit(model, data.load("digits", "train"), epochs=epochs, progress=False)
    x, y = data.take(data.load("digits", "test"), 500)
    return model.eval(), (x >= 0.5).to(x.dtype), y


def flips(x: Tensor, most: int) -> Iterator[Tensor]:
    """All inputs that differ from the binary ``x`` ``[B, *]`` in at most ``most`` elements, each like ``x``."""
    flat = x.flatten(1)
    for count in range(most + 1):
        for places in combinations(range(flat.shape[1]), count):
            changed = flat.clone()
            changed[:, places] = 1 - changed[:, places]
            yield changed.view_as(x)


@torch.no_grad()
def broken(model: nn.Module, x: Tensor, y: Tensor, most: int = 2) -> Tensor:
    """bool ``[B]``: whether any of the :func:`flips` is misclassified."""
    found = torch.zeros(len(x), dtype=torch.bool)
    for candidate in flips(x, most):
        open_ = (~found).nonzero()[:, 0]
        if len(open_) == 0:
            break
        found[open_] = model(candidate[open_]).argmax(1) != y[open_]
    return found


def table(model: nn.Module, x: Tensor, y: Tensor, most: int, seed: int = 0) -> str:
    """Markdown: the gap of each attack, with a 95 % interval over the images."""
    truth = broken(model, x, y, most)
    rows = [
        f"At most {most} of 64 bits changed, n = {len(x)}: clean {_percent(broken(model, x, y, 0))}, true worst case "
        f"{_percent(truth)}.",
        "",
        "| attack | accuracy | gap to the truth, points | 95 % interval |",
        "|---|---|---|---|",
    ]
    for name, make in ATTACKS.items():
        x_adv = make(L0(most))(model, x, y, seed=seed)
        with torch.no_grad():
            reached = model(x_adv).argmax(1) != y
        if (reached & ~truth).any():
            raise AssertionError(f"{name} reports {int((reached & ~truth).sum())} samples as broken that cannot be")
        missed = (truth & ~reached).numpy().astype(np.float64)
        low, high = (100 * edge for edge in mean_interval(missed))
        rows.append(f"| {name} | {_percent(reached)} | {100 * missed.mean():.1f} | {low:.1f} to {high:.1f} |")
    return "\n".join(rows)


def _percent(reached: Tensor) -> str:
    return f"{100 * float((~reached).double().mean()):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="images, at most the 500 of the test set")
    parser.add_argument("--seed", type=int, default=0, help="of training and attacks")
    parser.add_argument("--most", type=int, nargs="+", default=[1, 2], help="bits that may change")
    options = parser.parse_args()
    model, x, y = victim(options.seed)
    for most in options.most:
        print(table(model, x[: options.n], y[: options.n], most, options.seed), end="\n\n")


if __name__ == "__main__":
    main()
