"""What docs/models.md shows works, and its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from snnrobust.encoders import Rows
from snnrobust.models import ARCHITECTURES, NORMS, ordinary, smallest_image, spiking

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ROWS = re.findall(
    r"^\| (`[\w-]+`(?:, `[\w-]+`)*) \| [^|]+ \| ([\d,]+|too small) \| ([\d,]+) \| (\d+) \|", PAGE, re.MULTILINE
)
NAMED = [(name, *numbers) for names, *numbers in ROWS for name in re.findall(r"`([^`]+)`", names)]


def _size(model):
    return f"{sum(p.numel() for p in model.parameters()):,}"


def test_the_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)


def test_every_name_has_a_row():
    assert [name for name, *_ in NAMED] == list(ARCHITECTURES)


@pytest.mark.parametrize(("name", "small", "large", "side"), NAMED)
def test_numbers_of_the_table(name, small, large, side):
    assert int(side) == smallest_image(ARCHITECTURES[name])
    with torch.device("meta"):
        assert _size(ordinary(ARCHITECTURES[name], (3, 32, 32), 10)) == large
        if small == "too small":
            assert int(side) > 28
        else:
            assert _size(ordinary(ARCHITECTURES[name], (1, 28, 28), 10)) == small


def test_numbers_of_the_text():
    with torch.device("meta"):
        size = _size(spiking(ARCHITECTURES["recurrent"], (1, 28, 28), 10, Rows(28)))
    assert f"Its SNN has {size} parameters" in PAGE


def test_every_norm_is_named():
    assert [n for n in NORMS if f'`"{n}"`' in PAGE] == list(NORMS)
