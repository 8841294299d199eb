import importlib
import json

import pytest
import torch

from snnrobust import attacks, evaluation
from snnrobust.attacks import PGD, Linf
from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.evaluation import suite as running
from snnrobust.evaluation.html import render
from snnrobust.evaluation.report import CONTROL, DOUBLED, NULL, WORST
from snnrobust.models import Conv, ordinary, spiking

EPS = 0.1


@pytest.fixture(autouse=True)
def small(monkeypatch):
    module = importlib.import_module("snnrobust.attacks.standard")
    for name, value in {"STEPS": 3, "QUERIES": 30, "TARGETS": 2, "CHUNK": 20}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    return torch.rand(30, 1, 6, 6, generator=g)


def _model(kind):
    with keyed(1):
        if kind == "ann":
            return ordinary((Conv(4),), (1, 6, 6), 3).eval()
        return spiking((Conv(4),), (1, 6, 6), 3, {"direct": Direct(4), "poisson": Poisson(4)}[kind]).eval()


def _data(model, x):
    """Labelled by the model: everything is right without attack, but for a few."""
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    return x, y


def _evaluate(model, data, **settings):
    given = {"selection_draws": 4, "judge_draws": 12, "progress": False, "examples": 2, "batch_size": 16} | settings
    return evaluation.evaluate(model, data, {"standard": attacks.standard(Linf(EPS))}, **given)


@pytest.mark.parametrize("kind", ["ann", "direct", "poisson"])
def test_a_suite_is_evaluated_stage_by_stage(kind, images):
    model = _model(kind)
    x, y = _data(model, images)
    report = _evaluate(model, (x, y))
    rows = {r["attack"]: r for r in report.rows}
    assert list(rows) == ["clean", "standard", WORST, NULL, CONTROL, DOUBLED]
    assert rows["standard"]["accuracy"] == rows[WORST]["accuracy"]
    assert rows[DOUBLED]["accuracy"] <= rows[WORST]["accuracy"] + (0.1 if kind == "poisson" else 0)
    stages = [s for s in report.stages if s["suite"] == "standard"]
    ran = [s for s in stages if not s["skipped"]]
    wrong = 3 if kind != "poisson" else None
    left = len(x) - wrong if wrong is not None else ran[0]["tried"]
    for stage in ran:  # each is run on what is left
        assert stage["tried"] == left
        assert stage["left"] == left - stage["broken"]
        left = stage["left"]
        assert stage["gradients"] <= stage["tried"] * stage["most_gradients"]
        assert stage["forwards"] <= stage["tried"] * (stage["most_forwards"] + 2)
    if kind != "poisson":
        assert ran[-1]["accuracy"] == pytest.approx(rows["standard"]["accuracy"])
        assert left == round(len(x) * rows["standard"]["accuracy"])
    assert rows["standard"]["gradients"] == sum(s["gradients"] for s in ran)
    spent = {s["suite"] for s in report.stages}
    assert spent == {"standard", CONTROL, DOUBLED}
    assert len([s for s in report.samples if s[2] == "standard"]) == len(x)


def test_the_inputs_of_the_report_are_those_that_were_judged(images, tmp_path):
    model = _model("direct")
    x, y = _data(model, images)
    report = _evaluate(model, (x, y), examples=30, controls=False)
    for e in report.examples:
        x_adv = torch.tensor(e["adversarial"])
        assert (x_adv - x[e["sample"]]).abs().max() <= EPS
        with torch.no_grad():
            assert int(model(x_adv[None]).argmax()) == e["prediction"]


