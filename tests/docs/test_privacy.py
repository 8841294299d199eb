"""The example of the page about quantization and membership inference runs."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "quantization" / "privacy.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    block = block.replace("(1, 5, 20)", "(1, 4)").replace("shadows=4", "shadows=2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, {})
    printed = capsys.readouterr().out
    assert printed.count("2 victims") == 4
    assert printed.count("offline LiRA, float shadows: auc") == 2


def test_the_page_points_at_what_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
