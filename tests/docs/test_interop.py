"""The examples of docs/interop.md run as written, and the page names what there is."""

import re
from pathlib import Path

import pytest
import torch

from snnrobust.interop import wrap
from snnrobust.interop.wrap import _OUTPUT, _REDUCE

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()


def test_the_examples_run(capsys):
    pytest.importorskip("torchattacks")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec("\n".join(blocks), {"__name__": "docs"})
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] in ("masked", "inconclusive", "consistent")
    assert "torch.Size([60, 10]) torch.Size([60, 10])" in printed
    assert "ta-pgd" in printed


def test_every_argument_is_on_the_page():
    for name in (*wrap.__annotations__, *_REDUCE, *_OUTPUT):
        if name not in ("model", "return"):
            assert name in PAGE
