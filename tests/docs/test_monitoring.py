"""The examples of docs/monitoring.md run as written."""

import json
import re
from pathlib import Path

import matplotlib.image
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "monitoring.md").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    with torch.random.fork_rng():
        exec("\n".join(blocks), {})
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"```\n(layer .*?)```", PAGE, re.DOTALL)
    first = printed[printed.index("layer       type    kind") :].splitlines()
    for line, expected in zip(
        first, shown.splitlines(), strict=False
    ):  # weights, and so events, differ with the processor
        columns = 4 if expected.startswith("all") else 7
        assert line.split()[:columns] == expected.split()[:columns]
    saved = json.loads((tmp_path / "operations.json").read_text())
    assert 0 < saved["ac"] < saved["dense_mac"]
    for name in ("rates", "raster", "membranes"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").ndim == 3
        assert (DOCS / "images" / f"monitoring-{name}.png").is_file()
    assert len(list(tmp_path.iterdir())) == 4
