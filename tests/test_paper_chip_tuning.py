"""The study of chip tuning runs on a small stand-in, and goes on where it stopped."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

PATH = Path(__file__).parents[1] / "examples" / "papers" / "chip_tuning.py"


@pytest.mark.slow
def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("chip_tuning_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    x = torch.rand(600, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    stand_in = TensorDataset(x, torch.arange(600) % 10)
    other = TensorDataset(1 - x[:40], torch.arange(40) % 10)
    monkeypatch.setattr(script.data, "load", lambda name, split: stand_in if split == "train" else other)
    monkeypatch.setattr(
        script, "PARTS", {"model": (0, 300), "knobs": (0, 300), "validation": (300, 500), "pool": (500, 550)}
    )
    monkeypatch.setattr(script, "ATTACKED_CHIPS", 1)
    run = [
        "--chips",
        "16",
        "--judged",
        "4",
        "--images",
        "40",
        "--clusters",
        "2",
        "--steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["chip_tuning.py", *run, "--plot", str(tmp_path / "tuning.png")])
    script.main()
    first = capsys.readouterr().out
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert (tmp_path / "tuning.png").is_file()
    assert first.count("| optimum of each chip |") == 2
    script.main()
    assert capsys.readouterr().out == first[first.index("| network") :]
