"""Peak memory of one call, in a process of its own: ``python -m benchmarks.memory MODULE FUNCTION [ARGUMENT ...]``.

The function makes the call, with all that must exist before it. What is printed is by how many bytes the resident memory
grew above what it was then.
"""

from __future__ import annotations

import gc
import importlib
import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Run

__all__ = ["growth", "measured"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(make: Callable[..., Run], *arguments: Any) -> Run | str:
    """A call that gives the peak, in bytes, of what ``make(*arguments)`` makes; or why there is none."""
    if not _CLEAR.exists():
        return "peak memory needs Linux"
    return partial(_in_a_process, make.__module__, make.__name__, *arguments)


def _in_a_process(*command: Any) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *command[:2], *map(json.dumps, command[2:])],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the peak of {command} could not be measured: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])


def growth(call: Run) -> int:
    """By how many bytes resident memory grows during ``call``; a page is the least that can be told."""
    gc.collect()
    before = _status("VmRSS")
    _CLEAR.write_text("5")  # the highest mark falls to what is resident now
    call()
    return max(mmap.PAGESIZE, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main(module: str, function: str, *arguments: str) -> None:
    import torch

    torch.set_num_threads(1)
    make = getattr(importlib.import_module(module), function)
    print(growth(make(*map(json.loads, arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
