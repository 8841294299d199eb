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
MEASURES = "clean", "robust", "bytes", "zero", "silent", "unused", "usual", "total"


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


@pytest.fixture
def trained(study, monkeypatch):
    """Which rows are trained; a number of each stands for the model and its measures."""
    seen = []

    def train(kind, seed, row, s):
        seen.append((kind, seed, next(name for name, r in study.ROWS.items() if r is row)))
        return len(seen)

    def measure(model, s):
        return dict.fromkeys(MEASURES, model / 100)

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "measure", measure)
    return seen


def start(study, monkeypatch, folder, *more):
    monkeypatch.setattr(sys, "argv", ["binary_relax.py", "--out", str(folder), *more])
    study.main()


def test_an_interrupted_run_goes_on_where_it_was(study, trained, monkeypatch, tmp_path):
    whole, kinds = list(study.ROWS), study.KINDS
    measure = study.measure

    def killed(model, s):
        if model == 3:
            raise KeyboardInterrupt
        return measure(model, s)

    monkeypatch.setattr(study, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        start(study, monkeypatch, tmp_path)
    first = json.loads((tmp_path / "ANN-0.json").read_text())
    assert list(first) == whole[:2]
    monkeypatch.setattr(study, "measure", measure)
    del trained[:]
    start(study, monkeypatch, tmp_path)
    everything = [(kind, seed, name) for seed in range(2) for kind in kinds for name in whole]
    assert trained == everything[2:]
    again = json.loads((tmp_path / "ANN-0.json").read_text())
    assert list(again) == whole
    assert {name: again[name] for name in first} == first
    del trained[:]
    start(study, monkeypatch, tmp_path)
    assert trained == []


def test_what_is_chosen_is_trained(study, trained, monkeypatch, tmp_path):
    rows = ["4 bits, Binary-Relax", "float"]
    start(study, monkeypatch, tmp_path, "--only", "SNN", "--seeds", "1", "--rows", *rows)
    assert trained == [("SNN", 0, name) for name in rows]
    assert not list(tmp_path.glob("ANN*"))
    start(study, monkeypatch, tmp_path, "--quick", "--only", "SNN", "--seeds", "1", "--rows", *rows)
    assert len(trained) == 4  # a folder of its own
    settings = json.loads((tmp_path / "quick" / "settings.json").read_text())
    assert settings["train"] == study.QUICK.train
    with pytest.raises(SystemExit):
        start(study, monkeypatch, tmp_path, "--rows", "8 bits")


def test_intervals_pool_the_seeds(study, trained, monkeypatch, capsys, tmp_path):
    (tmp_path / "ANN-0.json").write_text(json.dumps({"float": dict.fromkeys(MEASURES, 0.2)}))
    (tmp_path / "ANN-1.json").write_text(json.dumps({"float": dict.fromkeys(MEASURES, 0.4)}))
    start(study, monkeypatch, tmp_path, "--tables")
    said = capsys.readouterr().out
    z, p, n = 1.959964, 0.3, 100  # Wilson's, of 30 in 100
    centre, half = (p + z * z / (2 * n)), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"| float | 30.0 [20.0, 40.0] | 30.0 [20.0, 40.0] ({low:.0f} to {high:.0f}) |" in said
    assert trained == []


def test_only_one_scale_a_layer_can_silence_an_output(study):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(0, -3, 16)[:, None, None, None]
    weight = sizes * torch.randn(16, 8, 3, 3, generator=generator)

    def silent(row):
        return int((study.ROWS[row].weights(weight).flatten(1) == 0).all(1).sum())

    assert silent("ternary, Binary-Relax") == silent("4 bits, Binary-Relax") == 0
    assert silent("ternary, one scale a layer, Binary-Relax") > 8
