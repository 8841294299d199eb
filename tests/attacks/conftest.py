"""Victims: small, in float64, with the parts that an attack could disturb."""

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from snnrobust import data, hardware, learning_rules, quantization
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF

SHAPE, CLASSES, STEPS = (1, 4, 4), 3, 4


class Events(nn.Module):
    """Event frames ``[B, T, C, H, W]`` to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Sequential(nn.Flatten(), nn.Linear(16, 8), LIF(threshold=0.3), nn.Linear(8, CLASSES))
        self.readout = MeanOutput()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.network(x.transpose(0, 1)))


def _chip() -> nn.Module:
    backend = hardware.Chain(quantization.Uniform(bits=4), hardware.GaussianNoise(multiplicative=0.2))
    return hardware.deploy(spiking((Conv(4),), SHAPE, CLASSES, Direct(STEPS)), backend, seed=1)


VICTIMS = {
    "ann": lambda: ordinary((Conv(4),), SHAPE, CLASSES),
    "poisson": lambda: spiking((Conv(4),), SHAPE, CLASSES, Poisson(STEPS)),
    "direct": lambda: spiking((Conv(4),), SHAPE, CLASSES, Direct(STEPS)),
    "chip": _chip,
    "events": Events,
}


def build(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VICTIMS[kind]().double()
        x = torch.rand(6, *((STEPS, *SHAPE) if kind == "events" else SHAPE), dtype=torch.float64)
        x[0].view(-1)[:4] = torch.tensor([0.0, 1.0, 0.0, 1.0])
        y = torch.arange(6) % CLASSES
        with torch.no_grad():
            model.train()(x)  # statistics other than 0 and 1
    return model.eval(), x, y


@pytest.fixture
def victims():
    """``victims(kind, seed=0) -> (model, x, y)``."""
    return build


@pytest.fixture(scope="session")
def digits_ann():
    """An ANN trained on digits, in float64, and 200 test samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ordinary((Conv(4), Dense(32)), (1, 8, 8), 10)
    learning_rules.BPTT(lr=1e-2).fit(model, data.load("digits", "train"), epochs=4, progress=False)
    x, y = data.take(data.load("digits", "test"), 200)
    model = model.double()
    assert (model(x.double()).argmax(1) == y).double().mean() > 0.9
    return model, x.double(), y


@pytest.fixture(scope="session")
def digits_snn():
    """A deterministic SNN of two hidden layers trained on digits, in float64, and 60 test samples, most of them right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Dense(48), Dense(48)), (1, 8, 8), 10, Direct(3), norm="none")
    learning_rules.BPTT(lr=2e-2).fit(model, data.load("digits", "train"), epochs=3, progress=False)
    x, y = data.take(data.load("digits", "test"), 60)
    model = model.double().eval()
    assert (model(x.double()).argmax(1) == y).double().mean() > 0.8
    return model, x.double(), y


@pytest.fixture
def layered():
    """``layered(neuron, layers=2, seed=0) -> (model, x, y)``: dense layers with ``neuron(8)`` behind each, T = 5."""

    def build(neuron, layers=2, seed=0):
        with torch.random.fork_rng():
            sizes = [7, 8, 8][: layers + 1]
            dense = [nn.Linear(a, b) for a, b in pairwise(sizes)]
            parts = [part for linear in dense for part in (linear, neuron(8))]
            head = nn.Linear(8, CLASSES)
            model = SpikingClassifier(Direct(5), Sequential(*parts, head), MeanOutput()).double().eval()
            torch.manual_seed(seed)  # the same whatever the neurons drew
            x = torch.rand(6, 7, dtype=torch.float64)
            with torch.no_grad():
                for linear in (*dense, head):
                    linear.weight.copy_(1.5 * torch.randn(linear.weight.shape) / linear.in_features**0.5)
                    linear.bias.copy_(0.3 * torch.randn(linear.bias.shape))
        return model, x, torch.arange(6) % CLASSES

    return build


@pytest.fixture(scope="session")
def by_hand():
    """What reference.py holds."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference.py"))))
