"""How contenders are measured, on fake meters. No times are asserted."""

import gc

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case, Result, Samples

# --- measuring ------------------------------------------------------------------------------------------------


def test_contenders_take_turns_after_a_warm_up(fake):
    fake.measure({name: fake.contender(name, [1.0]) for name in "abc"}, repeats=3)
    assert "".join(fake.log) == "abc" + 3 * "abc"


def test_samples_are_what_each_call_cost(fake):
    samples = fake.measure(
        {"a": fake.contender("a", [99.0, 2.0, 4.0, 3.0], faults=7.0), "b": fake.contender("b", [1.0], wall=5.0)},
        repeats=3,
    )
    assert samples["a"] == Samples([2.0, 4.0, 3.0], [2.0, 4.0, 3.0], [7.0] * 3)
    assert samples["b"] == Samples([1.0] * 3, [5.0] * 3, [0.0] * 3)


def test_short_calls_are_repeated_and_reported_for_one_call(fake):
    samples = fake.measure({"short": fake.contender("short", [0.25]), "long": fake.contender("long", [1.0])}, 2, 1.0)
    assert samples["short"].cpu == [0.25, 0.25]
    warm_up, turns = ["short"] * (1 + 2 + 4) + ["long"], ["short"] * (1 + 4) + ["long"] * (1 + 1)
    assert fake.log == warm_up + 2 * turns


def test_a_call_that_costs_nothing_ends_the_warm_up(fake):
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


def test_peaks_are_what_calls_return():
    result = harness.run(Case("case", {"a": iter([3, 4]).__next__, "b": lambda: 5}, "a", clock="peak"), 2)
    assert (result.clock, result.seconds("a"), result.seconds("b")) == ("peak", [3.0, 4.0], [5.0, 5.0])


def test_contenders_that_are_missing_are_left_out():
    case = Case("case", {"a": lambda: None, "b": None, "c": "it is not built"}, "a")
    result = harness.run(case, 1)
    assert set(result.samples) == {"a"}
    assert (case.absent("b"), case.absent("c")) == ("not installed", "it is not built")


# --- medians, quartiles, ratios -------------------------------------------------------------------------------


def test_medians_quartiles_and_ratios(made_up):
    result = made_up(peer=[6.0, 8.0, 100.0], snnrobust=[1.0, 2.0, 3.0, 4.0, 90.0])
    assert result.median("peer") == 8.0
    assert result.quartiles("snnrobust") == (2.0, 4.0)
    assert result.speed("peer") == 1.0
    assert result.speed(OURS) == pytest.approx(8 / 3)
    assert result.speed("peer", OURS) == pytest.approx(3 / 8)


def test_one_repeat_has_no_spread(made_up):
    assert made_up(peer=[2.0]).quartiles("peer") == (2.0, 2.0)


@pytest.mark.parametrize(("threads", "clock"), [(1, "cpu"), (2, "wall")])
def test_ratios_are_of_wall_time_where_there_are_threads(monkeypatch, made_up, threads, clock):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert harness.run(Case("case", {"a": lambda: None}, "a"), 1).clock == clock
    assert made_up(clock, peer=[2.0]).median("peer") == (2.0 if clock == "cpu" else 20.0)


def test_the_fastest_limit_is_the_limit(made_up):
    assert made_up(limits=("a", "b", "c"), peer=[1.0], a=[0.5], b=[0.4], c=None).limit == "b"
    assert made_up(limits=("a",), peer=[1.0], a="no compiled kernels").limit is None


def test_a_name_that_is_no_contender_is_an_error():
    with pytest.raises(ValueError, match="case: 'peer' is none of the contenders"):
        Case("case", {OURS: None}, reference="peer")


def test_a_result_comes_back_from_its_record(made_up):
    target = harness.Target("row", OURS, ("peer", "floor"), 2.0, aim=3.0)
    result = made_up(
        limits=("floor",),
        targets=(target,),
        figure="lif",
        at={"peer": 8.0},
        snnrobust=[1.0, 2.0],
        peer=[3.0, 4.0],
        floor="why",
    )
    back = Result.of(result.record())
    assert back.record() == result.record()
    assert back.case.targets == (target,)
    assert back.case.absent("floor") == "why"
