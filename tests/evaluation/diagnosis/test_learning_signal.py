"""A victim of a local rule, seen through its own signal and through its true weights."""

import pytest

from snnrobust import data, evaluation, models
from snnrobust.attacks import LearningSignal, Linf, TrueTranspose
from snnrobust.draws import keyed
from snnrobust.encoders import Direct
from snnrobust.learning_rules import DFA

CHECKS = ["noise", "neurons", "learning rule", "orderings"]


@pytest.fixture(scope="module")
def victim():
    rule = DFA(seed=0, lr=5e-3, schedule="cosine")
    with keyed(0):
        model = models.spiking((models.Dense(64), models.Dense(64)), (1, 8, 8), 10, Direct(4), norm="none")
    rule.fit(model, data.load("digits", "train"), epochs=8, progress=False)
    return model.eval(), rule


def diagnosed(victim, gradient):
    model, _ = victim
    test = data.load("digits", "test")
    return evaluation.diagnose(model, test, Linf(0.1), gradient=gradient, checks=CHECKS, n=100, progress=False)


def test_its_own_signal_alone_is_masked_and_the_true_weights_are_named(victim):
    report = diagnosed(victim, LearningSignal(victim[1], "random"))
    assert report.verdict == "masked"
    assert "the true weights are not stronger" in report.reasons
    assert "learning rule" in report["the true weights are not stronger"].meaning
    assert report["potentials lie within the surrogate's reach"].status == "passed"


def test_the_true_weights_are_not(victim):
    assert diagnosed(victim, TrueTranspose()).verdict == "consistent"
