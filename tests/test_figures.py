"""Figures share one look, need no pyplot and leave settings alone."""

import subprocess
import sys

import matplotlib
import pytest

from snnrobust import figures


def draw(path):
    with figures.style():
        made = figures.figure(2, 1)
        made.subplots().plot([0, 1], label="$x$")
        figures.save(made, path)


def test_settings_are_ours_inside_and_the_users_afterwards(tmp_path):
    with matplotlib.rc_context({"font.size": 3.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        with figures.style():
            assert matplotlib.rcParams["font.size"] == figures.TEXT
            assert matplotlib.rcParams["axes.facecolor"] == figures.PAPER
        draw(tmp_path / "figure.png")
        assert dict(matplotlib.rcParams) == before


def test_no_pyplot_and_no_display(tmp_path):
    code = f"""
import sys
from snnrobust import figures
assert "matplotlib" not in sys.modules
with figures.style():
    figures.save(figures.figure(1, 1), {str(tmp_path / "figure.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "figure.png").stat().st_size > 100


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_the_ending_is_the_format(tmp_path, name, start):
    draw(tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_an_unknown_format_writes_nothing(tmp_path):
    for name in ("a.docx", "a", ".png"):
        with pytest.raises(ValueError, match=r"path must end in one of .*: use \.png"):
            draw(tmp_path / name)
    assert not list(tmp_path.iterdir())
