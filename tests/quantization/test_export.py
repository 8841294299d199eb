"""Files of integers: the outputs come back to the bit, and damaged files are errors."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snnrobust import models
from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.models.checkpoint import read_tensors, write_tensors
from snnrobust.neurons import LIF
from snnrobust.quantization import (
    Binary,
    Integer,
    LevelSet,
    PowerOfTwo,
    Quantizer,
    Ternary,
    calibrate,
    export_integers,
    load_integers,
    quantize,
    read_integers,
    weight_quantizer,
)
from snnrobust.quantization.export import _pack, _unpack

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
A8 = Quantizer(Integer(8), affine=True)
RECIPES = [
    Quantizer(Integer(8)), Quantizer(Integer(8), axis=0), Quantizer(Integer(8), affine=True), Quantizer(Integer(12)),
    Quantizer(Integer(16), axis=0), Quantizer(Integer(16), affine=True), Quantizer(Integer(4), "learned", axis=0),
    Quantizer(Integer(3), affine=True, axis=0), Quantizer(Ternary(), "least-squares"),
    Quantizer(Binary(), "least-squares", axis=0), Quantizer(PowerOfTwo(5)), Quantizer(LevelSet([-1.0, -0.4, 0.0, 0.3, 1.0])),
    Quantizer(Integer(5), "percentile", percentile=95.0),
]  # fmt: skip


def ann():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ordinary(ARCHITECTURE, (1, 4, 4), 3).eval()


def snn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)).eval()


def run(model):
    with torch.no_grad(), draws(model, 3, torch.arange(len(X))):
        return model(X)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.levels}-{r.scale}-{r.axis}-{r.affine}")
@pytest.mark.parametrize("make", [ann, snn])
def test_outputs_come_back_to_the_bit(make, recipe, tmp_path):
    membranes = Quantizer(Integer(8), "constant", limits=(-2.0, 2.0)) if make is snn else None
    model = calibrate(quantize(make(), weights=recipe, inputs=A8, membranes=membranes), X).eval()
    export_integers(model, tmp_path / "model.safetensors")
    back = load_integers(tmp_path / "model.safetensors")
    assert torch.equal(run(back), run(model))
    plain = {n: m.weight for n, m in back.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, layer in model.named_modules():
        if weight_quantizer(layer) is not None:
            assert torch.equal(plain[name], layer.weight)


def test_eight_bits_are_int8_and_the_file_is_smaller(tmp_path):
    model = quantize(nn.Sequential(nn.Linear(400, 300)), weights=Quantizer(Integer(8), axis=0))
    export_integers(model, tmp_path / "integers.safetensors")
    models.save(model, tmp_path / "floats.safetensors")
    small, large = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("integers", "floats"))
    assert small < 0.27 * large
    file = read_integers(tmp_path / "integers.safetensors")
    step, _ = weight_quantizer(model[0]).grid(model[0].parametrizations.weight.original.detach())
    codes = (model[0].weight / step).round()
    assert torch.equal(file.layers["0"].index - 127, codes.to(torch.int32))
    tensors, _ = read_tensors(tmp_path / "integers.safetensors", "integer model")
    assert tensors["0.weight.codes"].dtype == torch.int8
    assert torch.equal(tensors["0.weight.codes"].float(), codes)


@pytest.mark.parametrize(("levels", "bits"), [(Binary(), 1), (Ternary(), 2), (Integer(4), 4)])
def test_few_bits_are_packed(levels, bits, tmp_path):
    model = quantize(nn.Sequential(nn.Linear(400, 300)), weights=Quantizer(levels, "least-squares"))
    export_integers(model, tmp_path / "m.safetensors")
    tensors, _ = read_tensors(tmp_path / "m.safetensors", "integer model")
    assert tensors["0.weight.codes"].numel() == 400 * 300 * bits // 8


@given(
    st.integers(1, 16).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(st.integers(0, 2**k - 1), min_size=1, max_size=40))
    )
)
def test_packing(given_):
    bits, values = given_
    index = torch.tensor(values, dtype=torch.int32)
    packed = _pack(index, bits)
    assert packed.numel() == -(-len(values) * bits // 8)
    assert torch.equal(_unpack(packed, bits, len(values)), index)
    words = sum(v << (i * bits) for i, v in enumerate(values))
    assert int.from_bytes(bytes(packed.tolist()), "little") == words


def test_int8_inference_of_a_file(tmp_path):
    model = calibrate(quantize(ann(), weights=Quantizer(Integer(8), axis=0), inputs=A8), X).eval()
    export_integers(model, tmp_path / "m.safetensors")
    torch.testing.assert_close(
        run(load_integers(tmp_path / "m.safetensors", integer=True)), run(model), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(TypeError, match="no layer of the model has a quantized weight"):
        export_integers(ann(), tmp_path / "m.safetensors")
    model = quantize(ann(), weights=Quantizer(Ternary(), "least-squares"))
    next(q for m in model.modules() if (q := weight_quantizer(m))).relax(0.5)
    with pytest.raises(ValueError, match="relaxed"):
        export_integers(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(tmp_path):
    model = calibrate(quantize(ann(), weights=Quantizer(Integer(4), axis=0), inputs=A8), X)
    export_integers(model, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_file_cut_off_anywhere_is_an_error(exported):
    content = exported.read_bytes()
    for end in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        exported.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            load_integers(exported)


def test_files_of_other_kinds_are_refused(tmp_path):
    models.save(ann(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"it holds"):
        load_integers(tmp_path / "model.safetensors")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**62))
    with pytest.raises(ValueError, match="truncated"):
        load_integers(tmp_path / "huge.safetensors")
    with pytest.raises(FileNotFoundError):
        load_integers(tmp_path / "none.safetensors")


def change(tensors, content, name, what):
    layer = content["layers"][name]
    key = f"{name}.weight"
    if what == "codes":
        tensors[f"{key}.codes"] = tensors[f"{key}.codes"][:-1].clone()
    elif what == "code that is none":
        tensors[f"{key}.codes"] = torch.full_like(tensors[f"{key}.codes"], 255)  # 4 bits have 15 levels
    elif what == "dtype":
        tensors[f"{key}.codes"] = tensors[f"{key}.codes"].float()
    elif what == "nan":
        tensors[f"{key}.step"] = tensors[f"{key}.step"] * torch.nan
    elif what == "negative":
        tensors[f"{key}.step"] = -tensors[f"{key}.step"]
    elif what == "no step":
        del tensors[f"{key}.step"]
    elif what == "shape":
        layer["shape"] = [2**40, 2**40]
    elif what == "negative shape":
        layer["shape"] = [-1, 9]
    elif what == "recipe":
        layer["weights"] = {"levels": "Nothing"}
    elif what == "bits":
        layer["weights"] = {**layer["weights"], "levels": {"type": "Integer", "bits": 99}}
    elif what == "key":
        layer["code"] = "import os"
    elif what == "layer":
        content["layers"]["elsewhere"] = content["layers"].pop(name)
    elif what == "description":
        content["model"] = {"type": "os.system"}
    elif what == "bias":
        tensors.pop(next(k for k in tensors if k.endswith("bias")))
    elif what == "twice":
        tensors[key] = torch.zeros(tensors[f"{key}.step"].shape)
    elif what == "layers":
        content["layers"] = [1, 2]
    elif what == "a short list":
        content["layers"] = [1]


@pytest.mark.parametrize(
    "what",
    [
        "codes", "code that is none", "dtype", "nan", "negative", "no step", "shape", "negative shape", "recipe", "bits", "key",
        "layer", "description", "bias", "twice", "layers", "a short list",
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_errors(exported, what):
    tensors, content = read_tensors(exported, "integer model")
    content = json.loads(json.dumps(content))
    change(tensors, content, next(iter(content["layers"])), what)
    write_tensors(exported, "integer model", tensors, content)
    with pytest.raises(ValueError, match=r"\w"):
        load_integers(exported)
