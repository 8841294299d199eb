"""The examples of the pages on faults, vulnerability and splitting run as written, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "hardware"


@pytest.mark.parametrize(
    ("name", "made"),
    [("faults", "logits"), ("vulnerability", "bits"), ("neuron_splitting", "tmr")],
)
def test_the_example(name, made, capsys):
    text = (PAGES / f"{name}.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, names)
    assert made in names
    assert all((PAGES / target).exists() for target in re.findall(r"\]\(([^)#:]+)\)", text))
