"""The example of docs/hardware/crossbar.md runs as written, and the page has every argument of the backend that is a choice."""

import inspect
import re
from pathlib import Path

import torch

from snnrobust.hardware import Crossbar, read_conductances

PAGE = (Path(__file__).parents[2] / "docs" / "hardware" / "crossbar.md").read_text()


def test_the_example(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, names)
    assert names["logits"].shape == (20, 10)
    assert len(read_conductances("chip.safetensors").layers) == 3
    text = capsys.readouterr().out
    assert re.search(r"tiles for 3 layers, \d+ % of \d+ devices used: about", text)
    assert text.count("per siemens") == 3


def test_every_argument_is_explained():
    parameters = set(inspect.signature(Crossbar).parameters) - {"progress", "distribution"}
    resistances = {"r_on", "r_off", "r_driver", "r_row", "r_column", "r_sense"}
    assert all(re.search(rf"\b{name}\b", PAGE) for name in parameters | resistances)
