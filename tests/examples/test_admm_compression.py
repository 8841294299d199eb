"""The study of ADMM at its smallest size, with one weak attack in the place of the suite."""

import json
import sys
from pathlib import Path

import pytest
import torch

from snnrobust import attacks, data
from snnrobust.attacks import FGSM

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "papers"))
    import admm_compression

    monkeypatch.setattr(data, "load", lambda name, split: pictures(split))
    monkeypatch.setattr(attacks, "standard", FGSM)
    return admm_compression


def pictures(split):
    generator = torch.Generator().manual_seed(len(split))
    return torch.rand(120, 1, 28, 28, generator=generator), torch.arange(120) % 10


def run(study, monkeypatch, capsys, folder, *more):
    sizes = ["--quick", "--seeds", "1", "--train", "64", "--test", "40", "--n", "6"]
    monkeypatch.setattr(sys, "argv", ["admm_compression.py", *sizes, "--out", str(folder), *more])
    study.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_and_goes_on(study, monkeypatch, capsys, tmp_path):
    first = run(study, monkeypatch, capsys, tmp_path)
    assert first.count("CPU seconds so far") == 2 * len(study.ORDER)
    folder = tmp_path / "quick"
    found = json.loads((folder / "ANN-0.json").read_text())
    assert list(found) == list(study.ORDER)
    assert found["dense"]["compression"] == 1
    assert all(row["differs"] < 1e-4 for row in found.values())
    kept = found["ADMM filters"]["kept"]
    assert kept == found["one-shot filters"]["kept"] == 8 * 9 + 8 * 8 * 9 + 16 * 8 * 49 + 16 * 10
    for bits in study.BITS:
        row = found[study.by_admm(bits)]
        assert row["bits"] == bits * kept
        assert row["compression"] == pytest.approx(32 * 105_744 / (bits * kept))
        assert len(row["residuals"]["rounds"]) == 1
    del found[study.DIRECTLY]
    (folder / "ANN-0.json").write_text(json.dumps(found))
    again = run(study, monkeypatch, capsys, tmp_path)
    assert again.count("CPU seconds so far") == 1
    table = again[again.index("| ANN") :]
    assert table == first[first.index("| ANN") :]
    assert table.count("\n|") == 2 * (1 + len(study.ORDER)) + 1
    assert run(study, monkeypatch, capsys, tmp_path, "--tables") == table
    with pytest.raises(SystemExit, match="other settings"):
        run(study, monkeypatch, capsys, tmp_path, "--eps", "1/255")


def test_bits_are_those_of_the_levels(study):
    for bits in study.BITS:
        levels = study.levels_of(bits).levels
        assert len(levels.values()) == 2**bits - 1
        assert levels.bits == bits
