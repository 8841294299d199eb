"""The example of docs/defenses.md runs as written."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from snnrobust import defenses
from snnrobust.defenses.voting import Rule

PAGE = (Path(__file__).parents[2] / "docs" / "defenses.md").read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, {})
    assert re.fullmatch(r"\d+% \d+%\n\d+%\n", capsys.readouterr().out)


def test_every_rule_of_voting_is_on_the_page() -> None:
    section = PAGE[PAGE.index("## Voting") :]
    for rule in get_args(Rule):
        assert f'| `"{rule}"`' in section


def test_every_trainer_is_on_the_page() -> None:
    for name in defenses.__all__:
        if name not in ("NoiseStrength", "retract", "Voting"):  # which are no trainers
            assert f"**{name}**" in PAGE
            assert f"| `{name}` |" in PAGE
