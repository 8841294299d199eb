"""The example of docs/hardware/crossbar_solver.md runs as written."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "hardware" / "crossbar_solver.md").read_text()


def test_the_example():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(block, names)
    assert names["G"].grad.shape == (3, 16, 8)
    assert names["linear"].shape == names["curved"].shape == (3, 5, 8)
    assert (names["linear"] - names["curved"]).abs().max() > 0
    assert names["sense"].shape == (3, 8, 16, 8)
