"""Networks of other libraries and a small batch."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def zoo():
    """What models.py holds."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("models.py"))))


@pytest.fixture(autouse=True)
def _weights():
    """The same weights in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.fixture
def batch(zoo):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, zoo.FEATURES, generator=generator), torch.arange(5) % zoo.CLASSES
