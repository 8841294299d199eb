"""Holm over the tested checks, and the rule of the verdict."""

import json

import pytest

from snnrobust.evaluation.diagnosis.check import Check, MaskingReport, Status, settled
from snnrobust.statistics import holm


def check(name: str, status: Status = "failed", p: float | None = None, **more: str) -> Check:
    return Check(name, status, "found", "meaning", "remedy", p, **more)  # type: ignore[arg-type]


def report(*checks: Check) -> MaskingReport:
    return MaskingReport({"eps": 0.1, "n": 9, "seed": 0, "draws": 1}, list(checks))


def test_the_level_is_shared_among_all_tests() -> None:
    p = [0.02, 0.04, 0.5, 0.9]
    alone = settled([check("a", p=0.02)])
    assert [c.status for c in alone] == ["failed"]
    found = settled([check(str(i), p=value) for i, value in enumerate(p)])
    assert [c.p_value for c in found] == holm(p)
    assert [c.status for c in found] == ["passed"] * 4  # 4 x 0.02 is not below 0.05


def test_what_is_not_significant_becomes_what_it_says_otherwise() -> None:
    (weak,) = settled([check("a", p=0.2, otherwise="inconclusive")])
    assert weak.status == "inconclusive"
    (passed,) = settled([check("a", "passed", p=0.001)])
    assert passed.status == "passed"  # too small an effect, whatever its p-value


def test_without_a_test_a_status_stands_and_others_do_not_pay_for_it() -> None:
    found = settled([check("a"), check("b", p=0.04)])
    assert [c.status for c in found] == ["failed", "failed"]
    assert found[1].p_value == 0.04


@pytest.mark.parametrize(
    ("checks", "verdict", "reasons"),
    [
        ([check("a", "passed"), check("b", "not run")], "consistent", []),
        ([check("a", "passed"), check("b", "inconclusive")], "inconclusive", ["b"]),
        ([check("a", topic="x"), check("b", topic="x")], "inconclusive", ["a", "b"]),
        ([check("a", topic="x"), check("b", topic="y")], "masked", ["a", "b"]),
        ([check("a", evidence="proof"), check("b", topic="y")], "masked", ["a"]),
        ([check("a", "inconclusive", evidence="proof")], "inconclusive", ["a"]),
    ],
)
def test_one_flag_is_evidence_two_are_a_verdict(checks: list[Check], verdict: str, reasons: list[str]) -> None:
    found = report(*checks)
    assert (found.verdict, found.reasons) == (verdict, reasons)


def test_as_text_and_as_json() -> None:
    found = report(check("a", p=0.01), check("b", "passed"))
    text = str(found)
    assert "because: a" in text
    assert "failed       a: found (p = 0.01)" in text
    assert text.count("do: remedy") == 1
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["verdict"] == "inconclusive"
    assert stored["reasons"] == ["a"]
    assert set(stored["checks"][0]) == {
        "name", "status", "found", "meaning", "remedy", "p_value", "evidence", "topic",
    }  # fmt: skip
    assert found["b"].status == "passed"
