import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Without batch norm the mean over both halves of a batch is the mean over the batch."""
    results = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.pt"
        script = Path(__file__).with_name("parallel.py")
        subprocess.run([sys.executable, script, str(processes), path], check=True, timeout=300, capture_output=True)
        results.append(torch.load(path, weights_only=True))
    one, two = results
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, weight in one["weights"].items():
        assert (two["weights"][name] - weight).abs().max() < 1e-5
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["epoch"] == b["epoch"]
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert a["accuracy"] == b["accuracy"]
        assert a["validation_accuracy"] == b["validation_accuracy"]
