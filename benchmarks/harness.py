"""How the benchmarks measure: contenders take turns, medians are compared, on CPU time.

On a machine that does other work too, wall time says little. CPU time of the process, one thread and contenders that take
turns (A, B, C, A, B, C, ...) give ratios that hold to about 10 %, but no absolute times. With more than one thread CPU time
counts the waiting of the threads, so the ratios are then of wall time. Page faults are counted because for large tensors they
can cost more than the arithmetic; they depend on the allocator and on the heap, which the contenders share. Peak memory is
measured in a process of its own for each contender.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from benchmarks.targets import Target

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "OURS", "Case", "Cases", "Clock", "DisagreementError", "Result", "Run", "Samples", "Size", "measure", "measure_peaks", "run",
]  # fmt: skip

OURS = "snnrobust"
"""The name of our contender; further ones of ours are named ``"snnrobust, ..."``."""

Run = Callable[[], object]
Meter = Callable[[], float]
Size = Literal["tiny", "full"]
Clock = Literal["cpu", "wall", "peak"]


class DisagreementError(Exception):
    """Contenders that should compute the same do not: their times must not be compared."""


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work.

    Args:
        name: What is measured.
        contenders: Name to a call that does the work once; to the reason why there is none; or to None where a peer is not
            installed. With the clock ``"peak"`` calls return bytes.
        reference: The contender whose speed is 1.
        limits: Contenders that only move the memory that must be moved; the fastest is the limit.
        targets: What is to be reached.
        unit: What times are printed in.
        scale: ``unit``s in a second, divided by what one call does: 1e3 / 64 for milliseconds a sample of a batch of 64.
        clock: Default: CPU time with one thread, wall time with more.
        remarks: What a reader has to know to judge the numbers.
        figure: The figure that shows the case.
        at: Where contenders stand on its axis.
    """

    name: str
    contenders: Mapping[str, Run | str | None]
    reference: str
    limits: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    unit: str = "ms"
    scale: float = 1e3
    clock: Clock | None = None
    remarks: tuple[str, ...] = ()
    figure: str = ""
    at: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.limits, self.reference, *(n for t in self.targets for n in (t.contender, *t.references))):
            if name not in self.contenders:
                raise ValueError(f"{self.name}: {name!r} is none of the contenders")

    def absent(self, name: str) -> str:
        """Why a contender is not measured."""
        reason = self.contenders[name]
        return reason if isinstance(reason, str) else "not installed"


Cases = Callable[[bool], Iterator[Case]]
"""A benchmark: its cases, in a tiny size for the tests or in full."""


