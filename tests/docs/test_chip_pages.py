"""The examples of the pages about varied weights and chip tuning run."""

import re
from pathlib import Path

import pytest
import torch

PAGES = [Path(__file__).parents[2] / "docs" / "hardware" / f"{name}.md" for name in ("variation", "chip_tuning")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, found)
    printed = capsys.readouterr().out
    assert "yield at" in printed or len(printed.split()) == 3
    if "chip_tuning" in page.name:
        report, before = found["report"], found["chip"]
        assert report.after.mean() > report.before.mean()  # type: ignore[attr-defined]
        assert found["better"] is not before


def test_the_pages_point_at_what_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
