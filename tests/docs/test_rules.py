"""Every example of the pages about learning rules runs, on fewer samples and for one epoch."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust import data

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "learning_rules.md", DOCS / "training.md", *sorted((DOCS / "rules").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem} {number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if "torchrun" not in block
]


@pytest.mark.filterwarnings("ignore::snnrobust.learning_rules.TrainingWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_the_example_runs(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = data.load
    monkeypatch.setattr(data, "load", lambda *names: data.take(load(*names), 200))
    monkeypatch.chdir(tmp_path)
    block = re.sub(r"epochs=\d+", "epochs=1", block)
    block = re.sub(r"^assert .*$", "", block, flags=re.MULTILINE)  # of the training that is written there
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, found)
    if "gradient" in found:
        assert found["gradient"].shape == found["x"].shape  # type: ignore[attr-defined]


def test_every_page_has_an_example() -> None:
    for page in PAGES:
        assert "```python" in page.read_text(), page
        assert all(
            (page.parent / target).exists() for target in re.findall(r"\]\((?!http)([^)#:]+)\)", page.read_text())
        )
