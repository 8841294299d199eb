"""examples/papers/pcm_drift.py and measured_chip.py run, on a small stand-in for their data."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

PAPERS = Path(__file__).parents[2] / "examples" / "papers"


def run(name, arguments, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, PAPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module.data, "load", lambda name, split: TensorDataset(images, torch.arange(20) % 10))
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    module.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("pcm_drift", "--epochs 1 --train 20 --test 10 --chips 2 --steps 2", 6),
        ("measured_chip", "--epochs 1 --train 20 --more 20 --test 10 --chips 2 --steps 2 --sigmas 0.5", 4),
    ],
)
def test_the_script_prints_its_table(name, arguments, rows, monkeypatch, capsys):
    run(name, arguments, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("| ANN") or line.startswith("| SNN")]
    assert len(table) == rows
    for line in table:
        values = [float(v) for v in re.findall(r"(\d+\.\d) ±", line)]
        assert values
        assert all(0 <= v <= 100 for v in values)
