"""Checkpoints: an exact round trip, and a clear refusal of everything that is not one."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson, Population, Rows, SignedPoisson
from snnrobust.layers import BNTT, TEBN, MeanMembrane, Normalise, Sequential, SpikeCount
from snnrobust.models import (
    ARCHITECTURES,
    NORMS,
    Dense,
    SpikingClassifier,
    build,
    describe,
    load,
    ordinary,
    save,
    smallest_image,
    spiking,
    truncate,
)
from snnrobust.models.blocks import remembers
from snnrobust.models.checkpoint import read_tensors, write_bytes, write_tensors
from snnrobust.models.description import MODULES
from snnrobust.neurons import ALIF, IF, LIF, NEURONS, LearnableThresholdLIF
from snnrobust.neurons.surrogate import ATan, Triangle

SHAPE = (1, 4, 4)


def _images(n=8):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def _snn(encoder=None, neuron=None, readout=None):
    encoder = Poisson(5) if encoder is None else encoder
    neuron = LIF(0.8, 0.7, "hard", Triangle(0.4, 1.5)) if neuron is None else neuron
    return spiking(ARCHITECTURES["conv-small"], SHAPE, 3, encoder, neuron, readout=readout)


MODELS = {
    "poisson": _snn,
    "blind poisson": lambda: _snn(Poisson(3, gradient="none"), readout=MeanMembrane(0.6)),
    "direct": lambda: _snn(Direct(4), IF(0.5, surrogate=ATan(3.0)), SpikeCount()),
    "float64": lambda: _snn().double(),
    "ordinary": lambda: ordinary(ARCHITECTURES["conv-small"], SHAPE, 3),
    "no classifier": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
}


@pytest.fixture
def path(tmp_path):
    """A checkpoint."""
    save(_snn(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _logits(model, x):
    with torch.no_grad(), draws(model, 3):
        return model(x)


def _edit(path, change=lambda description: description, tensors=lambda tensors: tensors):
    """Rewrite the description or the tensors of a checkpoint."""
    with safe_open(path, "pt") as file:
        header, held = json.loads(file.metadata()["snnrobust"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    header["content"] = change(header["content"])
    save_file(tensors(held), path, {"snnrobust": json.dumps(header)})


# --- round trip -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_round_trip(make, tmp_path):
    model = make()
    dtype = next(model.parameters()).dtype
    x = _images().to(dtype)
    model.train()(x)  # statistics that are not those of a fresh model
    save(model, tmp_path / "deep" / "er" / "model.safetensors")
    assert model.training
    state = torch.get_rng_state()
    loaded = load(tmp_path / "deep" / "er" / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert repr(loaded) == repr(model)
    assert torch.equal(_logits(loaded, x), _logits(model.eval(), x))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype


def _comes_back(model, x, path):
    """To the bit: weights, statistics, and logits under equal draws."""
    model.train()(x)
    save(model.eval(), path)
    loaded = load(path)
    assert describe(loaded) == describe(model)
    states = model.state_dict(), loaded.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(_logits(loaded, x), _logits(model, x))
    return loaded


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["ordinary", *NORMS])
def test_every_named_architecture(name, norm, slim, tmp_path):
    side = max(smallest_image(ARCHITECTURES[name]), 3)
    shape, architecture = (2, side, side), slim(ARCHITECTURES[name], 32)
    if norm == "ordinary":
        model = ordinary(architecture, shape, 3)
    else:
        encoder = Rows(side) if remembers(architecture) else Poisson(3)
        model = spiking(architecture, shape, 3, encoder, LIF(0.9, 0.3), norm)
    _comes_back(model, torch.rand(4, *shape), tmp_path / "m")


@pytest.mark.parametrize("kind", NEURONS.values())
def test_every_neuron(kind, tmp_path):
    model = spiking((Dense(6), Dense(6)), SHAPE, 3, Poisson(5), kind(threshold=0.3))
    with torch.no_grad():
        for parameter in model.parameters():  # what is learnt is not where it started
            parameter += 0.1
    _comes_back(model, _images(), tmp_path / "m")


@pytest.mark.parametrize("neuron", [LIF((0.5, 0.7, 1 / 3)), ALIF(threshold=torch.tensor([0.1, 0.2, 0.3])),
                                    LearnableThresholdLIF(features=3)], ids=["decay", "threshold", "learnt"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_per_channel(neuron, dtype, tmp_path):
    model = spiking((Dense(3),), SHAPE, 3, Poisson(5), neuron).to(dtype)
    _comes_back(model, _images().to(dtype), tmp_path / "m")


def test_other_encoders_and_normalised_inputs(tmp_path):
    parts = [Normalise((0.4,), (0.2,)), nn.Flatten(), nn.Linear(16, 3)]
    _comes_back(SpikingClassifier(Direct(3), Sequential(*parts), SpikeCount()), _images(), tmp_path / "a")
    for encoder in (Population(3, neurons=4), SignedPoisson(3, (0.4,), (0.2,))):
        _comes_back(spiking((Dense(6),), SHAPE, 3, encoder, LIF(0.9, 0.3)), _images(), tmp_path / "b")


@pytest.mark.parametrize("norm", ["BNTT", "TEBN"])
def test_a_truncated_model(norm, tmp_path):
    model = truncate(spiking((Dense(6),), SHAPE, 3, Poisson(5), LIF(0.9, 0.3), norm), 3)
    loaded = _comes_back(model, _images(), tmp_path / "m")
    assert loaded.time_steps == 3
    assert {m.time_steps for m in loaded.modules() if isinstance(m, BNTT | TEBN)} == {3}


def test_a_file_from_before_there_were_refractory_periods(path):
    def older(description):
        for module in description["network"]["modules"]:
            for later in ("detach_reset", "refractory"):
                module.pop(later, None)
        return description

    expected = _logits(load(path), _images())
    _edit(path, older)
    assert torch.equal(_logits(load(path), _images()), expected)


class Shifted(nn.Module):
    """Keeps a constant that is not saved, on whatever device it is made."""

    def __init__(self, by=0.5):
        super().__init__()
        self.by = by
        self.register_buffer("shift", torch.tensor(by), persistent=False)


def test_a_constant_that_is_not_saved_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(MODULES, "Shifted", Shifted)
    save(nn.Sequential(Shifted()), tmp_path / "m")
    with pytest.raises(ValueError, match=r"m lacks 0\.shift, a constant that its module does not save"):
        load(tmp_path / "m")
    assert build(describe(Shifted())).shift == 0.5


def test_everything_that_decides_the_output_comes_back(path):
    loaded = load(path)
    assert loaded.time_steps == 5
    assert (type(loaded.encoder), loaded.encoder.gradient) == (Poisson, "straight_through")
    neurons = [m for m in loaded.modules() if isinstance(m, LIF)]
    assert [(n.decay, n.threshold, n.reset, n.surrogate) for n in neurons] == [
        (0.8, 0.7, "hard", Triangle(0.4, 1.5))
    ] * 2
    assert {m.time_steps for m in loaded.modules() if isinstance(m, BNTT)} == {5}
    assert loaded.readout.decay == 0.95


def test_a_loaded_model_can_be_trained_and_attacked(path):
    loaded, x = load(path).train(), _images().requires_grad_()
    with draws(loaded, 0):
        loaded(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.device.type == "cpu" for p in loaded.parameters())


def test_weights_in_another_memory_format(tmp_path):
    model = _snn().to(memory_format=torch.channels_last).eval()
    save(model, tmp_path / "m")
    assert torch.equal(_logits(load(tmp_path / "m"), _images()), _logits(model, _images()))


# --- not a checkpoint -----------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no model file at {path}")):
            load(path)


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 100, 0.5, -1])
def test_truncated(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=re.escape(f"{path} is truncated or not a safetensors file")):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        b"not a model at all",
        (2**62).to_bytes(8, "little") + b"{}",
        bytes(range(256)) * 40,
    ],
    ids=["empty", "zeros", "ones", "text", "huge header", "bytes"],
)
def test_other_bytes(tmp_path, content):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is truncated or not a safetensors file")):
        load(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_is_not_loaded(tmp_path, dump):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    with path.open("wb") as file:
        dump(Payload(trace), file)
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # the payload works


def test_a_foreign_safetensors_file(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file({"w": torch.ones(2)}, tmp_path / "foreign", metadata)
        with pytest.raises(ValueError, match=r"foreign is not a model of snnrobust 1: it holds another program's file"):
            load(tmp_path / "foreign")


@pytest.mark.parametrize("header", ["3", "[]", "null", "{"])
def test_a_broken_header(tmp_path, header):
    save_file({"w": torch.ones(2)}, tmp_path / "m", {"snnrobust": header})
    with pytest.raises(ValueError, match="m is truncated or not a safetensors file"):
        load(tmp_path / "m")


def test_equal_models_give_equal_bytes(tmp_path):
    model = next(iter(MODELS.values()))()
    for name in ("a", "b"):
        save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_later_format(path):
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["snnrobust"]) | {"format": "snnrobust 2"}
    save_file(held, path, {"snnrobust": json.dumps(header)})
    with pytest.raises(ValueError, match=r"is not a model of snnrobust 1: it holds a model of snnrobust 2"):
        load(path)


def test_another_kind_of_ours(tmp_path):
    write_tensors(tmp_path / "state", "training state", {"w": torch.ones(2)}, {"epoch": 3})
    with pytest.raises(
        ValueError, match=r"state is not a model of snnrobust 1: it holds a training state of snnrobust 1"
    ):
        load(tmp_path / "state")
    tensors, content = read_tensors(tmp_path / "state", "training state")
    assert torch.equal(tensors["w"], torch.ones(2))
    assert content == {"epoch": 3}


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000, "3"], ids=["none", "empty", "cut", "deep", "number"])
def test_a_broken_description(tmp_path, content):
    known = '"format": "snnrobust 1", "kind": "model"'
    header = f"{{{known}}}" if content is None else f'{{{known}, "content": {content}}}'
    save_file({"w": torch.ones(2)}, tmp_path / "m", {"snnrobust": header})
    with pytest.raises(
        ValueError, match=r"m is truncated or not a safetensors file|a module description must be an object"
    ):
        load(tmp_path / "m")


# --- a description that was edited, weights of something else ---------------------------------------------------


def _put(*path):
    """Sets what lies at ``path`` in a description; the last item is the value."""
    *path, last, value = path

    def change(description):
        part = description
        for key in path:
            part = part[key]
        part[last] = value
        return description

    return change


def _peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("encoder", "type", "Poison"), "module type must be one of .*did you mean 'Poisson'"),
        (_put("network", "modules", 2, "type", "subprocess.Popen"), "module type must be one of "),
        (_put("encoder", "seed", 3), "argument of Poisson must be one of time_steps, gradient; got 'seed'"),
        (_put("encoder", "time_steps", 0), "Poisson in a module description: time_steps must be at least 1, got 0"),
        (_put("network", "modules", 2, "threshold", -1), r"LIF in a module description: threshold must be in \(0, inf\]"),
        (_put("network", "modules", 2, "surrogate", "type", "Step"), "surrogate must be one of "),
        (_put("readout", {"type": "LIF"}), "readout must be a Readout, got LIF"),
        (_put("network", "modules", []), r"is from another architecture: network\.0\.weight is .* and absent in the model"),
        (_put("network", "modules", 0, "bias", True), r"network\.0\.bias is absent in the file and torch.float32 \[16\]"),
        (_put("network", "modules", 1, "time_steps", 6), r"network\.1\.\w+ is .* \[5, 16\] in the file and .* \[6, 16\]"),
        (_put("network", "modules", 9, "out_features", 10**9), r"network\.9\.\w+ is .* in the model"),
        (_put("network", "modules", 9, "in_features", 10**12), r"network\.9\.weight is .* \[3, 1000000000000\] in the model"),
        (_put("network", "modules", 1, "features", 10**11), r"network\.1\.\w+ is .* \[5, 100000000000\] in the model"),
        (_put("network", "modules", 0, "kernel_size", [10**6, 10**6]), r"network\.0\.weight is .* in the model"),
        (_put("network", "modules", 9, "out_features", 10**30), "Linear in a module description: "),
    ],
)  # fmt: skip
def test_an_edited_description(path, change, message):
    _edit(path, change)
    before = _peak_memory()
    with pytest.raises(ValueError, match=message):
        load(path)
    assert _peak_memory() - before < 200 << 20  # nothing is allocated


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda held: {"w": torch.ones(2)}, r"is from another architecture: network\.0\.weight is absent in the file"),
        (
            lambda held: held | {"extra": torch.ones(2)},
            r"extra is torch.float32 \[2\] in the file and absent in the model",
        ),
        (
            lambda held: {k: v for k, v in held.items() if k != "network.9.bias"},
            r"network\.9\.bias is absent in the file",
        ),
        (lambda held: held | {"network.9.bias": torch.ones(4)}, r"network\.9\.bias is torch.float32 \[4\] in the file"),
        (
            lambda held: held | {"network.9.bias": torch.ones(3).int()},
            r"network\.9\.bias is torch.int32 \[3\] in the file",
        ),
    ],
)
def test_weights_of_another_architecture(path, tensors, message):
    _edit(path, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_weights_of_another_named_architecture(path, tmp_path):
    other = tmp_path / "other"
    save(spiking(ARCHITECTURES["conv-medium"], SHAPE, 3, Poisson(5)), other)
    with safe_open(other, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _edit(path, tensors=lambda _: held)
    with pytest.raises(
        ValueError, match=r"is from another architecture: network\.0\.weight is .*\[32, 1, 3, 3\] in the file"
    ):
        load(path)


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_writing_is_all_or_nothing(path, monkeypatch, failing, error):
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        for write in (lambda: save(_snn(), path), lambda: write_bytes(path, b"new")):
            with pytest.raises(type(error)):
                write()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # no temporary file stays behind
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_model_that_cannot_be_described_is_not_half_written(tmp_path):
    with pytest.raises(TypeError, match="Bilinear cannot be described"):
        save(SpikingClassifier(Direct(2), Sequential(nn.Bilinear(2, 2, 2)), SpikeCount()), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_frozen_parameters_stay_frozen(tmp_path):
    model = spiking((Dense(4), Dense(3)), (1, 8, 8), 10, Direct(2))
    save(model, tmp_path / "free")
    assert "frozen" not in read_tensors(tmp_path / "free", "model")[1]
    names = ["network.1.weight", "network.2.weight"]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    save(model, tmp_path / "frozen")
    loaded = load(tmp_path / "frozen")
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == names
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize("frozen", ["network.1.weight", ["network.1"], [["network.1.weight"]], [1], {}, None])
def test_what_is_frozen_has_to_be_parameters(frozen, tmp_path):
    model = spiking((Dense(4),), (1, 8, 8), 10, Direct(2))
    write_tensors(tmp_path / "edited", "model", model.state_dict(), describe(model) | {"frozen": frozen})
    with pytest.raises(ValueError, match="is damaged: it freezes"):
        load(tmp_path / "edited")
