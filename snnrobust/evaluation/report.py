"""What an evaluation found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnrobust.evaluation.cell import Cell, Draws
from snnrobust.models.checkpoint import write_bytes
from snnrobust.statistics import mean_interval

__all__ = ["CLEAN", "CONTROL", "DOUBLED", "IDEAL", "NO_ATTACKS", "NULL", "WORST", "RobustnessReport", "resubmitted"]

CLEAN, WORST, NULL, IDEAL = "clean", "worst case", "null control", "ideal"
CONTROL, DOUBLED = "equal-budget control", "doubled effort"
NO_ATTACKS = (CLEAN, WORST, NULL, CONTROL, DOUBLED)  # lines of the report that are no attack of the user's
RESUBMISSIONS = 10
COLUMNS = (
    "model", "chip", "attack", "eps", "sample", "label", "clean_prediction", "prediction", "clean_correct", "correct",
    "selection_correct", "distance",
)  # fmt: skip


@dataclass
class RobustnessReport:
    """Robust accuracies, and the samples behind them.

    Attributes:
        settings: n, seed, the norm of the budgets and numbers of draws.
        rows: A line for each model, chip, attack and budget. ``accuracy`` is RA_1, the mean over samples of the share of
            judgement draws that are right, with its 95 % interval ``low``, ``high`` over samples; ``accuracy_10`` is RA_10, the
            chance of staying right under ten resubmissions (None below ten draws). ``forwards`` and ``gradients`` count
            samples through a model while crafting.
        samples: A row for each of those and each sample, in the order of ``COLUMNS``. Predictions are the commonest over the
            judgement draws, ``*_correct`` shares of draws, ``distance`` that of the selected input.
        examples: Clean and adversarial images.
        stages: A record for each stage of a suite: on how many samples it ran, how many it broke, what that cost at most and in
            fact, the accuracy after it (on the selection draws), or why it was skipped.
        attacks: The settings of each attack, in words.
        notes: What a reader of the numbers must know, such as a chip that nobody attacked through its own gradient.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[Any, ...]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    attacks: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        model: str,
        chip: str,
        attack: str,
        eps: float,
        y: Tensor,
        draws: Draws,
        clean: Cell,
        winner: Cell,
        candidates: Sequence[Cell],
    ) -> None:
        """One line, and its samples: ``winner`` was selected among ``clean`` and ``candidates``."""
        n = draws.judgement
        right = winner.judgement.correct.numpy()
        low, high = mean_interval(right / n)
        self.rows.append(
            {
                "model": model, "chip": chip, "attack": attack, "eps": eps, "n": len(y),
                "accuracy": float((right / n).mean()), "low": low, "high": high,
                "accuracy_10": resubmitted(right, n),
                "selection_draws": draws.selection, "judge_draws": n,
                "forwards": sum(c.forwards for c in candidates), "gradients": sum(c.gradients for c in candidates),
                "seconds": sum(c.seconds for c in candidates),
            }
        )  # fmt: skip
        columns = zip(
            y.tolist(), clean.judgement.prediction.tolist(), winner.judgement.prediction.tolist(),
            (clean.judgement.correct / n).tolist(), (winner.judgement.correct / n).tolist(),
            (winner.selection.correct / draws.selection).tolist(), winner.distance.tolist(), strict=True,
        )  # fmt: skip
        self.samples += [(model, chip, attack, eps, i, *values) for i, values in enumerate(columns)]

    def add_examples(
        self, model: str, chip: str, eps: float, x: Tensor, y: Tensor, clean: Cell, winner: Cell, most: int
    ) -> None:
        """Keep the first images that the model gets right and, if there are any, that the attack turns."""
        was_right = clean.judgement.prediction == y
        turned = was_right & (winner.judgement.prediction != y)
        order = torch.argsort(2 - was_right.long() - turned.long(), stable=True)[:most]
        for i in order.tolist():
            self.examples.append(
                {
                    "model": model, "chip": chip, "eps": eps, "sample": i, "label": int(y[i]),
                    "clean_prediction": int(clean.judgement.prediction[i]), "prediction": int(winner.judgement.prediction[i]),
                    "clean": x[i].tolist(), "adversarial": winner.x_adv[i].tolist(),
                }
            )  # fmt: skip

    def extend(self, other: Self) -> None:
        """Take over the results of another evaluation with the same settings."""
        if self.settings and other.settings and self.settings != other.settings:
            raise ValueError(f"reports of different settings cannot be joined: {self.settings} and {other.settings}")
        self.settings = self.settings or other.settings
        self.rows += other.rows
        self.samples += other.samples
        self.examples += other.examples
        self.stages += other.stages
        self.attacks |= other.attacks
        self.notes += [note for note in other.notes if note not in self.notes]

    def accuracy(
        self, attack: str = WORST, eps: float | None = None, chip: str | None = None, model: str | None = None
    ) -> float:
        """RA_1 of one line; what is left out must be unique in the report."""
        found = [
            r for r in self.rows
            if r["attack"] == attack and eps in (None, r["eps"]) and chip in (None, r["chip"]) and model in (None, r["model"])
        ]  # fmt: skip
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} lines fit attack={attack!r}, eps={eps}, chip={chip!r}, model={model!r}: name one"
            )
        return float(found[0]["accuracy"])

    def summary(self, width: int = 100) -> str:
        """A table: a line for each model, chip and attack, a column for each budget. Single attacks are shown on each model's
        first chip only; ``rows`` holds them all."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        budgets = sorted({r["eps"] for r in self.rows})
        table = Table(box=SIMPLE_HEAD, title="accuracy in %, and its 95 % interval over samples", title_justify="left")
        for heading, least in (("model", 9), ("chip", 8), ("attack", 12)):
            table.add_column(heading, overflow="fold", min_width=least)
        for budget in budgets:
            table.add_column(f"eps {budget:.4g}" if budget else "clean", justify="right", no_wrap=True)
        lines: dict[tuple[str, str, str], dict[float, str]] = {}
        first: dict[str, str] = {}
        for r in self.rows:
            if r["attack"] in NO_ATTACKS or r["chip"] == first.setdefault(r["model"], r["chip"]):
                text = f"{100 * r['accuracy']:.1f} [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
                lines.setdefault((r["model"], r["chip"], r["attack"]), {})[r["eps"]] = text
        before = ("", "")
        for (model, chip, attack), values in lines.items():
            if before not in (("", ""), (model, chip)):
                table.add_section()
            shown = (model if before[0] != model else "", chip) if before != (model, chip) else ("", "")
            before = (model, chip)
            table.add_row(*shown, attack, *(values.get(b, "") for b in budgets))
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table, self.caption())
        for note in self.notes:
            console.print(f"Note: {note}")
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    def caption(self) -> str:
        s = self.settings
        norm = f"eps in {s['norm']}; " if "norm" in s else ""
        return (
            f"{norm}n = {s.get('n')} samples, seed {s.get('seed')}; a model with randomness is selected against on "
            f"{s.get('selection_draws')} draws and judged on {s.get('judge_draws')} others"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the samples."""
        return {k: v for k, v in asdict(self).items() if k != "samples"}

    def save(self, folder: str | Path, diagnoses: Mapping[str, Any] | None = None) -> Path:
        """Write ``results.json``, ``samples.csv`` and ``report.html`` into ``folder``, each atomically.

        ``diagnoses``: the JSON of a diagnosis for each model, to stand beside its numbers.
        """
        from snnrobust.evaluation.html import render

        folder = Path(folder)
        results = {"report": self.to_json(), "diagnoses": dict(diagnoses or {})}
        write_bytes(folder / "results.json", json.dumps(results, indent=1).encode())
        self.save_samples(folder / "samples.csv")
        write_bytes(folder / "report.html", render(results).encode())
        return folder / "report.html"

    def save_samples(self, path: str | Path) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self.samples])
        write_bytes(Path(path), text.getvalue().encode())


def resubmitted(right: NDArray[np.int64], draws: int, times: int = RESUBMISSIONS) -> float | None:
    """RA_10: the chance that ``times`` of ``draws`` draws without replacement are all right, mean over samples."""
    if draws == 1:
        return float(right.mean())
    if draws < times:
        return None
    return float(np.mean([comb(int(s), times) for s in right]) / comb(draws, times))
