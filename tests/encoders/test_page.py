"""The examples of docs/encoders.md work as shown."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import torch

from snnrobust.encoders import ENCODERS
from snnrobust.experiments.component import Component, make

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "encoders.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _run(code: str, names: dict[str, object]) -> None:
    """Run ``code``, and compare the shape that a line's comment gives with that of the line's result."""
    exec(code, names)
    for name, shape in re.findall(r"^ *(\w+) = .*#.*?\[([\d, ]+)\]$", code, re.MULTILINE):
        result = names[name]
        assert isinstance(result, torch.Tensor)
        assert list(result.shape) == [int(n) for n in shape.split(",")]


def test_every_encoder_has_its_section_and_its_row() -> None:
    assert set(SECTIONS) == set(ENCODERS)
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(ENCODERS)
    for name, draws in re.findall(r"^\| `(\w+)` \|(?:[^|\\]|\\.)*\|(?:[^|\\]|\\.)*\| (yes|no) \|", PAGE, re.MULTILINE):
        assert ENCODERS[name](4).stochastic == (draws == "yes")


def test_what_stands_before_the_sections() -> None:
    before = PAGE.split("### ")[0]
    blocks = _blocks(before, "python")
    assert len(blocks) == 2
    for block in blocks:
        _run(block, {})


@pytest.mark.parametrize("name", SECTIONS)
def test_python_and_toml_make_the_same_encoder(name: str) -> None:
    names: dict[str, object] = {}
    _run(_blocks(PAGE.split("### ")[0], "python")[-1], names)
    (code,), (toml,) = _blocks(SECTIONS[name], "python"), _blocks(SECTIONS[name], "toml")
    _run(code, names)
    assert "spikes" in names
    component = Component.model_validate(tomllib.loads(toml)["encoder"])
    assert component.type == name
    assert repr(make(component, ENCODERS, "encoder")) == repr(names["encoder"])


def test_links_and_the_picture_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / target).exists(), target


@pytest.mark.slow
def test_the_picture_is_what_its_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("figure", DOCS / "figures" / "encoders.py")
    assert spec is not None
    assert spec.loader is not None
    figure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure)
    monkeypatch.setattr(figure, "IMAGE", tmp_path / "images" / "encoders.png")
    figure.main()
    assert (tmp_path / "images" / "encoders.png").stat().st_size > 10_000
