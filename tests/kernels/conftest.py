"""What the tests of kernels share: the slow reference of the neurons, and equality to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

_WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """``run`` and ``slopes`` of tests/neurons/conftest.py."""
    path = Path(__file__).parents[1] / "neurons" / "conftest.py"
    spec = importlib.util.spec_from_file_location("neurons_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(run=module.run, slopes=module.SLOPES)


def _bits(x: Tensor) -> Tensor:
    """All NaN alike, zeros by their sign."""
    words = x.detach().contiguous().view(_WORDS[x.dtype])
    return words.masked_fill(x.detach().isnan(), -1)


@pytest.fixture(scope="session")
def same_bits():
    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))

    return same
