"""``[quantization]`` of experiment files."""

import json

import pytest
import torch

from snnrobust import data, experiments
from snnrobust.evaluation.html import render
from snnrobust.models import load
from snnrobust.quantization import Integer, Quantizer, SignalQuantizer, calibrate, precision, quantize, weight_quantizer

FILE = """
name = "quantized"
[data]
name = "digits"
train = 100
{top}
[[models]]
name = "snn"
architecture = "mlp"
encoder = {{ type = "Direct", time_steps = 2 }}
training = {{ epochs = 1 }}
{snn}
[[models]]
name = "ann"
kind = "ordinary"
architecture = "mlp"
training = {{ epochs = 1 }}
{ann}
[[attacks]]
name = "fgsm"
attack = {{ type = "FGSM" }}
{more}
[evaluation]
samples = 10
eps = [0.1]
"""
TOP = "[quantization]\nweights = { bits = 4, axis = 0 }\ninputs = { bits = 8 }\n"


def text(top="", snn="", ann="", more=""):
    return FILE.format(top=top, snn=snn, ann=ann, more=more)


def parse(**parts):
    return experiments.parse(text(**parts))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "run"
    own = 'quantization = { when = "after", weights = { bits = 3 }, inputs = { bits = 6 }, bits = { "1" = 2 }, calibration = 50 }'
    chip = '[[chips]]\nname = "noisy"\nbackends = [{ type = "GaussianNoise", multiplicative = 0.2 }]'
    content = text(TOP, ann=own, more=chip)
    return folder, experiments.run(experiments.parse(content), content, folder, progress=False)


def test_the_models_are_quantized_as_the_file_says(finished):
    folder, _ = finished
    snn = precision(load(folder / "models" / "snn.safetensors"))
    assert {(p.weights, p.inputs) for p in snn.values()} == {(4, 8)}
    ann = precision(load(folder / "models" / "ann.safetensors"))
    assert [(p.weights, p.inputs) for p in ann.values()] == [(2, 2), (3, 6), (3, 6)]


def test_quantized_in_training(finished):
    """What was learnt lies between the levels."""
    model = load(finished[0] / "models" / "snn.safetensors")
    for layer in model.modules():
        if (quantizer := weight_quantizer(layer)) is not None:
            original = layer.parametrizations.weight.original
            assert not torch.equal(layer.weight, original)
            assert torch.equal(layer.weight, quantizer.recipe(original))


def test_quantized_after_training(finished):
    folder, _ = finished
    trained = load(folder / "models" / "ann.trained.safetensors")
    assert not any(isinstance(m, SignalQuantizer) for m in trained.modules())
    x = data.load("digits", "train").tensors[0][:50]
    inputs = Quantizer(Integer(6), affine=True)
    expected = calibrate(quantize(trained, weights=Quantizer(Integer(3)), inputs=inputs, bits={"1": 2}), x)
    judged = load(folder / "models" / "ann.safetensors")
    assert torch.equal(judged(x), expected(x))


def test_the_report_shows_bits_size_and_energy(finished):
    folder, results = finished
    found = results["precision"]
    assert set(found) == {"snn", "ann"}
    layers = found["ann"]["layers"]
    assert [layer["weights"] for layer in layers] == [2, 3, 3]
    assert found["ann"]["bytes"] == sum(layer["bytes"] for layer in layers)
    assert all(layer["usual_pj"] > 0 for layer in layers)
    page = (folder / "report.html").read_text()
    assert "Bits, size and energy" in page
    assert render(json.loads((folder / "results.json").read_text())) == page


def test_chips_hold_the_quantized_model(finished):
    assert {row["chip"] for row in finished[1]["report"]["rows"]} == {"ideal", "noisy"}


def test_inputs_are_affine_unless_they_say_otherwise():
    for given, expected in (
        ("{ bits = 8 }", Quantizer(Integer(8), affine=True)),
        ("{ bits = 8, affine = false }", Quantizer(Integer(8))),
        ("{ bits = 8, signed = false }", Quantizer(Integer(8, signed=False))),
        ('{ bits = 8, scale = "learned" }', Quantizer(Integer(8), "learned")),
    ):
        section = parse(snn=f"quantization = {{ inputs = {given} }}").models[0].quantization
        assert section.quantizers() == {"inputs": expected}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"top": "[quantization]\n"}, "nothing to quantize"),
        ({"top": "[quantization]\nweight = { bits = 4 }\n"}, "did you mean 'weights'"),
        ({"top": "[quantization]\nweights = { bits = 0 }\n"}, r"2\.\.16"),
        ({"top": "[quantization]\nweights = { bits = 17 }\n"}, r"2\.\.16"),
        ({"top": "[quantization]\nweights = { levels = 'Ternay' }\n"}, "did you mean 'Ternary'"),
        (
            {"snn": "quantization = { weights = { bits = 4 }, layers = ['fc'] }"},
            "models.snn.quantization: layers must be one of",
        ),
        (
            {"snn": "quantization = { weights = { bits = 4 }, bits = { fc = 4 } }"},
            "models.snn.quantization: bits must be one of",
        ),
        ({"ann": "quantization = { membranes = { bits = 4 } }"}, "models.ann.quantization: the model has no"),
        ({"snn": "quantization = { weights = { bits = 4 } }\ntrainer = 'DFA'"}, "DFA has gradients of its own"),
        ({"snn": "quantization = { inputs = { bits = 4, axis = 0 } }"}, "axis is for weights"),
    ],
)
def test_mistakes_are_named_before_anything_runs(parts, words):
    with pytest.raises(ValueError, match=words):
        parse(**parts)
