"""What a search for surgical noise found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from snnrobust.hardware.layerwise import deploy_each
from snnrobust.hardware.sram import SRAM
from snnrobust.statistics import mean_interval, paired_interval

__all__ = ["Judgement", "Score", "SurgicalResult", "Trial"]


@dataclass(frozen=True)
class Score:
    """Of a chip on the selection data, averaged over chips.

    Args:
        loss: Mean loss of the adversarial images.
        accuracy: Of the adversarial images.
        clean: Accuracy of the clean images.
    """

    loss: float
    accuracy: float
    clean: float

    @property
    def gap(self) -> float:
        """Clean less adversarial accuracy."""
        return self.clean - self.accuracy


@dataclass(frozen=True)
class Trial:
    """One layer with one configuration and all others ideal: its score, its gain by the rule, and whether it stayed."""

    layer: str
    sram: SRAM
    score: Score
    gain: float
    kept: bool = False


@dataclass(frozen=True, eq=False)
class Judgement:
    """One attack on judging images; shares of draws and chips that are right for each sample, float64 ``[n]``.

    Args:
        attack: Its name.
        ideal: Memory without errors, attacked through its own gradient.
        software: The chosen memory, shown the images that were crafted on the ideal one.
        on_chip: The chosen memory, attacked through its own gradient, with EOT where it is random.
    """

    attack: str
    ideal: Tensor
    software: Tensor
    on_chip: Tensor

    def gain(self, kind: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """Accuracy of ``"software"`` or ``"on_chip"`` less that of the ideal memory, and its paired interval over samples."""
        a, b = getattr(self, kind).numpy(), self.ideal.numpy()
        if np.array_equal(a, b):
            return 0.0, 0.0, 0.0
        return float((a - b).mean()), *paired_interval(a, b, confidence)


@dataclass(frozen=True, eq=False)
class SurgicalResult:
    """The chosen layers and configurations, and what they do to images and chips that had no part in the choice.

    Attributes:
        chosen: A memory for each layer that gets noise; all other layers are in ``ideal``.
        ideal: The memory without errors.
        layers: All layers that are stored.
        baseline: Score of the ideal memory on the selection data.
        trials: The scan, in its order; and ``combined``, the score of each set on the way of the greedy combination.
        clean: Of the ideal and of the chosen memory on the judging images, as in :class:`Judgement`.
        judgements: For each attack. ``software`` is how such gains are published; ``on_chip`` is what is left of them.
        settings: Of the run.
    """

    chosen: Mapping[str, SRAM]
    ideal: SRAM
    layers: tuple[str, ...]
    baseline: Score
    trials: tuple[Trial, ...]
    combined: tuple[tuple[str, Score], ...]
    clean: tuple[Tensor, Tensor] = field(repr=False)
    judgements: tuple[Judgement, ...] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    def deploy(self, model: nn.Module, *, seed: int) -> nn.Module:
        """A copy of ``model`` on a chip of the chosen memories."""
        return deploy_each(model, {name: self.chosen.get(name, self.ideal) for name in self.layers}, seed=seed)

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"surgical noise: {len(self.chosen)} of {len(self.layers)} layers, rule {s['rule']}, selected on {s['selected']} "
            f"images and {s['chips']} chips, judged on {s['judged']} other images and {s['judge_chips']} other chips",
            *(f"  {name}: {sram.extra_repr()}" for name, sram in self.chosen.items()),
            "  " + self._line("clean", self.clean[0], self.clean[1]),
        ]
        for j in self.judgements:
            for kind, words in (("software", "crafted on the ideal memory"), ("on_chip", "crafted on the chip")):
                gain, low, high = (100 * v for v in j.gain(kind))
                text = self._line(f"{j.attack}, {words}", j.ideal, getattr(j, kind))
                lines.append(f"  {text}, gain {gain:+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(
            "  A gain under attacks from the ideal memory alone is no robustness: it may be a change of gradients."
        )
        return "\n".join(lines)

    @staticmethod
    def _line(name: str, ideal: Tensor, chosen: Tensor) -> str:
        low, high = (100 * v for v in mean_interval(chosen.numpy()))
        return (
            f"{name}: ideal {100 * float(ideal.mean()):.1f} %, "
            f"chosen {100 * float(chosen.mean()):.1f} % ({low:.1f} to {high:.1f})"
        )
