"""Contenders on fake meters, and results that were never measured."""

import sys

import pytest

from benchmarks import harness, memory
from benchmarks.harness import Case, Result, Samples


class Fake:
    """Contenders that only advance the meters and write their names down."""

    def __init__(self):
        self.now, self.log = {"cpu": 0.0, "wall": 0.0, "faults": 0.0}, []

    def contender(self, name, cpu, wall=None, faults=0.0):
        """``cpu``: seconds of each call in turn; the last one stays."""
        costs = list(cpu)

        def call():
            self.log.append(name)
            cost = costs.pop(0) if len(costs) > 1 else costs[0]
            self.now["cpu"] += cost
            self.now["wall"] += cost if wall is None else wall
            self.now["faults"] += faults

        return call

    def measure(self, contenders, repeats, at_least=0.0):
        meters = {meter: lambda meter=meter: self.now[meter] for meter in self.now}
        return harness.measure(contenders, repeats, at_least=at_least, **meters)


@pytest.fixture
def fake():
    return Fake()


def _made_up(clock="cpu", limits=(), targets=(), reference="peer", figure="", at=None, name="case", **times):
    """A contender without times is not installed; one with a text for times is missing for that reason."""
    contenders = {
        key: given if given is None or isinstance(given, str) else (lambda: None) for key, given in times.items()
    }
    samples = {
        key: Samples(peak=given) if clock == "peak" else Samples(given, [10 * t for t in given], [0.0] * len(given))
        for key, given in times.items()
        if isinstance(given, list)
    }
    case = Case(name, contenders, reference, limits, targets, clock=clock, figure=figure, at=at or {})
    return Result(case, samples, clock, 0.5)


@pytest.fixture
def made_up():
    return _made_up


@pytest.fixture
def in_process(monkeypatch):
    """Peaks are measured here: a process for each takes seconds."""

    def run(module, function, *arguments):
        return memory.growth(getattr(sys.modules[module], function)(*arguments))

    monkeypatch.setattr(memory, "_in_a_process", run)
