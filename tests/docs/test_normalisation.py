"""The examples of docs/normalisation.md run as written."""

import re
from pathlib import Path

import matplotlib.image
import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "normalisation.md").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec("\n".join(blocks), {})
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"print\(gamma_profile\(model\)\)  # (.*)", PAGE)
    assert printed.splitlines()[0] == shown
    whole, cut = map(int, re.findall(r"accumulates: (\d+) with 8 steps, (\d+) with 5", printed)[0])
    assert 0 < cut < whole
    assert "exit at confidence" in printed
    assert matplotlib.image.imread(tmp_path / "curve.png").ndim == 3


def test_the_place_of_the_measured_tables_is_there() -> None:
    assert re.search(r"<!-- mnist tables -->\n(.*\n)*<!-- end -->", PAGE)
