"""Targets beside made-up samples."""

import pytest

from benchmarks.harness import OURS
from benchmarks.targets import Target, judge


def _verdict(made_up, target, **times):
    (verdict,) = judge(made_up(targets=(target,), **times))
    return verdict


@pytest.mark.parametrize(
    ("target", "ratio", "sentence"),
    [
        (Target("row", OURS, "peer", 4.0), 4.0, "reached"),
        (Target("row", OURS, "peer", 4.5), 4.0, "missed by 11 %"),
        (Target("row", OURS, "peer", 2.0, aim=4.0), 4.0, "aim reached"),
        (Target("row", OURS, "peer", 2.0, aim=5.0), 4.0, "reached"),
        (Target("row", "peer", OURS, 4.0, most=True), 4.0, "reached"),
        (Target("row", "peer", OURS, 2.0, most=True), 4.0, "missed by 100 %"),
        (Target("row", "peer", OURS, 1.0, aim=0.5, most=True, per=8.0), 0.5, "aim reached"),
    ],
)
def test_ratio_and_sentence(made_up, target, ratio, sentence):
    verdict = _verdict(made_up, target, snnrobust=[1.0, 2.0, 3.0], peer=[4.0, 8.0, 12.0])
    assert (verdict.ratio, verdict.quartiles, verdict.sentence) == (ratio, (ratio, ratio), sentence)
    assert verdict.reached == (not sentence.startswith("missed"))


def test_ratio_and_spread_are_of_rounds(made_up):
    verdict = _verdict(made_up, Target("row", OURS, "peer", 3.5), snnrobust=[1.0, 2.0, 4.0], peer=[4.0, 6.0, 8.0])
    assert verdict.ratio == 3.0
    assert verdict.quartiles == (2.5, 3.5)  # of 2, 3 and 4
    assert verdict.sentence == "missed by 14 % (within the spread)"


def test_one_round_has_no_spread(made_up):
    verdict = _verdict(made_up, Target("row", OURS, "peer", 2.0), snnrobust=[1.0], peer=[2.0])
    assert (verdict.ratio, verdict.quartiles, verdict.sentence) == (2.0, None, "reached")


def test_the_best_of_several_references_counts(made_up):
    target = Target("row", OURS, ("peer", "other", "missing"), 1.0)
    verdict = _verdict(made_up, target, snnrobust=[2.0], peer=[4.0], other=[3.0], missing=None)
    assert (verdict.reference, verdict.ratio) == ("other", 1.5)


@pytest.mark.parametrize(
    ("times", "note"),
    [
        ({"snnrobust": [1.0], "peer": None}, "peer is not installed"),
        ({"snnrobust": "snnrobust has no kernel", "peer": [1.0]}, "snnrobust has no kernel"),
    ],
)
def test_what_is_missing_is_told(made_up, times, note):
    verdict = _verdict(made_up, Target("row", OURS, "peer", 2.0), **times)
    assert (verdict.ratio, verdict.reached, verdict.sentence) == (None, None, f"not measured: {note}")


def test_peaks_are_judged_too(made_up):
    target = Target("row", OURS, "peer", 2.2, most=True)
    verdict = _verdict(made_up, target, clock="peak", snnrobust=[30.0, 40.0], peer=[10.0, 20.0])
    assert (verdict.ratio, verdict.sentence) == (2.5, "missed by 14 %")
