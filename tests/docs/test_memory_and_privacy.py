"""The examples of the pages about bit flips and membership inference run, for fewer epochs."""

import re
from pathlib import Path

import pytest
import torch

PAGES = [Path(__file__).parents[2] / "docs" / "attacks" / f"{name}.md" for name in ("bit_flips", "membership")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    block = re.sub(r"epochs=\d+", "epochs=1", block).replace("pool, 8)", "pool, 2)")
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, found)
    printed = capsys.readouterr().out
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
    assert "random flips" in printed or printed.count("AUC") == 2


def test_the_pages_point_at_what_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
