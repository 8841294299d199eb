"""What a bit-flip attack found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks, figures
from snnrobust.statistics import mean_interval

__all__ = ["BitFlipResult", "Flip", "Trajectory"]


@dataclass(frozen=True)
class Flip:
    """One bit: of which layer's weight, where in it, bit 0 the least significant, and the integer before and after."""

    layer: str
    index: tuple[int, ...]
    bit: int
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Loss and accuracy on some data over a growing number of flips.

    Args:
        flips: How many bits were flipped at each point, ``[S]``; the first is 0.
        loss: Mean over samples and draws, ``[S]``.
        shares: Of the draws that were right, for each sample, float64 ``[S, n]``; 0 or 1 without randomness.
    """

    flips: tuple[int, ...]
    loss: tuple[float, ...]
    shares: Tensor = field(repr=False)

    @property
    def accuracy(self) -> tuple[float, ...]:
        return tuple(self.shares.mean(1).tolist())

    def interval(self, point: int = -1, confidence: float = 0.95) -> tuple[float, float]:
        """Of the accuracy at one point, over samples: the flips are taken as they are."""
        return mean_interval(self.shares[point].numpy(), confidence)


@dataclass(frozen=True, eq=False)
class BitFlipResult:
    """The flips in their order, the model that they leave, and what they did to data that had no part in choosing them.

    Args:
        model: A copy of the victim with quantized weights and the flipped bits, in eval mode.
        flips: In the order in which they were chosen.
        selection: On the data that the attacker has, with the loss that was raised. The choice was made on it: it is no estimate.
        judgement: Cross-entropy and accuracy on held-out data, under draws of their own.
        random: As many random flips of the same bits, judged likewise, one trajectory a run.
        float_accuracy: Of the victim before quantization, on the held-out data.
        searches: Each loss that was tried, and the accuracy that its search left on the attacker's data.
        blind: Layers whose gradient was exactly zero at the start: the ranking knew nothing about them.
        stopped: Why that search ended.
        forwards, gradients: Samples through the model to find the flips, those of gradients included.
        settings: Of the run.
    """

    model: nn.Module = field(repr=False)
    flips: tuple[Flip, ...]
    selection: Trajectory
    judgement: Trajectory
    random: tuple[Trajectory, ...] = ()
    float_accuracy: float = 0.0
    searches: tuple[tuple[str, float], ...] = ()
    blind: tuple[str, ...] = ()
    stopped: str = ""
    forwards: int = 0
    gradients: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def flips_to(self, accuracy: float) -> int | None:
        """How many flips brought the judged accuracy to ``accuracy`` or below; None: none did."""
        checks.number("accuracy", accuracy, 0.0, 1.0)
        pairs = zip(self.judgement.flips, self.judgement.accuracy, strict=True)
        return next((flips for flips, found in pairs if found <= accuracy), None)

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"bit flips in {s['bits']}-bit weights: {len(self.flips)} of {s['memory']:,} bits, {self.stopped}",
            f"  judged on {self.judgement.shares.shape[1]} samples, {s['judge_draws']} draws each; attacker's batch "
            f"{self.selection.shares.shape[1]}, {s['draws']} draws; seed {s['seed']}",
            f"  {self.forwards:,} forwards and {self.gradients:,} gradients of samples",
            f"  accuracy before quantization {100 * self.float_accuracy:.1f} %",
        ]
        tried = ", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in self.searches)
        lines.insert(3, f"  loss: {s['loss']}; left on the attacker's batch: {tried}")
        if self.blind:
            lines.append(
                f"  no gradient at the start in {', '.join(self.blind)}: the ranking was blind there, "
                "try other surrogates or exact=True"
            )
        lines.append(
            "  flips  judged accuracy in % (95 % over samples)   attacker's batch   random flips, range of runs"
        )
        for i, flips in enumerate(self.judgement.flips):
            low, high = self.judgement.interval(i)
            chance = [t.accuracy[i] for t in self.random]
            spread = f"{100 * min(chance):.1f} to {100 * max(chance):.1f}" if chance else "not run"
            judged = f"{100 * self.judgement.accuracy[i]:5.1f} ({100 * low:.1f} to {100 * high:.1f})"
            lines.append(f"  {flips:5d}  {judged:<42} {100 * self.selection.accuracy[i]:16.1f}   {spread}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Judged accuracy over flips, beside random flips; the ending of ``path`` is the format."""
        with figures.style():
            made = figures.figure(5.2, 3.2)
            axes = made.subplots()
            bands = torch.tensor([self.judgement.interval(i) for i in range(len(self.judgement.flips))])
            for i, run in enumerate(self.random):
                label = f"random flips, {len(self.random)} runs" if i == 0 else None
                axes.plot(
                    run.flips,
                    [100 * a for a in run.accuracy],
                    color=figures.MUTED,
                    lw=1,
                    marker="s",
                    ms=2.5,
                    label=label,
                )
            axes.fill_between(
                self.judgement.flips, *(100 * b for b in bands.T.numpy()), color=figures.SERIES[1], alpha=0.2, lw=0
            )
            accuracy = [100 * a for a in self.judgement.accuracy]
            axes.plot(
                self.judgement.flips, accuracy, color=figures.SERIES[1], marker="o", ms=4, label="chosen flips, 95 %"
            )
            axes.axhline(100 * self.settings["chance"], color=figures.MUTED, lw=1, ls=":")
            axes.set_xlabel("flipped bits")
            axes.set_ylabel("accuracy in %")
            axes.set_ylim(0, 102)
            axes.locator_params(axis="x", integer=True)
            axes.grid(axis="y", color=figures.GRID, lw=0.8)
            axes.legend()
            figures.save(made, path)
