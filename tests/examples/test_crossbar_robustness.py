"""The study of crossbars runs on a small stand-in, goes on where it stopped, and draws its figure."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "papers" / "crossbar_robustness.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("crossbar_robustness", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crossbar_robustness", module)
    spec.loader.exec_module(module)
    tiny = replace(
        module.QUICK, images=8, trained=60, epochs=1, fitted=20, sizes=(8,), spiking_sizes=(8,), time_steps=(1,)
    )
    monkeypatch.setattr(module, "QUICK", replace(tiny, counted=10))
    return module


@pytest.mark.slow
def test_every_part_but_the_suite(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "GAINS", ("none", "BatchNorm"))
    parts = ["--parts", "ann", "transfer", "noise", "snn", "time", "dlr"]
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--out", str(tmp_path), *parts])
    script.main()
    first = capsys.readouterr().out
    for heading in ("Ordinary network", "Spiking network, T = 4", "Other chips", "Read noise", "Time steps"):
        assert f"### {heading}" in first
    assert "| ideal | BatchNorm |" in first
    assert "| 8 | none |" in first
    assert (tmp_path / "crossbar-robustness.png").is_file()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--out", str(tmp_path), *parts])
    script.main()
    assert capsys.readouterr().out.split("digits")[-1] == first.split("digits")[-1]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()} == before
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--eps", "1/255", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="other settings"):
        script.main()
