"""How the benchmarks measure: contenders take turns, medians are compared, on CPU time.

On a machine that does other work too, wall time says little. CPU time of the process, one thread and contenders that take
turns (A, B, C, A, B, C, ...) give ratios that hold to about 10 %, but no absolute times. With more than one thread CPU time
counts the waiting of the threads, so the ratios are then of wall time. Page faults are counted because for large tensors they
can cost more than the arithmetic; they depend on the allocator and on the heap, which the contenders share.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.table import Table

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "OURS", "Case", "Cases", "DisagreementError", "Result", "Samples", "environment", "measure", "run", "slower", "table",
]  # fmt: skip

OURS = "snnrobust"
"""The name of our contender; further ones of ours are named ``"snnrobust, ..."``."""

Run = Callable[[], object]
Meter = Callable[[], float]


class DisagreementError(Exception):
    """Contenders that should compute the same do not: their times must not be compared."""


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work.

    Args:
        name: What is measured.
        contenders: Name to a call that does the work once, or to None where the peer is not installed.
        reference: The contender whose speed is 1.
        limit: The contender that only moves the memory that must be moved.
        unit: What times are printed in.
        scale: ``unit``s in a second, divided by what one call does: 1e3 / 64 for milliseconds a sample of a batch of 64.
        remarks: What a reader has to know to judge the numbers.
    """

    name: str
    contenders: Mapping[str, Run | None]
    reference: str
    limit: str | None = None
    unit: str = "ms"
    scale: float = 1e3
    remarks: tuple[str, ...] = ()


Cases = Callable[[bool], Iterator[Case]]
"""A benchmark: its cases, in a tiny size for the tests or in full."""


@dataclass(frozen=True)
class Samples:
    """Seconds and page faults of one call, a number for each repeat."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What was measured of a case; ``clock`` is the one that medians and ratios are of."""

    case: Case
    samples: Mapping[str, Samples]
    clock: Literal["cpu", "wall"] = "cpu"

    def seconds(self, name: str) -> list[float]:
        samples = self.samples[name]
        return samples.cpu if self.clock == "cpu" else samples.wall

    def median(self, name: str) -> float:
        return statistics.median(self.seconds(name))

    def quartiles(self, name: str) -> tuple[float, float]:
        return quartiles(self.seconds(name))

    def speed(self, name: str, reference: str | None = None) -> float | None:
        """How many times as fast as ``reference`` (default: the case's); None where one of them was not measured."""
        reference = self.case.reference if reference is None else reference
        if name not in self.samples or reference not in self.samples:
            return None
        return self.median(reference) / self.median(name)

    def record(self) -> dict[str, Any]:
        """For JSON. Times are in seconds a call."""
        contenders = {
            name: {
                "median": self.median(name),
                "quartiles": self.quartiles(name),
                "speed": self.speed(name),
                **asdict(self.samples[name]),
            }
            if name in self.samples
            else "not installed"
            for name in self.case.contenders
        }
        about = {
            "case": self.case.name,
            "reference": self.case.reference,
            "limit": self.case.limit,
            "clock": self.clock,
        }
        return {**about, "remarks": self.case.remarks, "contenders": contenders}


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

    A call shorter than ``at_least`` seconds is made as often as it takes to fill them. What a call returns is freed before
    the clock stops. The garbage collector runs between the rounds only, as in ``timeit``.
    """

    def timed(call: Run, times: int) -> tuple[float, float, float]:
        faults_began, wall_began, cpu_began = faults(), wall(), cpu()
        for _ in range(times):
            call()
        cpu_ended, wall_ended, faults_ended = cpu(), wall(), faults()
        return cpu_ended - cpu_began, wall_ended - wall_began, faults_ended - faults_began

    times = {}
    for name, call in contenders.items():  # this warms up too
        times[name] = 1
        while timed(call, times[name])[0] < at_least and times[name] < 1024:
            times[name] *= 2
    samples = {name: Samples() for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            gc.collect()
            for name, call in contenders.items():
                s = samples[name]
                spent = timed(call, times[name])
                for series, value in zip((s.cpu, s.wall, s.faults), spent, strict=True):
                    series.append(value / times[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def run(case: Case, repeats: int) -> Result:
    """Measure the contenders of ``case`` that are installed."""
    contenders = {name: call for name, call in case.contenders.items() if call is not None}
    return Result(case, measure(contenders, repeats), "cpu" if torch.get_num_threads() == 1 else "wall")


def table(result: Result) -> Table:
    """Medians, quartiles and speed of every contender. A bold row is ours."""
    case = result.case
    title = f"{case.name} (speed of {case.reference} = 1)"
    rows = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows.add_column("contender", no_wrap=True)
    other = "wall" if result.clock == "cpu" else "cpu"
    headings = [f"{result.clock} {case.unit}", "quartiles", other, "faults a call", "speed"]
    for heading in headings if case.limit is None else [*headings, "of limit"]:
        rows.add_column(heading, justify="right", no_wrap=heading == "quartiles")
    for name in case.contenders:
        if name not in result.samples:
            rows.add_row(name, "not installed")
            continue
        samples = result.samples[name]
        low, high = (_number(case.scale * q) for q in result.quartiles(name))
        cells = [
            _number(case.scale * result.median(name)),
            f"{low} – {high}",
            _number(case.scale * statistics.median(samples.wall if other == "wall" else samples.cpu)),
            f"{statistics.median(samples.faults):,.0f}",
            _ratio(result.speed(name)),
        ]
        if case.limit is not None:
            cells.append(_ratio(result.speed(name, case.limit)))
        rows.add_row(name, *cells, style="bold" if name.startswith(OURS) else None)
    return rows


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value >= 0.1 else f"{value:.3f}x"


def slower(result: Result) -> list[str]:
    """A sentence for each contender, limits apart, that is faster than one of ours."""
    names = [name for name in result.samples if name != result.case.limit]
    sentences = []
    for mine in (name for name in names if name.startswith(OURS)):
        for other in (name for name in names if not name.startswith(OURS)):
            speed = result.speed(mine, other)
            if speed is not None and speed < 1:
                clear = result.quartiles(mine)[0] > result.quartiles(other)[1]
                doubt = "" if clear else " (the quartiles overlap)"
                sentences.append(f"{result.case.name}: {mine} has {speed:.2f} times the speed of {other}{doubt}")
    return sentences


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Where and when: processor, versions, threads, load, allocator settings, date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_") or k in _ALLOCATOR} or "default",
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", *packages)},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


_ALLOCATOR = ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
