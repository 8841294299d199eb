"""One contract for every backend, on a spiking and an ordinary network."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from snnrobust import codesign, quantization
from snnrobust.attacks import PGD, Linf
from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.experiments.build import NAMES
from snnrobust.hardware import BACKENDS, Backend, Chain, deploy, load, save
from snnrobust.hardware.backend import Drawn, Gradient
from snnrobust.hardware.storage import build_backend, describe_backend
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

_REGISTERED = quantization, codesign
CASES = {
    "Chain": {},
    "Uniform": {"bits": 4},
    "GaussianNoise": {"multiplicative": 0.3, "additive": 0.1},
    "Crossbar": {"rows": 8, "columns": 8, "variation": 0.1, "stuck_off": 0.02, "cache": False},
    "PCM": {"time": "1 day"},
    "RRAM": {"time": "1 day"},
    "LookupTable": {"rows": 16, "nonlinearity": 0.3},
    "SRAM": {"voltage": 0.8},
    "WeightVariation": {"sigma": 0.2},
    "BitErrors": {"rate": 0.02},
    "NeuronVariation": {"threshold": 0.2, "leak": 0.1},
    "DeadNeurons": {"rate": 0.2},
    "StuckNeurons": {"rate": 0.1},
    "SpikeLoss": {"rate": 0.2},
    "SpikeInsertion": {"rate": 0.1},
}
ARCHITECTURE = (Conv(4), Pool(), Dense(8))
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 6, 6), 3),
    "snn": lambda: spiking(ARCHITECTURE, (1, 6, 6), 3, Direct(4), LIF(threshold=0.3)),
}
OF_THE_CHIP = ("PCM", "RRAM", "LookupTable")  # their reads are drawn at each step, their cells and tables once a chip
NEURONS = ("NeuronVariation", "DeadNeurons", "StuckNeurons", "SpikeLoss", "SpikeInsertion")
X = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(6)


def made(name):
    arguments = CASES[name]
    return Chain(quantization.Uniform(bits=4)) if name == "Chain" else BACKENDS[name](**arguments)


def model(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[kind]().eval()


def run(chip, x=X, key=3, ids=IDS):
    with torch.no_grad(), draws(chip, key, ids[: len(x)] if len(ids) != len(x) else ids):
        return chip(x)


def on(kind, name, seed=7):
    if kind == "ann" and name in ("NeuronVariation", "SpikeInsertion"):
        pytest.skip("there is nothing like it in ordinary networks, and it says so")
    return deploy(model(kind), made(name), seed=seed)


def test_every_backend_has_a_case_and_a_line_in_the_docs():
    ours = {n for n, k in BACKENDS.items() if k.__module__.startswith("snnrobust.")}
    assert set(CASES) == ours
    assert set(NAMES["backend"]) >= ours - {"Chain"}
    table = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) >= ours - {"Chain"}


@pytest.mark.parametrize("name", CASES)
def test_it_declares_when_it_is_drawn_and_its_gradient(name):
    backend = made(name)
    assert backend.drawn in (None, *get_args(Drawn))
    assert backend.gradient in get_args(Gradient)
    assert isinstance(backend, Backend)
    if backend.drawn == "chip":
        assert not is_stochastic(on("snn", name), X)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_seed_is_the_chip_and_the_key_its_noise(kind, name):
    chip, again, other = (on(kind, name, seed) for seed in (7, 7, 8))
    assert torch.equal(run(chip), run(again))
    drawn = made(name).drawn
    if drawn == "chip" or name in OF_THE_CHIP:
        assert not torch.equal(run(chip), run(other))
    if drawn in ("inference", "step"):
        assert is_stochastic(chip)
        assert not torch.equal(run(chip), run(chip, key=4))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_batch_changes_nothing(kind, name):
    chip = on(kind, name).double()
    whole = run(chip, X.double())
    parts = torch.cat([run(chip, X[i].double(), ids=i) for i in (IDS[:1], IDS[1:4], IDS[4:])])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_the_forward_pass(name):
    chip = on("snn", name).double()
    with torch.no_grad(), draws(chip, 3):
        torch.testing.assert_close(list(chip.stream(X.double()))[-1], chip(X.double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_saved_and_loaded(kind, name, tmp_path):
    chip = on(kind, name)
    save(chip, tmp_path / "chip")
    assert torch.equal(run(load(tmp_path / "chip")), run(chip))
    backend = made(name)
    assert describe_backend(build_backend(describe_backend(backend))) == describe_backend(backend)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_an_attack_has_a_gradient_of_every_sample(kind, name):
    chip = on(kind, name)
    x = X.clone().requires_grad_()
    with draws(chip, 3):
        (chip(x) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    if made(name).gradient != "none":
        assert (x.grad.flatten(1).abs().amax(1) > 0).sum() >= 3  # all spikes of a sample may be lost
    moved = PGD(Linf(0.1), steps=2)(chip, X, torch.tensor([0, 1, 2, 0, 1, 2]), seed=0)
    assert not torch.equal(moved, X)


@pytest.mark.parametrize("name", [n for n in CASES if n not in NEURONS])
@pytest.mark.parametrize("layer", [nn.LSTM(6, 5), nn.GRU(6, 5)], ids=["lstm", "gru"])
def test_it_takes_recurrent_layers(layer, name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.dense = layer, nn.Linear(5, 3)

        def forward(self, x):
            return self.dense(self.rnn(x.transpose(0, 1))[0][-1])

    net, sequences = Net(), X[:, 0]
    chip = deploy(net, made(name), seed=7)
    assert torch.equal(run(chip, sequences), run(deploy(net, made(name), seed=7), sequences))
    assert run(chip, sequences).isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_it_chains_with_noise(name):
    noise = BACKENDS["GaussianNoise"](multiplicative=0.2)
    chip = deploy(model("snn"), Chain(made(name), noise), seed=7)
    assert is_stochastic(chip)
    assert run(chip).isfinite().all()
