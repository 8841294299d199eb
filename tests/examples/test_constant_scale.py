"""The study of constant scales at its smallest size."""

import json
import sys
from pathlib import Path

import pytest
import torch

from snnrobust import data
from snnrobust.quantization import frozen

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "papers"))
    import constant_scale

    monkeypatch.setattr(data, "load", lambda name, split: pictures(split))
    return constant_scale


def pictures(split):
    """Ten bright squares with noise: learnt at once."""
    generator = torch.Generator().manual_seed(len(split))
    y = torch.arange(1000) % 10
    x = 0.2 * torch.rand(1000, 1, 28, 28, generator=generator)
    for i, label in enumerate(y.tolist()):
        row, column = divmod(label, 4)
        x[i, 0, 8 * row : 8 * row + 6, 7 * column : 7 * column + 6] += 0.8
    return x, y


def run(study, monkeypatch, capsys, folder, *more):
    monkeypatch.setattr(sys, "argv", ["constant_scale.py", "--quick", "--out", str(folder), *more])
    study.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_resumes_and_shows_its_tables(study, monkeypatch, capsys, tmp_path):
    some = ("--methods", "float", "constant, noisy", "--no-suite", "--kinds", "ANN")
    first = run(study, monkeypatch, capsys, tmp_path, *some)
    assert "mlp-ANN-float-seed0\n" in first
    again = run(study, monkeypatch, capsys, tmp_path, *some)
    table = first[first.index("\n| ANN") :]
    assert again == table
    assert run(study, monkeypatch, capsys, tmp_path, *some, "--tables") == table
    assert (tmp_path / "quick" / "mlp-4bit.md").read_text() + "\n" == table
    found = json.loads((tmp_path / "quick" / "mlp-ANN-float-seed0.json").read_text())
    assert found["kbyte"] == pytest.approx(4e-3 * (784 * 64 + 64 * 64 + 640))
    assert len(found["ratio"]) == 3
    run(study, monkeypatch, capsys, tmp_path, *some, "--figure", "float")
    assert (tmp_path / "quick" / "mlp-ANN-4bit.png").exists()


def test_filled_networks_have_the_range_of_a_constant_scale(study):
    settings = study.Settings()
    for kind in study.KINDS:
        plain = study.untrained(kind, study.METHODS["float"], settings, 0)
        filled = study.untrained(kind, study.METHODS["float, filled"], settings, 0)
        for a, b in zip(study.synaptic(plain).values(), study.synaptic(filled).values(), strict=True):
            assert float(b.weight.detach().abs().max()) == pytest.approx(0.25)
            assert torch.allclose(a.weight / a.weight.abs().max() * 0.25, b.weight)


@pytest.mark.parametrize("name", ["constant", "constant x 4", "min-max", "learned"])
def test_weights_have_the_levels_of_their_scale(study, name):
    """Of 4 bits at most 15 levels; of a constant scale the largest is the limit, whatever the training."""
    method = study.METHODS[name]
    model = frozen(study.untrained("ANN", method, study.Settings(), 0))
    for layer in study.synaptic(model).values():
        assert len(layer.weight.unique()) <= 15
        if method.scale == "constant":
            assert float(layer.weight.detach().abs().max()) == pytest.approx(method.limit)


def test_relative_noise_is_in_units_of_each_layer(study):
    model = study.untrained("ANN", study.METHODS["float"], study.Settings(), 0)
    noise = study.relative(model)(3.0)
    assert list(noise) == ["1", "4", "7"]
    assert noise["1"].additive == pytest.approx(3 * float(model[1].weight.detach().abs().max()))
