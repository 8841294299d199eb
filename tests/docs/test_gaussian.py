"""The example of docs/hardware/gaussian.md runs as written."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "hardware" / "gaussian.md").read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, namespace)
    sigma, ratios, once, voted = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(r"print\(round\(backend.sigma, 3\), backend\) +# (.*)\.\.\.\n", block)
    assert sigma.startswith(shown)
    assert [abs(float(r) - 4.0) < 1.5 for r in re.findall(r": ([\d.]+)", ratios)] == [True] * 3
    assert re.fullmatch(r"\d+%", once)
    assert re.fullmatch(r"\d+%, 20 passes", voted)
    assert int(voted.split("%")[0]) >= int(once.rstrip("%"))


def test_every_argument_is_on_the_page() -> None:
    import inspect

    from snnrobust.hardware import GaussianNoise

    for name in inspect.signature(GaussianNoise).parameters:
        assert f"| `{name}` |" in PAGE
