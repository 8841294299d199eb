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
from snnrobust.hardware import BACKENDS, Backend, Chain, GaussianNoise, deploy, load, on_chips, save
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


def twice(layer):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) - self.layer(x)

    return Twice()


@pytest.mark.parametrize("name", ["GaussianNoise", "SRAM", "PCM"])
@pytest.mark.parametrize("keyed", [True, False])
def test_what_is_drawn_once_an_inference_is_one_draw_in_a_pass_with_and_without_a_key(name, keyed):
    more = {"GaussianNoise": {"additive": 1.0}, "SRAM": {"voltage": 0.7}, "PCM": {"time": "1 year"}}[name]
    chip = deploy(twice(nn.Linear(6, 6)), BACKENDS[name](**more, drawn="inference"), seed=1)
    x = torch.rand(4, 6)
    if keyed:
        with draws(chip, 3):
            assert (chip(x) == 0).all()
    else:
        assert (chip(x) == 0).all()
    layer = nn.Sequential(nn.Linear(6, 6))
    chip = deploy(layer, BACKENDS[name](**more, drawn="inference"), seed=1)
    assert not torch.equal(chip(x), chip(x))  # another pass, another draw


def test_a_pass_that_fails_leaves_no_key():
    chip = deploy(twice(nn.Linear(6, 6)), GaussianNoise(additive=1.0), seed=1)
    with pytest.raises(RuntimeError, match="6 features"):
        chip(torch.rand(4, 5))
    assert chip.layer.layer.backend._key is None
    first = chip(torch.rand(4, 6))
    assert not torch.equal(first, chip(torch.rand(4, 6)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_called_again_in_a_pass_meets_fresh_noise(kind):
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 4)

        def forward(self, x):
            return self.rnn(x)[0] - self.rnn(x)[0]

    chip = deploy(Again(), GaussianNoise(additive=0.5), seed=1)
    with draws(chip, 3):
        assert chip(torch.rand(5, 2, 3)).abs().max() > 0.1


def test_a_block_in_two_places_has_noise_after_its_norm_once():
    block = nn.Sequential(nn.Linear(400, 400), nn.BatchNorm1d(400))
    model = nn.Sequential(block, nn.ReLU(), block).eval()
    chip = deploy(model, GaussianNoise(additive=1.0, at="after_norm"), seed=1)
    x = torch.rand(8, 400)
    with draws(chip, 3):
        noise = chip[0](x) - model[0](x)
    assert abs(noise.std() - 1) < 0.1  # 3,200 values
    with on_chips(model.train(), GaussianNoise(additive=1.0, at="after_norm")) as make:
        make(1)
        assert type(model[0][1].layer).__name__ == "LearningAfterNorm"
        assert isinstance(model[0][1].layer.norm, nn.BatchNorm1d)
    assert isinstance(model[0][1], nn.BatchNorm1d)


@pytest.mark.parametrize("memory", ["LookupTable", "SRAM", "BitErrors"])
@pytest.mark.parametrize("later", [quantization.Uniform(2), BACKENDS["WeightVariation"](0.5)])
def test_what_a_memory_would_not_see_is_refused(memory, later):
    made_of = {
        "LookupTable": {"rows": 16},
        "SRAM": {"voltage": 0.8, "drawn": "inference"},
        "BitErrors": {"rate": 0.1, "drawn": "step"},
    }
    first = BACKENDS[memory](**made_of[memory])
    net = nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(
        TypeError, match=f"{type(later).__name__} changes weights, .*: put {type(later).__name__} first"
    ):
        deploy(net, Chain(first, later), seed=0)
    deploy(net, Chain(later, first), seed=0)


@pytest.mark.parametrize("name", [n for n in CASES if n not in NEURONS])
@pytest.mark.parametrize("wrong", [(4, 5), (4, 7), (5,)])
def test_inputs_of_another_width_are_an_error(name, wrong):
    more = {"adc_bits": 6} if name == "Crossbar" else {}
    backend = BACKENDS[name](**CASES[name], **more) if name != "Chain" else Chain()
    chip = deploy(nn.Sequential(nn.Linear(6, 6)), backend, seed=0)
    with pytest.raises(RuntimeError, match=r"6 features in \[T, B, ...\]"):
        chip(torch.rand(*wrong))


def test_nan_in_a_bias_is_named():
    net = nn.Sequential(nn.Linear(6, 6))
    with torch.no_grad():
        net[0].bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"0 \(Linear\): bias contains NaN or infinity"):
        deploy(net, Chain(), seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chips_of_other_precision_are_saved(dtype, tmp_path):
    for chip in (
        deploy(model("ann").to(dtype), made("GaussianNoise"), seed=1),
        deploy(model("ann"), made("Crossbar"), seed=1).to(dtype),
    ):
        save(chip, tmp_path / "chip")
        assert torch.equal(run(load(tmp_path / "chip"), X.to(dtype)), run(chip, X.to(dtype)))
