"""The study of hybrid precision at its smallest size."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snnrobust import data
from snnrobust.quantization import SignalQuantizer, precision

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "papers"))
    import quanos

    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(200, 1, 28, 28, generator=generator), torch.arange(200) % 10
    monkeypatch.setattr(data, "load", lambda name, split: pair)
    return quanos


def test_each_row_has_the_bits_of_its_name(study):
    settings = replace(study.QUICK, train=60)
    trainings = study.trainings("ANN", 0, settings)
    assert tuple(trainings) == study.ORDER

    def bits(name, done=None):
        return [p.weights for p in precision(trainings[name](done or {})[0]).values()]

    more = bits(study.MORE)
    assert max(more) == 8
    assert min(more) < 8
    density = bits(study.DENSITY)
    assert (density[0], density[-1]) == (8, 8)
    assert max(density[1:-1]) < 8
    done = {study.MORE: {"mean_bits": 5.6, "bits": [3, 4, 8, 7]}}
    assert bits(study.MEAN, done) == [6, 6, 6, 6]
    assert bits(study.FIRST, done) == bits(study.WEIGHTS, done) == [3, 8, 8, 8]
    assert bits(study.IMAGE, done) == [8, 8, 8, 8]

    def images(name):
        model = trainings[name](done)[0]
        return [m.recipe.bits for m in model.modules() if isinstance(m, SignalQuantizer)]

    assert images(study.FIRST) == images(study.IMAGE) == [3, 8, 8, 8]
    assert images(study.WEIGHTS) == [8, 8, 8, 8]


def test_which_pixels_can_change_their_code(study, monkeypatch):
    """Of 1 bit those within eps of the middle of 0 and 1."""
    x = torch.tensor([0.0, 0.2, 0.49, 0.51, 0.9]).view(1, 1, 1, 5)
    monkeypatch.setattr(data, "load", lambda name, split: (x, torch.zeros(1, dtype=torch.int64)))
    assert study.movable(1, replace(study.QUICK, n=1, eps="8/255")) == (pytest.approx(2 / 5), pytest.approx(2 / 4))


def test_sizes_and_means_are_weighted_by_weights(study, monkeypatch):
    settings = replace(study.QUICK, test=20, n=2)
    monkeypatch.setattr(study.attacks, "standard", lambda threat: study.FGSM(threat))
    monkeypatch.setattr(
        study, "evaluate", lambda *a, **k: type("R", (), {"rows": [{"attack": "worst case", "accuracy": 0.5}]})
    )
    found = study.measure(study.build("ANN", 0, settings), settings)
    weights = np.array([16 * 9, 32 * 16 * 9, 32 * 49 * 64, 64 * 10])
    assert found["bits"] == [32] * 4
    assert found["bytes"] == 4 * weights.sum()
    assert found["mean_bits"] == 32
    assert found["cmos_total"] > found["cmos_usual"] > 0


def test_tables_from_what_is_there(study, monkeypatch, capsys, tmp_path):
    row = {
        "clean": 0.9, "robust": 0.25, "bits": [8, 4], "bytes": 1000, "mean_bits": 5.0, "measured": {"0": 0.1, "4": 0.2},
        "cmos_usual": 1.0, "cmos_total": 2.0, "scalable_usual": 3.0, "scalable_total": 4.0,
    }  # fmt: skip
    for seed in range(2):
        (tmp_path / f"ANN-{seed}.json").write_text(json.dumps({study.EIGHT: row, study.MORE: {**row, "bytes": 500}}))
    monkeypatch.setattr(sys, "argv", ["quanos.py", "--tables", "--out", str(tmp_path)])
    study.main()
    said = capsys.readouterr().out
    assert (
        f"| {study.MORE} | 90.0 [90.0, 90.0] | 25.0 [25.0, 25.0] (20 to 31) | 8 4; 8 4 | 0.5 | 2.00 | 1, 2 | 3, 4 |"
        in said
    )
    assert "ANS by layer, each seed: 0.10, 0.20; 0.10, 0.20" in said
    monkeypatch.setattr(sys, "argv", ["quanos.py", "--tables", "--n", "7", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="other settings"):
        study.main()
