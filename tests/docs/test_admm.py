"""The example of the page about ADMM runs."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "quantization" / "admm.md"


@pytest.mark.filterwarnings("ignore::snnrobust.codesign.ADMMWarning")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, found)
    printed = capsys.readouterr().out
    assert "primal" in printed
    assert "times smaller" in printed
    small, train = found["small"], found["train"]
    whole = found["found"].model  # type: ignore[attr-defined]
    torch.testing.assert_close(small(train[0]), whole(train[0]), rtol=1e-5, atol=1e-5)  # type: ignore[operator, index]
    assert small[0].out_channels == 4  # type: ignore[index]


def test_the_page_points_at_what_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
