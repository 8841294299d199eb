"""Small models and the first handwritten digits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snnrobust import data
from snnrobust.encoders import Direct, Poisson
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

LIVELY = LIF(threshold=0.3)  # untrained layers would hardly spike at 1
MAKERS = {
    "ann": lambda: ordinary((Dense(16),), (1, 8, 8), 10),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 10)
    ),
    "poisson": lambda: spiking((Conv(4), Pool(), Dense(16)), (1, 8, 8), 10, Poisson(4), LIVELY),
    "direct": lambda: spiking((Dense(16),), (1, 8, 8), 10, Direct(4), LIVELY, norm="none"),
}


def fresh(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@pytest.fixture
def make() -> Callable[..., nn.Module]:
    return lambda kind, seed=0: fresh(MAKERS[kind], seed)


@pytest.fixture(params=list(MAKERS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return fresh(MAKERS[request.param])


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    return data.take(data.load("digits", "train"), 100)
