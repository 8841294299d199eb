"""The examples of docs/rules/fa.md, dfa.md and le.md run as written."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust.learning_rules import RULES

PAGES = Path(__file__).parents[2] / "docs" / "rules"


@pytest.mark.parametrize("name", ["fa", "dfa", "le"])
def test_the_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), re.DOTALL)
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, found)
    gradient, x = found["gradient"], found["x"]
    assert isinstance(gradient, torch.Tensor)
    assert isinstance(x, torch.Tensor)
    assert gradient.shape == x.shape
    assert isinstance(found["rule"], RULES[name.upper()])
    assert ("network.1" in capsys.readouterr().out) == (name == "fa")
