"""Every part can be named in an experiment file."""

import json
from pathlib import Path

import pytest

from snnrobust import experiments
from snnrobust.experiments.build import NAMES

FILE = """
name = "parts"
[data]
name = "{data}"
train = 100
[[models]]
name = "snn"
{model}
training = {{ epochs = 1 }}
[[attacks]]
name = "fgsm"
attack = {{ type = "FGSM" }}
[evaluation]
samples = 10
eps = [0.1]
"""
ARGUMENTS = {
    "Rows": "time_steps = 8",
    "Frames": "time_steps = 1",
    "Delta": "time_steps = 1",
    "LevelCrossing": "time_steps = 1",
}


def _parse(model: str, data: str = "digits") -> experiments.Experiment:
    return experiments.parse(FILE.format(model=model, data=data))


@pytest.mark.parametrize("name", sorted(NAMES["encoder"]))
def test_encoders(name: str) -> None:
    arguments = ARGUMENTS.get(name, "time_steps = 3")
    _parse(f'architecture = "mlp"\nencoder = {{ type = "{name}", {arguments} }}')


@pytest.mark.parametrize("name", sorted(NAMES["neuron"]))
def test_neurons(name: str) -> None:
    _parse(f'architecture = "mlp"\nneuron = {{ type = "{name}", refractory = 1, detach_reset = false }}')


@pytest.mark.parametrize("name", sorted(NAMES["surrogate"]))
def test_surrogates(name: str) -> None:
    _parse(f'architecture = "mlp"\nneuron = {{ type = "LIF", surrogate = {{ type = "{name}" }} }}')


@pytest.mark.parametrize("name", sorted(NAMES["norm"]))
def test_norms(name: str) -> None:
    _parse(f'norm = "{name}"')


@pytest.mark.parametrize("name", sorted(NAMES["readout"]))
def test_readouts(name: str) -> None:
    _parse(f'architecture = "mlp"\nreadout = {{ type = "{name}" }}')


@pytest.mark.parametrize("kind", ["spiking", "ordinary"])
@pytest.mark.parametrize("name", sorted(NAMES["architecture"]))
def test_architectures(name: str, kind: str) -> None:
    encoder = 'encoder = { type = "Rows", time_steps = 28 }' if name in ("lstm", "recurrent") else ""
    if name == "vgg16":
        with pytest.raises(ValueError, match="the smallest square image for this architecture is 32 x 32"):
            _parse(f'architecture = "{name}"\nkind = "{kind}"', "mnist")
    else:
        _parse(f'architecture = "{name}"\nkind = "{kind}"\n{encoder}', "mnist")


def test_per_channel_and_normalised_input() -> None:
    _parse('neuron = { type = "LIF", decay = 0.5 }\nnormalise = { mean = [0.3], std = [0.2] }')
    with pytest.raises(ValueError, match="std"):
        _parse("normalise = { mean = 0.3, std = 0.0 }")
    with pytest.raises(ValueError, match="other channels than its input"):
        _parse("normalise = { mean = [0.3, 0.3, 0.3], std = 0.2 }")


def test_what_does_not_fit_is_named_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"models\.snn: steps must be .*1\.\.8"):
        _parse("truncate = 9")
    with pytest.raises(ValueError, match="exit_confidence"):
        _parse("exit_confidence = 1.5")
    with pytest.raises(ValueError, match="did you mean 'BNTT'"):
        _parse('norm = "BNT"')
    with pytest.raises(ValueError, match="no exit_confidence, norm, truncate"):
        _parse('kind = "ordinary"\nnorm = "none"\ntruncate = 2\nexit_confidence = 0.5')


def test_truncation_and_early_exit_are_judged(tmp_path: Path) -> None:
    three = 'architecture = "mlp"\nencoder = { type = "Direct", time_steps = 3 }\n'
    text = FILE.format(data="digits", model=three)
    for name, field in (("short", "truncate = 1"), ("early", "exit_confidence = 0.3")):
        text = text.replace(
            "[[attacks]]", f'[[models]]\nname = "{name}"\n{three}same_weights_as = "snn"\n{field}\n[[attacks]]'
        )
    results = experiments.run(experiments.parse(text), text, tmp_path / "run", progress=False)
    assert {row["model"] for row in results["report"]["rows"]} == {"snn", "short", "early"}
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["models"][1]["truncate"] == 1
