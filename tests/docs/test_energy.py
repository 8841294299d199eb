"""The examples of docs/energy.md run as written, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "energy.md").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        exec("\n".join(blocks), found)
    printed = capsys.readouterr().out
    assert "forgotten nJ" in printed
    assert "'Effective_ACs'" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"energy.json", "energy.png"}
    kinds = {part.what for part in found["report"].parts}  # type: ignore[attr-defined]
    assert {"AC", "normalisation", "encoder", "membranes"} <= kinds
    assert all(f"`{kind}`" in PAGE for kind in kinds)


def test_links() -> None:
    for target in re.findall(r"\]\((?!http)([^)#:]+)", PAGE):
        assert (DOCS / target).exists(), target
