"""The study runs on a small stand-in, goes on where it stopped, and refuses a folder of other settings."""

import importlib.util
import sys
from pathlib import Path

import pytest

from snnrobust.models import Dense

PATH = Path(__file__).parents[2] / "examples" / "papers" / "sram_surgical_noise.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("sram_script", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sram_script", module)
    spec.loader.exec_module(module)
    small = {
        "LAYERS": (Dense(8),), "STEPS": 2, "EPOCHS": 1, "TRAINED": 200, "SELECTED": 20, "GIVEN": 20, "HARDER": 5,
        "VOLTAGES": (0.79,), "RATIOS": ("2:6",), "ATTACKED": ((0.79, "0:8"),),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.slow
def test_the_study_goes_on_where_it_stopped(script, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        common = ["--data", "digits", "--seeds", "2", "--judged", "30", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [PATH.name, *common, *arguments])
        script.main()
        return capsys.readouterr().out

    first = run("--parts", "defence")
    assert first.count("| FGSM |") == 4
    assert "as many random ones" not in first
    everything = run()
    assert everything.count("seed 0") == 2  # for the parts that were missing
    assert everything.count("| 0.79 V_min | 0:8 |") == 2
    assert "EOT(16)" in everything
    assert "seed 0" not in run()
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit):
        run()
