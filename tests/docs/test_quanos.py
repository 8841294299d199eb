"""The examples of docs/quantization/quanos.md and activation_density.md run as written; their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust import codesign

FOLDER = Path(__file__).parents[2] / "docs" / "quantization"
QUANOS, DENSITY = FOLDER / "quanos.md", FOLDER / "activation_density.md"


@pytest.mark.parametrize("page", [QUANOS, DENSITY], ids=lambda p: p.stem)
def test_the_example_runs(page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    with torch.random.fork_rng():
        exec(block.replace("/tmp/ans.png", str(tmp_path / "ans.png")), {})
    assert "{" in capsys.readouterr().out
    assert (tmp_path / "ans.png").exists() == (page == QUANOS)


@pytest.mark.parametrize("page", [QUANOS, DENSITY], ids=lambda p: p.stem)
def test_names_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"codesign\.(\w+)\(", text):
        assert hasattr(codesign, name)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_rule_says_what_is_not_verified() -> None:
    assert "the rule from ANS to bits and even its direction" in QUANOS.read_text()
    assert codesign.sensitivity_bits({"a": 1.0, "b": 0.5}, start=8) == {"a": 8, "b": 4}
    assert codesign.sensitivity_bits({"a": 1.0, "b": 0.5}, start=8, direction="fewer") == {"a": 4, "b": 8}
    assert codesign.density_bits({"a": 0.31, "b": 0.5}, 8) == {"a": 2, "b": 4}
