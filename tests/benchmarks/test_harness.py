"""The harness on fake meters, and every benchmark once on a tiny size. No times are asserted."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys

import pytest
import torch
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import attack, harness, lif, peers
from benchmarks.harness import OURS, Case, DisagreementError, Result, Samples


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


def _result(clock="cpu", limit=None, **cpu):
    """A peer without times is not installed."""
    contenders = {name: None if times is None else (lambda: None) for name, times in cpu.items()}
    samples = {
        name: Samples(times, [10 * t for t in times], [0.0] * len(times)) for name, times in cpu.items() if times
    }
    return Result(Case("case", contenders, reference="peer", limit=limit), samples, clock)


def _text(result):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(harness.table(result))
    return capture.get()


# --- measuring ------------------------------------------------------------------------------------------------


def test_contenders_take_turns_after_a_warm_up():
    fake = Fake()
    fake.measure({name: fake.contender(name, [1.0]) for name in "abc"}, repeats=3)
    assert "".join(fake.log) == "abc" + 3 * "abc"


def test_samples_are_what_each_call_cost():
    fake = Fake()
    samples = fake.measure(
        {"a": fake.contender("a", [99.0, 2.0, 4.0, 3.0], faults=7.0), "b": fake.contender("b", [1.0], wall=5.0)},
        repeats=3,
    )
    assert samples["a"] == Samples([2.0, 4.0, 3.0], [2.0, 4.0, 3.0], [7.0] * 3)
    assert samples["b"] == Samples([1.0] * 3, [5.0] * 3, [0.0] * 3)


def test_short_calls_are_repeated_and_reported_for_one_call():
    fake = Fake()
    samples = fake.measure({"short": fake.contender("short", [0.25]), "long": fake.contender("long", [1.0])}, 2, 1.0)
    assert samples["short"].cpu == [0.25, 0.25]
    warm_up, turns = ["short"] * (1 + 2 + 4) + ["long"], ["short"] * 4 + ["long"]
    assert fake.log == warm_up + 2 * turns


def test_a_call_that_costs_nothing_ends_the_warm_up():
    fake = Fake()
    assert fake.measure({"free": fake.contender("free", [0.0])}, 1, 1.0)["free"].cpu == [0.0]


def test_the_collector_is_off_during_the_rounds_and_back_afterwards():
    seen = []

    def call():
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        harness.measure({"a": call}, 5, at_least=0.0)
    assert seen == [True, False, False]
    assert gc.isenabled()


# --- medians, quartiles, ratios -------------------------------------------------------------------------------


def test_medians_quartiles_and_ratios():
    result = _result(peer=[6.0, 8.0, 100.0], snnrobust=[1.0, 2.0, 3.0, 4.0, 90.0])
    assert result.median("peer") == 8.0
    assert result.quartiles("snnrobust") == (2.0, 4.0)
    assert result.speed("peer") == 1.0
    assert result.speed(OURS) == pytest.approx(8 / 3)
    assert result.speed("peer", OURS) == pytest.approx(3 / 8)


def test_one_repeat_has_no_spread():
    assert _result(peer=[2.0]).quartiles("peer") == (2.0, 2.0)


@pytest.mark.parametrize(("threads", "clock"), [(1, "cpu"), (2, "wall")])
def test_ratios_are_of_wall_time_where_there_are_threads(monkeypatch, threads, clock):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert harness.run(Case("case", {"a": lambda: None}, "a"), 1).clock == clock
    assert _result(clock, peer=[2.0]).median("peer") == (2.0 if clock == "cpu" else 20.0)


def test_a_missing_reference_leaves_the_ratio_empty():
    result = _result(peer=None, snnrobust=[0.002])
    assert result.speed(OURS) is None
    lines = _text(result).splitlines()
    assert any("peer" in line and "not installed" in line for line in lines)
    assert any("snnrobust" in line and line.split()[-1] == "-" for line in lines)
    assert harness.slower(result) == []
    assert result.record()["contenders"]["peer"] == "not installed"


def test_the_table_has_medians_ratios_and_the_share_of_the_limit():
    text = _text(_result(limit="floor", snnrobust=[0.002], peer=[0.005], floor=[0.0005]))
    ours = next(line for line in text.splitlines() if "snnrobust" in line).split()
    assert ours == ["snnrobust", "2", "2", "–", "2", "20", "0", "2.50x", "0.25x"]


def test_slower_tells_every_contender_that_beats_ours_but_not_the_limit():
    result = _result(limit="floor", snnrobust=[4.0, 4.0], peer=[2.0, 2.0], close=[3.0, 4.5], slow=[9.0], floor=[1.0])
    assert harness.slower(result) == [
        "case: snnrobust has 0.50 times the speed of peer",
        "case: snnrobust has 0.94 times the speed of close (the quartiles overlap)",
    ]


# --- the benchmarks -------------------------------------------------------------------------------------------


def _needs_peers():
    missing = [package for package in peers.PACKAGES if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the interop extra is missing: {', '.join(missing)}")


@_needs_peers()
@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_runs(name):
    cases, _ = command.BENCHMARKS[name]
    for case in cases(True):
        assert None not in case.contenders.values()
        assert {case.reference, OURS} <= set(case.contenders)
        assert case.limit is None or case.limit in case.contenders
        result = harness.run(case, 1)
        assert set(result.samples) == set(case.contenders)
        assert OURS in _text(result)


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_a_missing_peer_is_a_line_not_a_crash(name, monkeypatch):
    for package in peers.PACKAGES:
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    cases, _ = command.BENCHMARKS[name]
    for case in cases(True):
        assert case.contenders[OURS] is not None
        assert "not installed" in _text(harness.run(case, 1))


def test_a_peer_that_is_broken_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        peers.optional(lambda: importlib.import_module("no_such_module"))


def test_lif_is_not_timed_where_spikes_or_gradients_differ(monkeypatch):
    naive = lif.naive
    monkeypatch.setattr(lif, "naive", lambda x: 1 - naive(x))
    with pytest.raises(DisagreementError, match="snnrobust and the naive loop differ in 48 spikes"):
        next(lif.cases(True))
    monkeypatch.setattr(lif, "naive", lambda x: naive(x) + 1e-4 * (x - x.detach()))
    with pytest.raises(DisagreementError, match="snnrobust and the naive loop have gradients that differ"):
        next(lif.cases(True))


def test_pgd_is_not_timed_where_the_images_differ(monkeypatch):
    monkeypatch.setattr(attack, "by_hand", lambda model, x, y: x)
    with pytest.raises(DisagreementError, match="PGD and the loop by hand differ"):
        next(attack.cases(True))


# --- the command ----------------------------------------------------------------------------------------------


def _cases(tiny):
    yield Case("fast", {OURS: lambda: None, "peer": None}, reference="peer", remarks=("a remark",))


def _refusing(tiny):
    raise DisagreementError("they differ")
    yield


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr(command, "BENCHMARKS", {"fast": (_cases, 2), "refusing": (_refusing, 2)})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


@pytest.mark.usefixtures("commands")
def test_the_command_prints_tables_and_writes_every_sample(tmp_path, capsys):
    file = tmp_path / "times.json"
    assert command.main(["fast", "--repeats", "3", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "processor",
        torch.__version__,
        "threads",
        "load",
        "date",
        "fast",
        "a remark",
        "not installed",
        "nowhere",
    ):
        assert text in printed
    record = json.loads(file.read_text())
    assert record["environment"]["torch"] == torch.__version__
    (result,) = record["results"]
    assert len(result["contenders"][OURS]["cpu"]) == len(result["contenders"][OURS]["wall"]) == 3


@pytest.mark.usefixtures("commands")
def test_a_refused_benchmark_fails_the_command_but_not_the_others(capsys):
    assert command.main(["refusing", "fast"]) == 1
    printed = capsys.readouterr().out
    assert "refusing is not measured: they differ" in printed
    assert "a remark" in printed


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "'unknown' is not one of fast, refusing"),
        (["--repeats", "0"], "whole number of at least 1, got '0'"),
        (["--threads", "x"], "whole number of at least 1, got 'x'"),
        (["--json", "no/such/folder/times.json"], "is not a file in a folder that exists"),
    ],
)
def test_wrong_arguments_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err
