import json

import pytest
import torch
from torch import nn

from snnrobust import models
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson, Rows
from snnrobust.hardware import BACKENDS, Array, Backend, Chain, GaussianNoise, deploy, load, save
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, ordinary, spiking
from snnrobust.models.checkpoint import read_tensors, write_tensors
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "snn": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIF(threshold=0.1)),
    "lstm": lambda: ordinary(ARCHITECTURES["lstm"], (1, 4, 4), 3, Rows(4)),
    "recurrent": lambda: spiking(ARCHITECTURES["recurrent"], (1, 4, 4), 3, Rows(4), LIF(threshold=0.1)),
}
BACKEND = Chain(
    Uniform(bits=4),
    GaussianNoise(multiplicative=0.2, drawn="chip"),
    GaussianNoise(additive=0.1, at="after_norm"),
)
X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def made(name="ann", backend=BACKEND, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return deploy(MODELS[name](), backend, seed=7, **more)


def run(chip):
    with torch.no_grad(), draws(chip, 3):
        return chip(X)


@pytest.mark.parametrize("name", MODELS)
def test_a_chip_comes_back_as_it_was(name, tmp_path):
    chip = made(name)
    for part in chip.modules():  # what training or calibration may have changed since
        if hasattr(part, "running_mean") and part.running_mean is not None:
            part.running_mean += 0.25
    save(chip, tmp_path / "chip.safetensors")
    again = load(tmp_path / "chip.safetensors")
    assert not again.training
    assert torch.equal(run(again), run(chip))
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "chip.safetensors").read_bytes()


def test_some_layers_only(tmp_path):
    chip = made(layers=["0"])
    save(chip, tmp_path / "chip")
    assert torch.equal(run(load(tmp_path / "chip")), run(chip))


def test_what_cannot_be_rebuilt_is_refused(tmp_path):
    class Doubled(Backend):
        def __init__(self, factor):
            super().__init__()
            self.by = factor

    try:
        with pytest.raises(TypeError, match="Doubled cannot be described: factor must be kept as an attribute"):
            save(made(backend=Doubled(2)), tmp_path / "x")
    finally:
        BACKENDS.pop("Doubled")
    with pytest.raises(TypeError, match=r"chip must come from hardware\.deploy"):
        save(MODELS["ann"](), tmp_path / "x")
    with pytest.raises(TypeError, match=r"save it with hardware\.save"):
        models.save(made(backend=Uniform(4)), tmp_path / "x")
    changed = made()
    changed[-1] = nn.Linear(6, 3)
    with pytest.raises(TypeError, match="was changed after it was made"):
        save(changed, tmp_path / "x")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 4)

    with pytest.raises(TypeError, match="this chip cannot be saved: Own cannot be described"):
        save(deploy(Own(), Uniform(4), seed=0), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_files_that_lie_are_named(tmp_path):
    path = tmp_path / "chip"
    with pytest.raises(FileNotFoundError):
        load(path)
    chip = made()
    save(chip, path)
    tensors, content = read_tensors(path, "chip")
    with pytest.raises(ValueError, match="not a model"):
        models.load(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated"):
        load(path)

    def altered(tensors=tensors, **changes):
        write_tensors(path, "chip", tensors, json.loads(json.dumps(content)) | changes)
        return path

    with pytest.raises(ValueError, match="backend must be one of"):
        load(altered(backend={"type": "os.system"}))
    with pytest.raises(ValueError, match="backend Uniform"):
        load(altered(backend={"type": "Uniform", "bites": 4}))
    with pytest.raises(ValueError, match="must be an object with a type"):
        load(altered(backend=3))
    with pytest.raises(ValueError, match="does not fit the chip"):
        load(altered({k: v for k, v in tensors.items() if k != "0.layer.array.weight"}))
    with pytest.raises(ValueError, match="seed must be"):
        load(altered(seed=-1))
    with pytest.raises(ValueError, match="no model, backend"):
        load(altered(more=1))
    huge = {
        "type": "torch.Sequential",
        "modules": [{"type": "torch.Linear", "in_features": 1 << 20, "out_features": 1 << 20}],
    }
    with pytest.raises(ValueError, match="many more numbers than the file"):
        load(altered(model=huge))


def test_arrays_of_a_backends_own_are_kept_by_their_buffers(tmp_path):
    class Levels(Array):
        def __init__(self, weight, operation):
            super().__init__(weight, operation)
            self.register_buffer("gain", weight.abs().amax() + 1)

        def product(self, x, bias, start):
            return super().product(x, bias, start) * self.gain

    class Gained(Backend):
        def program(self, array):
            return Levels(array.weight, array.operation)

    try:
        chip = made(backend=Gained())
        save(chip, tmp_path / "chip")
        assert torch.equal(run(load(tmp_path / "chip")), run(chip))
    finally:
        BACKENDS.pop("Gained")


@pytest.mark.parametrize("name", ["ann", "snn", "lstm"])
def test_a_chip_is_exported(name):
    chip = made(name, Chain(Uniform(bits=4), GaussianNoise(multiplicative=0.2, drawn="chip")))
    if name == "snn":
        chip.encoder = Direct(4)
    with torch.no_grad():
        program = torch.export.export(chip, (X,))
        assert torch.equal(program.module()(X), chip(X))
