"""The examples of docs/rules/conversion.md and stdb.md run as written, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "rules"


@pytest.mark.parametrize("name", ["conversion", "stdb"])
def test_the_example(name, capsys):
    text = (PAGES / f"{name}.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block.replace("progress=True", "progress=False"), names)
    assert names["history"].last["validation_accuracy"] > 0.7
    assert capsys.readouterr().out
    assert all((PAGES / target).exists() for target in re.findall(r"\]\(([^)#:]+)\)", text))
