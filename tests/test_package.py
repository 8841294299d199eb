"""The package as a user meets it: importing it, the README, the links."""

import os
import re
import subprocess
import sys
from pathlib import Path

import snnrobust

ROOT = Path(__file__).parents[1]


def test_importing_is_silent_and_light() -> None:
    """Nothing is imported, not even torch, before it is asked for."""
    code = "import sys, snnrobust; print([m for m in ('torch', 'matplotlib', 'rich', 'pydantic', 'sklearn') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_parts_are_light_too() -> None:
    heavy = "('matplotlib', 'rich', 'pydantic', 'sklearn', 'lightning_fabric', 'jinja2')"
    code = (
        "import sys; from snnrobust import attacks, data, encoders, evaluation, hardware, layers, models, neurons;"
        "from snnrobust import learning_rules, quantization;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_every_public_name_is_there() -> None:
    for name in snnrobust.__all__:
        assert getattr(snnrobust, name) is not None
    assert set(snnrobust.__all__) <= set(dir(snnrobust))


def test_the_links_lead_into_the_package() -> None:
    for name in ("encoders", "learning_rules", "attacks"):
        assert (ROOT / name).resolve() == ROOT / "snnrobust" / name


def test_the_readme_shows_the_quickstart_and_it_runs(tmp_path: Path) -> None:
    shown = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    code = (ROOT / "examples" / "quickstart.py").read_text().split('"""\n\n', 1)[1]
    assert shown.group(1) == code
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert "noisy 4-bit" in result.stdout
    assert "gradient: consistent" in result.stdout
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_readme_names_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
