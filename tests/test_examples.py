"""The scripts in examples/ that need data of their own run, on a small stand-in."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import TensorDataset

PATH = Path(__file__).parents[1] / "examples" / "mnist.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mnist_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mnist_script", module)
    spec.loader.exec_module(module)
    images, labels = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
    monkeypatch.setattr(module.data, "load", lambda name, split: TensorDataset(images, labels))
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "COUNTED", 6)
    runs = [module.Run(encoder, norm=norm, images=8) for encoder in module.ENCODERS for norm in ("BNTT", "none")]
    monkeypatch.setattr(module, "RUNS", runs)
    monkeypatch.setattr(module, "MAIN", [run for run in runs if run.norm == "BNTT"])
    return module


def test_the_mnist_script_goes_on_where_it_stopped(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--output", str(tmp_path), "--only", "poisson"])
    script.main()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--output", str(tmp_path)])
    capsys.readouterr()
    script.main()
    first = capsys.readouterr().out
    assert "training mnist-poisson" not in first
    assert first.count("training mnist-direct") == 2
    tables = (tmp_path / "tables.md").read_text()
    assert tables.count("\n| direct |") == 8 + len(script.CONFIDENCES)  # a row for each step and each confidence
    assert (tmp_path / "exit.png").is_file()
    script.main()
    assert capsys.readouterr().out.strip() == tables  # nothing is computed again
    monkeypatch.setattr(script, "SETTINGS", {"epochs": 2})
    with pytest.raises(SystemExit):
        script.main()
