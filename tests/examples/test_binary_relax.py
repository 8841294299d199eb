"""The study of Binary-Relax at its smallest size."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snnrobust import data
from snnrobust.attacks import FGSM
from snnrobust.quantization import frozen
from snnrobust.quantization.weights import WeightQuantizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "papers"))
    import binary_relax

    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(64, 1, 28, 28, generator=generator), torch.arange(64) % 10
    monkeypatch.setattr(data, "load", lambda name, split: pair)
    return binary_relax


@pytest.mark.parametrize("kind", ["ANN", "SNN"])
def test_relaxed_training_ends_on_the_levels(study, kind):
    s = replace(study.QUICK, train=32, attack_steps=1)
    model = study.train(kind, 0, study.ROWS["ternary, Binary-Relax"], s)
    assert {float(m.theta) for m in model.modules() if isinstance(m, WeightQuantizer)} == {1.0}
    for layer in frozen(model).modules():
        if hasattr(layer, "weight") and isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            assert all(len(row.unique()) <= 3 for row in layer.weight.flatten(1))


def test_measures_of_a_row(study, monkeypatch):
    s = replace(study.QUICK, train=32, test=20, attack_steps=1)
    monkeypatch.setattr(study.attacks, "standard", lambda threat: FGSM(threat))
    found = study.measure(study.train("ANN", 0, study.ROWS["ternary, straight through"], s), s)
    plain = study.measure(study.train("ANN", 0, study.ROWS["float"], s), s)
    assert 0.1 < found["zero"] < 0.9
    assert plain["zero"] == 0
    assert found["bytes"] < plain["bytes"] / 10
    assert found["usual"] < plain["usual"]
    assert 0 <= found["robust"] <= 1


def test_tables_from_what_is_there(study, monkeypatch, capsys, tmp_path):
    row = {
        "clean": 0.5, "robust": 0.4, "bytes": 1500, "zero": 0.25, "silent": 0.1, "unused": 0.0, "usual": 10.0, "total": 20.0,
    }  # fmt: skip
    for seed in range(2):
        (tmp_path / f"SNN-{seed}.json").write_text(json.dumps({"float": row}))
    monkeypatch.setattr(sys, "argv", ["binary_relax.py", "--tables", "--out", str(tmp_path)])
    study.main()
    said = capsys.readouterr().out
    assert "| float | 50.0 [50.0, 50.0] | 40.0 [40.0, 40.0] (31 to 50) | 25.0, 10.0, 0.0 | 1.5 | 10, 20 |" in said
    monkeypatch.setattr(sys, "argv", ["binary_relax.py", "--tables", "--members", "7", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="other settings"):
        study.main()
