"""The measures against scikit-learn, SciPy and enumeration, and how honest they are about nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from snnrobust.attacks import membership_report
from snnrobust.attacks.membership_report import choose_threshold

scores = st.lists(
    st.one_of(st.integers(-5, 5), st.floats(-1e300, 1e300), st.sampled_from([-np.inf, np.inf])), min_size=4, max_size=40
)


def report(members, others, **kwargs):
    return membership_report("test", np.asarray(members, float), np.asarray(others, float), **kwargs)


@settings(deadline=None)
@given(scores, scores)
def test_measures_are_those_of_scipy_and_of_enumeration(members, others):
    a, b = np.array(members, float), np.array(others, float)
    found = report(a, b)
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    assert found.auc.value == pytest.approx(pairs.mean(), abs=1e-9)
    assert found.auc.low <= found.auc.value <= found.auc.high
    # max |TPR - FPR| is the Kolmogorov-Smirnov statistic
    assert found.advantage_max == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic, abs=1e-9)
    assert found.balanced_accuracy_max == pytest.approx(0.5 + found.advantage_max / 2)
    assert found.balanced_accuracy.value <= found.balanced_accuracy_max + 1e-9
    assert found.advantage.value == pytest.approx(2 * found.balanced_accuracy.value - 1)
    threshold, above = choose_threshold(a, b)
    rates = [((s > threshold) == above).mean() for s in (a, b)]
    assert rates[0] - rates[1] == pytest.approx(found.advantage_max, abs=1e-9)
    fpr, tpr = found.roc()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


def test_the_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    a, b = 3 + rng.integers(0, 20, 60), rng.integers(0, 20, 80)
    found = report(a, b)
    label, score = np.r_[np.ones(60), np.zeros(80)], np.r_[a, b]
    assert found.auc.value == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert np.column_stack(found.roc()) == pytest.approx(np.column_stack([fpr, tpr]), abs=1e-12)


@settings(deadline=None)
@given(scores, scores, st.sampled_from([0.05, 0.1, 0.3, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_largest_that_is_allowed(members, others, rate):
    a, b = np.array(members, float), np.array(others, float)
    (at,) = report(a, b, fpr=[rate]).at_fpr
    if rate * len(b) < 1:
        assert at.tpr is None
        assert at.note == f"it takes at least {1 / rate:,.0f} non-members, there are {len(b)}"
        return
    # "at least this score" at each score, and nothing at all
    options = [(float((b >= t).mean()), float((a >= t).mean())) for t in np.r_[a, b]] + [(0.0, 0.0)]
    best = max(t for f, t in options if f <= rate + 1e-12)
    assert at.tpr.value == pytest.approx(best)
    assert at.found.value <= rate + 1e-12
    hits = round(at.tpr.value * len(a))
    expected = stats.binomtest(hits, len(a)).proportion_ci(0.95, method="exact")
    assert at.tpr[1:] == pytest.approx((expected.low, expected.high))


def test_too_few_non_members_are_named_and_a_thin_threshold_too():
    rng = np.random.default_rng(0)
    found = report(rng.normal(1, 1, 999), rng.normal(0, 1, 999))
    assert found.at_fpr[0].tpr is None
    assert "TPR at 0.1 % FPR  not resolvable; it takes at least 1,000 non-members, there are 999" in str(found)
    found = report(rng.normal(1, 1, 1000), rng.normal(0, 1, 1000), fpr=[0.001, 0.1])
    assert found.at_fpr[0].found[1:] == pytest.approx(stats.binomtest(1, 1000).proportion_ci(method="exact")[:2])
    assert "the threshold rests on 1 false alarms: FPR 0.10% (0.00% to 0.56%)" in str(found)
    assert found.at_fpr[1].note == ""


def test_perfect_scores_and_scores_that_say_nothing():
    found = report(np.arange(100) + 100, np.arange(100))
    assert found.auc[0] == found.auc[2] == 1.0
    assert 0.9 < found.auc.low < 1
    assert found.balanced_accuracy.value > 0.98
    assert found.balanced_accuracy.low < 0.99
    assert found.advantage_max == 1.0
    found = report(np.ones(100), np.ones(100))
    assert found.auc.value == found.balanced_accuracy.value == 0.5
    assert found.advantage.value == found.advantage_max == 0.0
    assert [at.tpr and at.tpr.value for at in found.at_fpr] == [None, 0.0]


def test_the_judged_accuracy_of_noise_is_a_half_and_the_one_in_hindsight_above():
    rng = np.random.default_rng(1)
    found = [report(rng.normal(size=80), rng.normal(size=80), seed=i) for i in range(200)]
    judged = np.array([f.balanced_accuracy.value for f in found])
    assert abs(judged.mean() - 0.5) < 0.01
    assert np.mean([f.balanced_accuracy_max for f in found]) > 0.55
    covered = sum(f.balanced_accuracy.low <= 0.5 <= f.balanced_accuracy.high for f in found)
    assert covered >= stats.binom.ppf(0.001, 200, 0.92)
    assert sum(f.advantage.low <= 0 <= f.advantage.high for f in found) == covered


def test_intervals_of_the_judged_accuracy_and_of_the_tpr_cover():
    """Normal scores a distance of 1 apart: the best threshold is in the middle."""
    rng = np.random.default_rng(2)
    found = [report(rng.normal(1, 1, 200), rng.normal(0, 1, 2000), fpr=[0.1]) for _ in range(120)]
    truth = stats.norm.cdf(0.5)
    assert (
        sum(f.balanced_accuracy.low <= truth + 0.005 and f.balanced_accuracy.high >= truth - 0.02 for f in found) >= 110
    )
    at = stats.norm.sf(stats.norm.isf(0.1) - 1)
    assert sum(f.at_fpr[0].tpr.low <= at <= f.at_fpr[0].tpr.high for f in found) >= 107


def test_a_threshold_of_the_attack_is_judged_as_it_is():
    found = report([1, 2, 3, 4], [0, 1, 2, 3], threshold=2)
    assert found.calibrated.value == (2 / 4 + 3 / 4) / 2
    assert "at the attack's own threshold" in str(found)
    assert report([1, 2, 3, 4], [0, 1, 2, 3]).calibrated is None


def test_same_seed_same_halves():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, 50), rng.normal(0, 1, 50)
    assert report(a, b, seed=1).balanced_accuracy == report(a, b, seed=1).balanced_accuracy
    assert len({report(a, b, seed=i).balanced_accuracy for i in range(10)}) > 1


def test_it_is_drawn(tmp_path):
    rng = np.random.default_rng(3)
    report(rng.normal(1, 1, 50), rng.normal(0, 1, 50)).plot(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"members": [1.0, 2.0, 3.0]}, "members must be at least 4 scores"),
        ({"others": [1.0, 2.0, 3.0, np.nan]}, "non_members must be at least 4 scores"),
        ({"members": [[1.0, 2.0], [3.0, 4.0]]}, r"members must be at least 4 scores \[n\]"),
        ({"fpr": [0.0]}, "fpr must be in"),
        ({"fpr": [1.1]}, "fpr must be in"),
        ({"confidence": 1.0}, "confidence must be in"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        report(**({"members": np.arange(4), "others": np.arange(4)} | arguments))
