"""Draws docs/images/encoders.png: what one image, and one moving image, become under each encoder.

python docs/figures/encoders.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from snnrobust import data
from snnrobust.draws import draws
from snnrobust.encoders import (
    Delta,
    Direct,
    Encoder,
    Frames,
    Latency,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)

T = 8
IMAGE = Path(__file__).parents[1] / "images" / "encoders.png"
SIGNED = LinearSegmentedColormap.from_list("signed", ["#c1272d", "#ffffff", "#1a1a1a"])  # -1, 0, 1


def _digit() -> Tensor:
    """The first handwritten digit of the test set, ``[1, 8, 8]``."""
    return data.load("digits", "test")[0][0]


def _moving(image: Tensor) -> Tensor:
    """The image in a wider frame, a pixel further right at each second step, ``[T, 1, 8, 12]``."""
    wide = torch.nn.functional.pad(image, (0, 4))
    return torch.stack([wide.roll(t // 2, -1) for t in range(T)])


def _cells(encoder: Encoder, steps: Tensor) -> list[Tensor]:
    """A picture of each time step: channels side by side, rows as one line."""
    if isinstance(encoder, Rows):
        return [s[None].expand(2, -1) for s in steps]
    return [torch.cat(list(s), -1) for s in steps]


def main() -> None:
    image = _digit()
    moving = _moving(image)
    static: list[tuple[str, Encoder]] = [
        ("Direct", Direct(T)),
        ("Poisson", Poisson(T)),
        ("SignedPoisson", SignedPoisson(T)),
        ("Latency", Latency(T)),
        ("Latency, logarithmic", Latency(T, "logarithmic")),
        ("Phase, 8 bits", Phase(T, weighted=False)),
        ("Phase, weighted", Phase(T)),
        ("Population, 3 neurons", Population(T, 3)),
        ("Rows", Rows(T)),
    ]
    sequences: list[tuple[str, Encoder]] = [
        ("Frames", Frames(T)),
        ("Delta", Delta(T, 0.2, before="first")),
        ("Delta, ON | OFF", Delta(T, 0.2, before="first", polarity="channels")),
        ("LevelCrossing", LevelCrossing(T, 0.2)),
    ]
    lines = [(name, e, image) for name, e in static] + [(name, e, moving) for name, e in sequences]
    figure, axes = plt.subplots(
        len(lines), T + 1, figsize=(13, 11), layout="constrained", width_ratios=[1.1, *[1.0] * T]
    )
    for row, (name, encoder, x) in enumerate(lines):
        with draws(encoder, 3):
            cells = _cells(encoder, encoder(x[None])[:, 0])
        axes[row, 0].text(1.0, 0.5, name, ha="right", va="center", fontsize=10)
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].axis("off")
        for t, cell in enumerate(cells):
            axes[row, t + 1].imshow(cell.numpy(), cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
            for spine in axes[row, t + 1].spines.values():
                spine.set(color="#b0b0b0", linewidth=0.6)
    for t in range(T):
        axes[0, t + 1].set_title(f"t = {t}", fontsize=10)
    IMAGE.parent.mkdir(exist_ok=True)
    figure.savefig(IMAGE, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
