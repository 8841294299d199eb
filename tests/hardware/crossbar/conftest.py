"""What the tests of crossbars share: small networks, and a cache of their own."""

import pytest
import torch

from snnrobust.encoders import Direct
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "snn": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)),
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]().eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
