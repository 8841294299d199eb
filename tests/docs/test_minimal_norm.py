"""The example of docs/attacks/minimal_norm.md runs as written, and its tables have every argument with its default."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from torch import nn

from snnrobust.attacks import CW, FAB, DeepFool, MinimalNorm

PAGE = (Path(__file__).parents[2] / "docs" / "attacks" / "minimal_norm.md").read_text()


def test_the_example(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), torch.rand(8, 1, 3, 3)
    names = {"model": model, "x": x, "y": model(x).argmax(1)}
    exec(block, names)
    assert names["distance"].max() <= 0.3
    assert capsys.readouterr().out.startswith("Point(eps=0.03137")


@pytest.mark.parametrize("attack", [CW, FAB, DeepFool, MinimalNorm])
def test_defaults(attack):
    section = PAGE.split(f"\n## {attack.__name__}\n")[1].split("\n## ")[0]
    rows = [[c.strip() for c in row.split(" | ")] for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE)]
    listed = {
        name: value
        for names, values, *_ in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True)
    }
    for field in fields(attack):
        if field.init and field.name not in ("threat", "gradient"):
            value = listed.pop(field.name)
            words = {"None": 0, "True": 1, "False": 0}
            expected = "required" if field.default is MISSING else float(field.default or 0)
            assert (value if value == "required" else float(words.get(value, value))) == expected
    assert not listed
