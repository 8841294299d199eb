"""The measuring script for a GPU, as far as it runs without one. No times are asserted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import gpu
from benchmarks.gpu import Result


def _has_triton(monkeypatch, has):
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if has else None)


def test_without_a_gpu_it_says_so_and_what_can_be_done(monkeypatch, capsys):
    _has_triton(monkeypatch, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "No GPU" in (said := capsys.readouterr().out)
    assert "--interpret" in said


def test_without_triton_it_says_so(monkeypatch, capsys):
    _has_triton(monkeypatch, False)
    assert gpu.main(["--interpret"]) == 2
    assert "pip install triton" in capsys.readouterr().out


def test_arguments_are_checked(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_contenders_take_turns_after_a_warm_up():
    log = []

    def clock(call, times):
        for _ in range(times):
            call()
        return {"a": 1.0, "b": 5.0}[log[-1]]

    samples = gpu.turns({name: lambda name=name: log.append(name) for name in "ab"}, 2, clock, at_least=2.0)
    assert "".join(log) == 6 * "a" + 6 * "b" + 2 * "aab"
    assert samples == {"a": [1.0, 1.0], "b": [5.0, 5.0]}


def test_ratios_and_targets():
    result = Result(
        "LIF",
        {
            "snnrobust, x": [2.0],
            "snnrobust, h": [4.0],
            "SpikingJelly, triton": [3.0],
            "SpikingJelly, torch": [9.0],
            "copy": [1.5],
        },
        {"snnrobust, x": [1.0], "snnrobust, h": [2.0], "copy": [0.9]},
        "copy",
    )
    assert result.rival() == "SpikingJelly, triton"
    assert result.share("snnrobust, x") == pytest.approx(0.9)
    assert result.share("SpikingJelly, triton") is None
    assert list(result.verdicts()) == [
        "LIF: 0.90 of the copy bandwidth (kernels alone), target 0.8: met",
        "LIF: 1.50 times the speed of SpikingJelly, triton, target above 1: met",
    ]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(result.table())
    assert "0.45" in capture.get()


def test_what_is_missed_or_not_measured_is_said():
    slow = Result("LIF", {"snnrobust": [4.0], "SpikingJelly, cuda": [1.0]}, {"snnrobust": [4.0], "copy": [1.0]}, "copy")
    assert [verdict.rpartition(": ")[2] for verdict in slow.verdicts()] == ["MISSED", "MISSED"]
    assert list(Result("step", {"snnrobust": [1.0]}).verdicts()) == ["step: SpikingJelly was not measured"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_are_checked_under_the_interpreter():
    code = (
        "from benchmarks import gpu; import torch; assert gpu.main(['--interpret']) == 0;"
        "[call() for call in gpu.lif_forward_backward((3, 2, 70), torch.device('cpu')).values()]"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env={**os.environ}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "Nothing was measured" in found.stdout
