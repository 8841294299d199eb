"""docs/quantization.md: its examples run, its links lead somewhere, its names exist."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from snnrobust import experiments, quantization
from snnrobust.experiments.config import QuantizationSection

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "quantization.md").read_text()


def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block.replace("/tmp/small.safetensors", str(tmp_path / "small.safetensors")), names)
    out = capsys.readouterr().out
    assert "times smaller than 32-bit weights" in out
    assert (tmp_path / "small.safetensors").exists()


def test_the_section_of_an_experiment_file_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    section = QuantizationSection.model_validate(tomllib.loads(block)["quantization"])
    assert set(section.quantizers()) == {"weights", "inputs"}


def test_the_example_file_is_valid() -> None:
    experiment, _ = experiments.read(FOLDER.parent / "examples" / "quantized.toml")
    assert [m.quantization is not None for m in experiment.models] == [True, True, True]


@pytest.mark.parametrize(
    "page", ["quantization.md", *(f"quantization/{p.name}" for p in (FOLDER / "quantization").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    path = FOLDER / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_each_page_is_linked() -> None:
    for path in (FOLDER / "quantization").glob("*.md"):
        assert f"quantization/{path.name}" in PAGE


def test_every_level_set_is_on_the_page() -> None:
    for name in quantization.LEVELS:
        assert f"`{name}(" in PAGE
