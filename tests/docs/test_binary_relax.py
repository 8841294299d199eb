"""The examples of docs/quantization/binary_relax.md and en_resnet.md run as written; their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "docs" / "quantization"
RELAX, ENSEMBLE = FOLDER / "binary_relax.md", FOLDER / "en_resnet.md"


def run(page: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    with torch.random.fork_rng():
        exec(block, {})


def test_the_example_of_binary_relax_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(RELAX)
    said = capsys.readouterr().out
    assert said.startswith("[0.0, 0.5, 1.0]\n")
    (zeros,) = re.findall(r"all layers +[\d,]+ +([\d.]+)%", said)
    assert 10 < float(zeros) < 90


def test_the_example_of_en_resnet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(ENSEMBLE)
    assert "PGD" in capsys.readouterr().out


@pytest.mark.parametrize("page", [RELAX, ENSEMBLE], ids=lambda p: p.stem)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_tables_have_the_rows_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parents[1] / "examples" / "papers"))
    import binary_relax as study

    page = RELAX.read_text()
    tables = re.split(r"\n(?=\| (?:ANN|SNN) \|)", page)[1:]
    names = [re.findall(r"^\| ([^|]+) \| \d", table, re.MULTILINE) for table in tables]
    assert names == [list(study.ROWS), list(study.ROWS)[:5]]
