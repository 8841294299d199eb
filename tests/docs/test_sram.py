"""The examples of docs/hardware/sram.md and surgical_noise.md run as written, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "hardware"


@pytest.mark.parametrize("name", ["sram", "surgical_noise"])
def test_the_examples(name, capsys):
    text = (PAGES / f"{name}.md").read_text()
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(block, names)
    assert capsys.readouterr().out
    assert all((PAGES / target).exists() for target in re.findall(r"\]\(([^)#:]+)\)", text))
