"""The example of docs/diagnosis.md runs, and the page has every check."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust import evaluation

PAGE = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()


@pytest.mark.slow
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, {})
    printed = capsys.readouterr().out
    assert printed.startswith("gradient: masked")
    assert "  failed       no other surrogate finds far more" in printed


def test_every_check_is_on_the_page() -> None:
    for name in evaluation.CHECKS:
        assert f"| `{name}` |" in PAGE
