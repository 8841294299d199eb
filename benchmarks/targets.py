"""What is to be reached, and whether it was: the closing table of a run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Result

__all__ = ["Target", "Verdict", "judge"]


@dataclass(frozen=True)
class Target:
    """How a contender has to compare with a reference.

    Args:
        row: What is compared, for a reader of the table.
        contender: One of the case's.
        reference: One of the case's, or several, of which the best measured one counts.
        wanted: Least ratio ``reference / contender``; with ``most``, largest ratio ``contender / reference``.
        aim: The same, further.
        most: See above.
        per: Divides the ratio: 16 for a cost that is compared for each time step of 128 and of 8.
    """

    row: str
    contender: str
    reference: str | tuple[str, ...]
    wanted: float
    aim: float | None = None
    most: bool = False
    per: float = 1.0

    @property
    def references(self) -> tuple[str, ...]:
        return (self.reference,) if isinstance(self.reference, str) else tuple(self.reference)

    def meets(self, ratio: float, bound: float) -> bool:
        return ratio <= bound if self.most else ratio >= bound


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; ``ratio`` is None, and ``note`` says why, where it could not be."""

    target: Target
    reference: str
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    clock: str = "cpu"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.ratio is None else self.target.meets(self.ratio, self.target.wanted)

    @property
    def sentence(self) -> str:
        """``reached``, ``aim reached``, ``missed by 12 %`` or why it was not measured."""
        if self.ratio is None:
            return f"not measured: {self.note}"
        target = self.target
        if target.aim is not None and target.meets(self.ratio, target.aim):
            return "aim reached"
        if target.meets(self.ratio, target.wanted):
            text = "reached"
        else:
            by = self.ratio / target.wanted - 1 if target.most else 1 - self.ratio / target.wanted
            text = f"missed by {by:.0%}".replace("%", " %")
        low, high = self.quartiles or (self.ratio, self.ratio)
        return text + (" (within the spread)" if low <= target.wanted <= high and low < high else "")


def judge(result: Result) -> list[Verdict]:
    """A verdict for each target of a case.

    The ratio is the median of those of single rounds, in which contenders took turns; tables have the ratio of medians.
    """
    return [_judge(result, target) for target in result.case.targets]


def _judge(result: Result, target: Target) -> Verdict:
    names = [name for name in target.references if name in result.samples]
    shown = " or ".join(target.references)
    for name in (target.contender, *([] if names else target.references[:1])):
        if name not in result.samples:
            reason = result.case.absent(name)
            note = f"{name} is {reason}" if reason == "not installed" else reason
            return Verdict(target, shown, clock=result.clock, note=note)
    reference = min(names, key=result.median)
    mine, other = result.seconds(target.contender), result.seconds(reference)
    above, below = (mine, other) if target.most else (other, mine)
    rounds = sorted(a / b / target.per for a, b in zip(above, below, strict=True))
    ratio, quartiles = statistics.median(rounds), None
    if len(rounds) > 1:
        low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
        quartiles = low, high
    return Verdict(target, reference, ratio, quartiles, result.clock)
