import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.hardware import (
    Chain,
    Crossbar,
    GaussianNoise,
    conductances,
    deploy,
    export_conductances,
    load,
    read_conductances,
    save,
)
from snnrobust.hardware.crossbar import effective_conductance
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.models.checkpoint import write_tensors
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform, uniform

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
NOISY = Crossbar(5, 4, variation=0.1, stuck_on=0.02, r_driver=1e3, cache=False)
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "snn": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]().eval()


def layers_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def test_the_cells_explain_the_chip(model):
    """From the cells alone: Kirchhoff's solution of each tile gives the effective weights of the chip."""
    chip = deploy(model, NOISY, seed=9)
    found = conductances(chip)
    assert found.seed == 9
    assert found.layers.keys() == layers_of(model).keys()
    for name, layer in found.layers.items():
        solved = effective_conductance(layer.g, layer.crossbar.wires)
        effective = (solved[0] - solved[1]) * layer.scale
        array = next(m.array for n, m in chip.named_modules() if n.startswith(name) and hasattr(m, "array"))
        matrix = array.operation.matrix(array.weight).double()
        for k in range(layer.inputs):
            for n in range(layer.outputs):
                cell = effective[0, k // 5, n // 4, k % 5, n % 4]
                assert float(matrix[0, k, n]) == pytest.approx(float(cell), rel=1e-5, abs=1e-8)


def test_without_imperfections_they_are_the_weights(model):
    found = conductances(deploy(model, Chain(Uniform(bits=4), Crossbar(5, 4, ir_drop=False)), seed=0))
    for name, layer in layers_of(model).items():
        expected = uniform(layer.weight.detach(), 4).flatten(1).T[None].double()
        torch.testing.assert_close(found.layers[name].matrix(), expected, rtol=1e-9, atol=1e-12)


def test_there_and_back(model, tmp_path):
    chip = deploy(model, Chain(NOISY, GaussianNoise(additive=0.1)), seed=9)
    export_conductances(chip, tmp_path / "chip.safetensors")
    there, back = conductances(chip), read_conductances(tmp_path / "chip.safetensors")
    assert back.seed == there.seed == 9
    assert back.layers.keys() == there.layers.keys()
    for name, a in there.layers.items():
        b = back.layers[name]
        assert torch.equal(a.g, b.g)
        assert (a.scale, a.inputs, a.outputs) == (b.scale, b.inputs, b.outputs)
        assert repr(a.crossbar) == repr(b.crossbar)
        assert b.crossbar.wires == NOISY.wires


def test_the_file_is_plain(tmp_path):
    path = tmp_path / "chip.safetensors"
    export_conductances(deploy(MODELS["ann"](), NOISY, seed=9), path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["snnrobust"])
        assert set(file.keys()) == set(header["content"]["layers"])
    about = next(iter(header["content"]["layers"].values()))
    assert about["crossbar"]["r_driver"] == 1e3


def test_a_loaded_chip_has_the_same_cells(model, tmp_path):
    chip = deploy(model, NOISY, seed=9)
    save(chip, tmp_path / "chip")
    again = conductances(load(tmp_path / "chip"))
    for name, layer in conductances(chip).layers.items():
        assert torch.equal(layer.g, again.layers[name].g)


def test_no_crossbar(model):
    with pytest.raises(ValueError, match=r"no layer on a Crossbar: use hardware\.deploy"):
        conductances(deploy(model, GaussianNoise(additive=0.1), seed=0))


def content(**changes):
    layer = {"scale": 1.0, "inputs": 3, "outputs": 2, "crossbar": {"type": "Crossbar", "rows": 2, "columns": 2}}
    layer |= {k: v for k, v in changes.items() if k in layer}
    return {"seed": changes.get("seed", 1), "layers": changes.get("layers", {"a": layer})}


@pytest.mark.parametrize(
    ("changes", "g", "message"),
    [
        (
            {},
            torch.zeros(2, 1, 2, 1, 2, 3),
            r"a is torch.float64 \[2, 1, 2, 1, 2, 3\] and should be torch.float64 \[2, 1, 2, 1, 2, 2\]",
        ),
        ({}, torch.zeros(5), "and should be"),
        ({}, torch.full((2, 1, 2, 1, 2, 2), -1.0), "negative or not finite"),
        ({}, torch.full((2, 1, 2, 1, 2, 2), float("nan")), "negative or not finite"),
        ({"scale": -1.0}, None, "scale must be"),
        ({"scale": "much"}, None, "scale must be"),
        ({"inputs": 0}, None, "inputs must be at least 1"),
        ({"inputs": 10**12}, None, "and should be"),
        ({"outputs": 1.5}, None, "outputs must be an integer"),
        ({"crossbar": {"type": "GaussianNoise", "additive": 0.1}}, None, "is on a GaussianNoise, not on a Crossbar"),
        ({"crossbar": {"type": "System"}}, None, "backend must be one of"),
        ({"crossbar": {"type": "Crossbar", "rows": 10**9, "columns": 10**9}}, None, "use smaller tiles"),
        ({"crossbar": 3}, None, "must be an object"),
        ({"layers": {}}, None, "its header does not fit its tensors"),
        ({"layers": 3}, None, "damaged"),
        ({"layers": {"a": []}}, None, "damaged"),
        ({"seed": "x"}, None, "its header does not fit its tensors"),
    ],
)
def test_damaged_files(tmp_path, changes, g, message):
    path = tmp_path / "bad.safetensors"
    write_tensors(
        path, "conductances", {"a": (torch.zeros(2, 1, 2, 1, 2, 2) if g is None else g).double()}, content(**changes)
    )
    with pytest.raises(ValueError, match=message) as error:
        read_conductances(path)
    assert "bad.safetensors is damaged" in str(error.value)


def test_a_sound_file_by_hand(tmp_path):
    write_tensors(tmp_path / "a", "conductances", {"a": torch.zeros(2, 1, 2, 1, 2, 2).double()}, content())
    assert read_conductances(tmp_path / "a").layers["a"].matrix().shape == (1, 3, 2)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_conductances(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_conductances(tmp_path / "text")
    save(deploy(MODELS["ann"](), NOISY, seed=1), tmp_path / "chip")
    with pytest.raises(ValueError, match="is not a conductances of"):
        read_conductances(tmp_path / "chip")
