"""docs/hardware.md: its examples run, its links lead somewhere, its procedures are there."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust import attacks, codesign, hardware

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "hardware.md").read_text()


def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block.replace("/tmp/chip.safetensors", str(tmp_path / "chip.safetensors")), names)
    assert capsys.readouterr().out.count("tensor(") == 3


@pytest.mark.parametrize("page", ["hardware.md", *(f"hardware/{p.name}" for p in (FOLDER / "hardware").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    path = FOLDER / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_each_page_is_linked() -> None:
    for path in (FOLDER / "hardware").glob("*.md"):
        assert f"hardware/{path.name}" in PAGE


def test_names_on_the_page_exist() -> None:
    for craft in attacks.CRAFTS:
        assert f'| `"{craft}"` |' in PAGE
    for name in ("SurgicalNoise", "fit_tuner", "tune", "split_neurons", "triplicate_neurons"):
        assert f"`{name}`" in PAGE
        assert hasattr(codesign, name)
    for name in re.findall(r"`hardware\.(\w+)`", PAGE):
        assert hasattr(hardware, name)