def test_an_interrupted_suite_goes_on(images, tmp_path, monkeypatch):
    model = _model("direct")
    data = _data(model, images)
    whole = _evaluate(model, data, folder=tmp_path / "whole")
    calls = []
    original = attacks.Attack.__call__

    def dies(attack, *arguments, **named):
        calls.append(type(attack).__name__)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(attack, *arguments, **named)

    monkeypatch.setattr(attacks.Attack, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(model, data, folder=tmp_path / "cells")
    there = set((tmp_path / "cells").iterdir())
    assert there
    monkeypatch.setattr(attacks.Attack, "__call__", original)
    resumed = _evaluate(model, data, folder=tmp_path / "cells")
    assert resumed.samples == whole.samples
    assert there <= set((tmp_path / "cells").iterdir())


def test_the_batch_size_changes_nothing(images):
    model = _model("direct").double()
    data = _data(model, images.double())
    one, other = (_evaluate(model, data, batch_size=b, controls=False) for b in (30, 7))
    assert [s[:-1] for s in one.samples] == [s[:-1] for s in other.samples]


def test_a_suite_stands_beside_other_attacks(images):
    model = _model("ann")
    data = _data(model, images)
    both = {"standard": attacks.standard(Linf(EPS)), "PGD": PGD(Linf(EPS), steps=3)}
    report = evaluation.evaluate(model, data, both, eps=[0.05, EPS], controls=False, progress=False)
    assert {r["eps"] for r in report.rows} == {0.0, 0.05, EPS}
    assert report.accuracy(WORST, EPS) <= min(report.accuracy("PGD", EPS), report.accuracy("standard", EPS))
    assert {s["eps"] for s in report.stages} == {0.05, EPS}
    with pytest.raises(ValueError, match="one suite at a time"):
        evaluation.evaluate(model, data, {"a": both["standard"], "b": both["standard"]}, progress=False)


def test_the_estimate_is_said_before_the_start(images, capsys):
    model = _model("ann")
    _evaluate(model, _data(model, images), progress=True, controls=False)
    said = capsys.readouterr().out
    assert "standard, version 1, at eps 0.1: 5 stages, at most" in said
    assert "gradients and" in said
    assert "APGD (own):" in said
    assert said.index("at most") < said.index("APGD (own):")


def test_the_estimate_is_declared_costs_times_measured_ones(images, monkeypatch):
    model = _model("ann")
    x, y = _data(model, images)
    job = running.Job(model, x, y, 0, running.Draws(1, 1), 16, None)
    ticks = iter(range(100))
    monkeypatch.setattr(running.time, "perf_counter", lambda: float(next(ticks)))
    stages = [attacks.Stage("a", PGD(Linf(EPS)), 10, 3), attacks.Stage("b", None, 99, 99, "no")]
    assert running.estimate(job, stages) == (10, 3, 30 * (10 + 3) / 16)


def test_the_report_shows_stages_and_a_paragraph(images, tmp_path):
    model = _model("ann")
    report = _evaluate(model, _data(model, images))
    page = render({"report": json.loads(json.dumps(report.to_json()))})
    assert "The suite, stage by stage" in page
    assert "APGD-T (own)" in page
    assert "Not run:" in page
    text = evaluation.paragraph(report)
    assert text in page.replace("&#39;", "'")
    for words in (
        "Linf",
        "eps = 0.1",
        "version 1",
        "the first 30 of the test set",
        "fewer than the 1,000",
        "APGD-T (own)",
        "seed 0",
    ):
        assert words in text
    assert "(converged)" in text or "(not converged)" in text
    assert evaluation.paragraph(evaluation.RobustnessReport()) == ""


class Opaque(torch.nn.Module):
    """A model that lets no gradient through."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.detach())


def test_a_control_without_a_gradient_has_no_line(images):
    model = Opaque(_model("ann")).eval()
    with pytest.warns(attacks.BluntGradientWarning, match="only transfer and the search"):
        report = _evaluate(model, _data(model, images))
    assert [r["attack"] for r in report.rows] == ["clean", "standard", WORST, NULL, DOUBLED]
    assert "own gradient" not in evaluation.paragraph(report)


def _row(attack, eps, accuracy):
    return {
        "model": "m", "chip": "ideal", "attack": attack, "eps": eps, "accuracy": accuracy, "low": 0.1, "high": 0.9,
        "judge_draws": 1, "selection_draws": 1, "accuracy_10": 0.5,
    }  # fmt: skip


def test_convergence_is_that_of_the_suite():
    """Another attack may find more than the suite, which says nothing of whether the suite has converged."""
    stage = {
        "suite": "standard",
        "version": "1",
        "stage": "APGD",
        "skipped": "",
        "most_gradients": 4,
        "most_forwards": 0,
    }
    rows = [_row("clean", 0.0, 1.0), _row("standard", 0.1, 0.5), _row("PGD", 0.1, 0.4), _row(WORST, 0.1, 0.4)]
    rows.append(_row(DOUBLED, 0.1, 0.48))
    report = evaluation.RobustnessReport({"n": 1000, "seed": 0, "norm": "L2", "bounds": [0, 1]}, rows, stages=[stage])
    assert "moves the accuracy of the suite by 2.0 points (not converged)" in evaluation.paragraph(report)
    rows[-1]["accuracy"] = 0.495
    assert "moves the accuracy of the suite by 0.5 points (converged)" in evaluation.paragraph(report)


def test_the_paragraph_says_only_what_was_done(images):
    model = _model("poisson")
    data = _data(model, images)
    few = {"progress": False, "selection_draws": 2, "judge_draws": 4}
    plain = evaluation.evaluate(model, data, {"pgd": PGD(Linf(EPS), steps=2)}, **few)
    text = evaluation.paragraph(plain)
    assert "through the expectation" not in text
    assert "pgd (PGD(steps=2, " in text
    averaged = evaluation.evaluate(model, data, {"pgd": PGD(Linf(EPS), steps=2, gradient=attacks.EOT(2))}, **few)
    assert "through the expectation" in evaluation.paragraph(averaged)
    assert "EOT(samples=2" in evaluation.paragraph(averaged)
