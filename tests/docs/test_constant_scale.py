"""The example of docs/quantization/constant_scale.md runs as written; its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust import codesign, defenses

PATH = Path(__file__).parents[2] / "docs" / "quantization" / "constant_scale.md"
PAGE = PATH.read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block.replace("/tmp/midpoint.png", str(tmp_path / "midpoint.png")), {})
    said = capsys.readouterr().out
    assert re.search(r"midpoint noise level [\d.]+ \[[\d.]+, [\d.]+\], clean \d\d\.\d %", said)
    assert (tmp_path / "midpoint.png").exists()


def test_names_and_links_on_the_page_exist() -> None:
    for name in re.findall(r"codesign\.(\w+)\(", PAGE):
        assert hasattr(codesign, name)
    for name in re.findall(r"defenses\.(\w+)\(", PAGE):
        assert hasattr(defenses, name)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert target.startswith("http") or (PATH.parent / target).exists(), target
