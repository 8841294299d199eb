"""Energy of a network, part by part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

from snnrobust import figures
from snnrobust.energy.cost import Costs

__all__ = ["GROUPS", "EnergyReport", "Part"]

Group = Literal["usual", "traffic", "forgotten"]
GROUPS: tuple[Group, ...] = ("usual", "traffic", "forgotten")


@dataclass(frozen=True)
class Part:
    """One kind of operation of one layer, per sample.

    Attributes:
        name, type: As in ``model.named_modules()``.
        what: ``"MAC"``, ``"AC"``; ``"weights"``, ``"inputs"``; ``"biases"``, ``"leaks"``, ``"updates"``, ``"membranes"``,
            ``"normalisation"``, ``"encoder"``.
        group: Which total it belongs to.
        count: Operations or accesses, mean over samples.
        bits: Of the widest number in it.
        pj: Energy in pJ.
    """

    name: str
    type: str
    what: str
    group: Group
    count: float
    bits: int
    pj: float


@dataclass(frozen=True)
class EnergyReport:
    """Energy of one sample in pJ; see :func:`~snnrobust.energy.estimate`.

    Attributes:
        samples, time_steps: Of the operations.
        costs, event_driven, reuse: As they were given.
        parts: In order of execution: synaptic layers, neurons, the rest.
    """

    samples: int
    time_steps: int
    costs: Costs
    event_driven: bool
    reuse: bool
    parts: tuple[Part, ...]

    def of(self, name: str | None = None, *, what: str | None = None, group: Group | None = None) -> float:
        """Sum in pJ of the parts of a layer, of a kind, of a group, or of all that is given."""
        return sum(
            part.pj
            for part in self.parts
            if (name is None or part.name == name)
            and (what is None or part.what == what)
            and (group is None or part.group == group)
        )

    @property
    def usual(self) -> float:
        """What most papers report: multiply-accumulates and accumulates."""
        return self.of(group="usual")

    @property
    def traffic(self) -> float:
        """Weights and inputs moved."""
        return self.of(group="traffic")

    @property
    def forgotten(self) -> float:
        """What most papers leave out: neurons and their states, biases, normalisations, encoders."""
        return self.of(group="forgotten")

    @property
    def total(self) -> float:
        """The three together."""
        return self.of()

    def table(self) -> str:
        """A line for each layer in nJ, the totals, and what the forgotten part is made of."""
        heading = ("layer", "type", "operations", "bits", *(f"{group} nJ" for group in GROUPS))
        lines: list[tuple[str, ...]] = [heading]
        for name in self._names():
            parts = [part for part in self.parts if part.name == name]
            usual = [part for part in parts if part.group == "usual"]
            counted = " ".join(f"{part.count:,.0f} {part.what}" for part in usual)
            bits = str(max(part.bits for part in usual or parts))
            lines.append(
                (name or "(model)", parts[0].type, counted, bits, *(_nj(self.of(name, group=g)) for g in GROUPS))
            )
        lines.append(("all layers", "", "", "", *map(_nj, (self.usual, self.traffic, self.forgotten))))
        kinds = dict.fromkeys(part.what for part in self.parts if part.group == "forgotten")
        made_of = ", ".join(f"{kind} {_nj(self.of(what=kind, group='forgotten'))}" for kind in kinds)
        caption = [
            f"per sample, mean of {self.samples}, T = {self.time_steps}; {type(self.costs).__name__}; "
            f"{'zeros skipped' if self.event_driven else 'dense'}, "
            f"{'a weight is read once a step' if self.reuse else 'a weight is read for each operation'}",
            f"forgotten: {made_of}" if made_of else "",
        ]
        return "\n".join([*_aligned(lines), *filter(None, caption)])

    def to_json(self) -> dict[str, Any]:
        """Totals and parts, in pJ per sample."""
        costs = self.costs
        given: dict[str, Any] = asdict(costs) if is_dataclass(costs) and not isinstance(costs, type) else {}
        return {
            "samples": self.samples, "time_steps": self.time_steps,
            "costs": {"type": type(costs).__name__, **given}, "event_driven": self.event_driven, "reuse": self.reuse,
            "usual": self.usual, "traffic": self.traffic, "forgotten": self.forgotten, "total": self.total,
            "parts": [asdict(part) for part in self.parts],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to ``path``, atomically."""
        from snnrobust.models.checkpoint import write_bytes  # models may import this package

        write_bytes(Path(path), json.dumps(self.to_json(), indent=1).encode())

    def plot(self, path: str | Path) -> None:
        """A bar for each layer, its three groups one behind the other; the ending of ``path`` is the format."""
        names = self._names()
        with figures.style():
            made = figures.figure(7.0, 0.32 * len(names) + 1.3)
            axes = made.subplots()
            left = [0.0] * len(names)
            for group, colour in zip(GROUPS, figures.SERIES, strict=False):
                values = [self.of(name, group=group) / 1e3 for name in names]
                axes.barh(range(len(names)), values, left=left, color=colour, label=group, height=0.7)
                left = [a + b for a, b in zip(left, values, strict=True)]
            axes.set_yticks(range(len(names)), [name or "(model)" for name in names])
            axes.invert_yaxis()
            axes.set_xlabel("energy per sample in nJ")
            made.legend(
                *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=figures.TEXT - 1
            )
            figures.save(made, path)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(part.name for part in self.parts))


def _nj(pj: float) -> str:
    return f"{pj / 1e3:,.4g}" if pj < 1e7 else f"{pj / 1e3:,.0f}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the numbers to the right, and rules below the heading and above the last line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    return [line.rstrip() for line in [text[0], rule, *text[1:-1], rule, text[-1]]]
