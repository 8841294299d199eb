"""What is said about several victims, by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from snnrobust.attacks import membership_report
from snnrobust.codesign import Leakage, over_victims


def report(shift, n=40, threshold=0.0, others=1200, seed=0):
    rng = np.random.default_rng(seed)
    return membership_report("attack", rng.normal(shift, 1, n), rng.normal(0, 1, others), threshold=threshold)


@pytest.fixture
def leakage():
    reports = {"a": (report(1.0), report(1.2, seed=1)), "b": (report(2.0), report(1.8, seed=1))}
    return Leakage("kind", -1, (1.0, 0.9), (0.7, 0.8), (0.7, 0.75), reports)


def test_over_victims_is_students_interval():
    found = over_victims([0.1, 0.2, 0.4])
    low, high = stats.t.interval(0.95, 2, loc=np.mean([0.1, 0.2, 0.4]), scale=stats.sem([0.1, 0.2, 0.4]))
    assert found == pytest.approx((0.7 / 3, low, high))
    assert over_victims([0.3]) == (0.3, 0.3, 0.3)
    assert over_victims((0.3, 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    with pytest.raises(ValueError, match="values is empty"):
        over_victims([])


def test_values_are_those_of_the_reports(leakage):
    for measure in ("auc", "balanced_accuracy", "calibrated"):
        assert leakage.values("a", measure) == tuple(getattr(r, measure).value for r in leakage.reports["a"])
    assert leakage.values("b", "tpr at 0.01") == tuple(r.at_fpr[1].tpr.value for r in leakage.reports["b"])
    assert leakage.strongest() == leakage.strongest("tpr at 0.01") == "b"
    with pytest.raises(ValueError, match="attack must be one of a, b"):
        leakage.values("c", "auc")
    with pytest.raises(ValueError, match=r"measure must be one of .*tpr at 0\.001, tpr at 0\.01"):
        leakage.values("a", "tpr at 0.1")


def test_what_cannot_be_resolved_is_nan_and_null():
    few = Leakage("kind", 0, (1.0,), (0.5,), (0.5,), {"a": (report(1.0, others=200, threshold=None),)})
    assert math.isnan(few.values("a", "tpr at 0.001")[0])
    assert few.strongest("tpr at 0.001") == "a"
    assert "tpr at 0.001 not resolvable" in str(few)
    found = json.loads(json.dumps(few.json(), allow_nan=False))
    assert found["attacks"]["a"]["tpr at 0.001"] == [None]
    with pytest.raises(ValueError, match="attack has no threshold of its own"):
        few.values("a", "calibrated")


def test_verdicts_are_those_of_a_balanced_set(leakage):
    for verdict, of in zip(leakage.verdicts("a", 0.5), leakage.reports["a"], strict=True):
        # each member as often as there are non-members: then the sets are of one size
        repeated = np.repeat(of.members, len(of.non_members) // len(of.members))
        truth = np.r_[np.ones(len(repeated)), np.zeros(len(of.non_members))]
        flagged = np.r_[repeated, of.non_members] > 0.5
        assert verdict.f1 == pytest.approx(f1_score(truth, flagged))
        assert verdict.accuracy == pytest.approx((truth == flagged).mean())
        assert verdict.tpr == pytest.approx((repeated > 0.5).mean())
        assert verdict.fpr == pytest.approx((of.non_members > 0.5).mean())
    assert leakage.verdicts("a")[0].accuracy == pytest.approx(leakage.values("a", "calibrated")[0])
    assert leakage.verdicts("a", 100.0)[0].f1 == 0.0


def test_text_and_json_say_the_same(leakage):
    text, found = str(leakage), json.loads(json.dumps(leakage.json(), allow_nan=False))
    assert text.startswith("kind: 2 victims")
    assert "accuracy on members 0.950" in text
    for attack in "ab":
        assert f"{attack}: auc {np.mean(found['attacks'][attack]['auc']):.3f} (" in text
    assert found["on_others"] == [0.7, 0.8]
    assert found["attacks"]["a"]["f1"] == [v.f1 for v in leakage.verdicts("a")]