@dataclass(frozen=True)
class Samples:
    """Seconds and page faults of one call, or bytes at its peak, a number for each repeat."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What was measured of a case; ``clock`` is the one that medians and ratios are of, ``load`` the machine's at the end."""

    case: Case
    samples: Mapping[str, Samples]
    clock: Clock = "cpu"
    load: float | None = None

    def seconds(self, name: str) -> list[float]:
        """Samples of ``clock``; bytes, where that is the peak."""
        return getattr(self.samples[name], self.clock)  # type: ignore[no-any-return]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds(name))

    def quartiles(self, name: str) -> tuple[float, float]:
        return quartiles(self.seconds(name))

    @property
    def limit(self) -> str | None:
        """The fastest of the limits."""
        return min((n for n in self.case.limits if n in self.samples), key=self.median, default=None)

    def speed(self, name: str, reference: str | None = None) -> float | None:
        """How many times as fast as ``reference`` (default: the case's); None where one of them was not measured."""
        reference = self.case.reference if reference is None else reference
        if name not in self.samples or reference not in self.samples:
            return None
        return self.median(reference) / self.median(name)

    def record(self) -> dict[str, Any]:
        """For JSON. Times are in seconds a call, peaks in bytes."""
        case = self.case
        contenders = {
            name: {
                "median": self.median(name),
                "quartiles": self.quartiles(name),
                "speed": self.speed(name),
                **asdict(self.samples[name]),
            }
            if name in self.samples
            else case.absent(name)
            for name in case.contenders
        }
        return {
            "case": case.name,
            "reference": case.reference,
            "limits": case.limits,
            "targets": [asdict(target) for target in case.targets],
            "unit": case.unit,
            "scale": case.scale,
            "clock": self.clock,
            "load": self.load,
            "remarks": case.remarks,
            "figure": case.figure,
            "at": dict(case.at),
            "contenders": contenders,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Result:
        """What :meth:`record` gave, without the calls."""
        reasons = {name: c if isinstance(c, str) else None for name, c in record["contenders"].items()}
        targets = tuple(
            Target(**{**t, "reference": r if isinstance(r := t["reference"], str) else tuple(r)})
            for t in record["targets"]
        )
        case = Case(
            record["case"], reasons, record["reference"], tuple(record["limits"]), targets, record["unit"], record["scale"],
            record["clock"], tuple(record["remarks"]), record["figure"], record["at"],
        )  # fmt: skip
        meters = Samples.__dataclass_fields__
        samples = {
            name: Samples(**{meter: c[meter] for meter in meters})
            for name, c in record["contenders"].items()
            if not isinstance(c, str)
        }
        return cls(case, samples, record["clock"], record["load"])


def quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, high


def page_faults() -> float:
    """Minor page faults of this process so far; 0 where the system does not tell."""
    return 0.0 if resource is None else float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def measure(
    contenders: Mapping[str, Run],
    repeats: int,
    *,
    at_least: float = 5e-3,
    cpu: Meter = time.process_time,
    wall: Meter = time.perf_counter,
    faults: Meter = page_faults,
) -> dict[str, Samples]:
    """Seconds of one call of each contender, ``repeats`` times in turn.

    Before the clock starts each contender is called once, so that the caches hold what it left there and not what others did; one
    that takes ten times ``at_least`` does not notice. A call shorter than ``at_least`` seconds is made as often as it takes to
    fill them. What a call returns is freed before the clock stops.
    The garbage collector runs between the rounds only, as in ``timeit``.
    """

    def timed(call: Run, times: int) -> tuple[float, float, float]:
        faults_began, wall_began, cpu_began = faults(), wall(), cpu()
        for _ in range(times):
            call()
        cpu_ended, wall_ended, faults_ended = cpu(), wall(), faults()
        return cpu_ended - cpu_began, wall_ended - wall_began, faults_ended - faults_began

    times, once = {}, {}
    for name, call in contenders.items():  # this warms up too
        times[name] = 1
        while (spent := timed(call, times[name])[0]) < at_least and times[name] < 1024:
            times[name] *= 2
        once[name] = spent / times[name]
    samples = {name: Samples() for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            gc.collect()
            for name, call in contenders.items():
                s = samples[name]
                if once[name] < 10 * at_least:
                    call()
                spent = timed(call, times[name])
                for series, value in zip((s.cpu, s.wall, s.faults), spent, strict=True):
                    series.append(value / times[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def measure_peaks(contenders: Mapping[str, Run], repeats: int) -> dict[str, Samples]:
    """What each call returns, in bytes, ``repeats`` times in turn."""
    samples = {name: Samples() for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            samples[name].peak.append(float(call()))  # type: ignore[arg-type]
    return samples


def run(case: Case, repeats: int) -> Result:
    """Measure the contenders of ``case`` that are there."""
    contenders = {
        name: call for name, call in case.contenders.items() if call is not None and not isinstance(call, str)
    }
    clock: Clock = case.clock or ("cpu" if torch.get_num_threads() == 1 else "wall")
    samples = (measure_peaks if clock == "peak" else measure)(contenders, repeats)
    return Result(case, samples, clock, os.getloadavg()[0] if hasattr(os, "getloadavg") else None)
