"""The examples of docs/attacks/black_box.md run as written, with fewer queries."""

import re
from pathlib import Path

import torch

from snnrobust.encoders import Poisson
from snnrobust.models import Dense, ordinary, spiking

PAGE = (Path(__file__).parents[2] / "docs" / "attacks" / "black_box.md").read_text()


def test_the_examples():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {
            "model": ordinary((Dense(8),), (1, 4, 4), 3),
            "poisson_snn": spiking((Dense(8),), (1, 4, 4), 3, Poisson(2)),
            "x": torch.rand(2, 1, 4, 4),
            "y": torch.tensor([0, 1]),
        }
    exec(re.sub(r"queries=\d+", "queries=60", block), names)
    assert names["x_adv"].shape == names["x"].shape
