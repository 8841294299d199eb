"""docs/quantization/integer.md: its example runs."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "quantization" / "integer.md").read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block.replace("/tmp/integers.safetensors", str(tmp_path / "integers.safetensors")), {})
    out = capsys.readouterr().out
    assert out.count("int8") == 3
