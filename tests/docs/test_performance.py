"""The example of docs/performance.md runs; its tables have a place."""

import re
from pathlib import Path

from benchmarks import report
from snnrobust import kernels

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    limit = kernels.memory().limit
    names: dict[str, object] = {}
    try:
        exec(code, names)
    finally:
        kernels.limit_memory(limit)
    assert names["logits"].shape == (4, 10)


def test_the_tables_have_a_place() -> None:
    report.check(PAGE)


def test_what_it_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
