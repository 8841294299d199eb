"""The examples of docs/hardware/pcm.md, rram.md and measured_chip.md run as written."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust.hardware.rram import WAN_2022

PAGES = Path(__file__).parents[2] / "docs" / "hardware"


@pytest.mark.parametrize("name", ["pcm", "rram", "measured_chip"])
def test_the_example(name, capsys, tmp_path, monkeypatch):
    text = (PAGES / f"{name}.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, {})
    assert capsys.readouterr().out
    assert all((PAGES / target).exists() for target in re.findall(r"\]\(([^)#:]+)\)", text))


def test_the_coefficients_on_the_page_are_those_of_the_code():
    rows = re.findall(r"^\| (?:1 s|1 day|2 days) \| (.*) \|$", (PAGES / "rram.md").read_text(), re.MULTILINE)
    assert [tuple(map(float, row.split("|"))) for row in rows] == [point[1:] for point in WAN_2022]
