"""Every part can be named in an experiment file."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from snnrobust import data, experiments
from snnrobust.attacks import CRAFTS, FGSM, Linf
from snnrobust.cli import app
from snnrobust.draws import derive, draws
from snnrobust.encoders import Poisson, Rows
from snnrobust.evaluation import RobustnessReport, evaluate
from snnrobust.evaluation.fingerprint import fingerprint
from snnrobust.experiments.build import NAMES, build_model
from snnrobust.models import EarlyExit, SpikingClassifier, exit_step, exit_steps, load, truncate

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


def _parse(model: str, data: str = "digits") -> experiments.Experiment:
    return experiments.parse(FILE.format(model=model, data=data))


OF_SEQUENCES = ("Delta", "Frames", "LevelCrossing")


@pytest.mark.parametrize("name", OF_SEQUENCES)
def test_encoders_of_sequences(name: str) -> None:
    encoder = f'architecture = "recurrent"\nencoder = {{ type = "{name}", time_steps = 40 }}'
    _parse(encoder, "mnist-strokes")


@pytest.mark.parametrize("name", sorted(set(NAMES["encoder"]) - set(OF_SEQUENCES)))
def test_encoders(name: str) -> None:
    steps = 8 if name == "Rows" else 3
    _parse(f'architecture = "mlp"\nencoder = {{ type = "{name}", time_steps = {steps} }}')


@pytest.mark.parametrize("name", OF_SEQUENCES)
@pytest.mark.parametrize("kind", ["spiking", "ordinary"])
def test_channels_are_not_time(name: str, kind: str) -> None:
    """An image [1, 8, 8] would be a sequence of one step."""
    architecture = "mlp" if kind == "spiking" else "lstm"
    with pytest.raises(
        ValueError, match=rf"models\.snn\.encoder: {name} takes sequences .* use Rows\(time_steps = 8\)"
    ):
        _parse(f'architecture = "{architecture}"\nkind = "{kind}"\nencoder = {{ type = "{name}", time_steps = 1 }}')


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
    if name == "vgg16":
        with pytest.raises(ValueError, match="the smallest square image for this architecture is 32 x 32"):
            _parse(f'architecture = "{name}"\nkind = "{kind}"', "mnist")
    else:
        _parse(f'architecture = "{name}"\nkind = "{kind}"', "mnist")


def test_per_channel_and_normalised_input() -> None:
    direct = 'encoder = { type = "Direct", time_steps = 2 }\n'
    _parse(direct + 'neuron = { type = "LIF", decay = 0.5 }\nnormalise = { mean = [0.3], std = [0.2] }')
    with pytest.raises(ValueError, match="std"):
        _parse(direct + "normalise = { mean = 0.3, std = 0.0 }")
    with pytest.raises(ValueError, match="other channels than its input"):
        _parse(direct + "normalise = { mean = [0.3, 0.3, 0.3], std = 0.2 }")
    _parse('kind = "ordinary"\nnormalise = { mean = 0.3, std = 0.2 }')
    _parse('architecture = "recurrent"\nnormalise = { mean = 0.3, std = 0.2 }')  # rows of values


def test_spikes_are_not_normalised() -> None:
    with pytest.raises(ValueError, match=r"models\.snn: .*the spikes of Poisson: .*SignedPoisson"):
        _parse("normalise = { mean = 0.3, std = 0.2 }")


def test_what_does_not_fit_is_named_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"models\.snn: steps must be .*1\.\.8"):
        _parse("truncate = 9")
    with pytest.raises(ValueError, match="exit_confidence"):
        _parse("exit_confidence = 1.5")
    for confidence in (0.0, 1.0):
        _parse(f"exit_confidence = {confidence}")
    with pytest.raises(ValueError, match=r"models\[0\]\.truncate: truncate\.gamma must be in \(0, inf\], got 0\.0"):
        _parse("truncate = { gamma = 0.0 }")
    with pytest.raises(ValueError, match=r"must be a number of time steps or \{ gamma = 0\.1 \}, got \{'gama': 0\.1\}"):
        _parse("truncate = { gama = 0.1 }")
    with pytest.raises(ValueError, match=r"truncate must be an integer, got 1\.5: a number of time steps, or"):
        _parse("truncate = 1.5")
    with pytest.raises(ValueError, match=r"models\.snn\.truncate: the model has no BNTT"):
        _parse('norm = "TDBN"\ntruncate = { gamma = 0.1 }')
    with pytest.raises(ValueError, match=r"models\.snn: Latency .* cannot be truncated"):
        _parse('encoder = { type = "Latency", time_steps = 3 }\ntruncate = { gamma = 0.1 }')
    with pytest.raises(ValueError, match='Recurrent is a layer, not a neuron: set architecture = "recurrent"'):
        _parse('neuron = { type = "Recurrent" }')
    with pytest.raises(ValueError, match="did you mean 'BNTT'"):
        _parse('norm = "BNT"')
    with pytest.raises(ValueError, match="no exit_confidence, norm, truncate"):
        _parse('kind = "ordinary"\nnorm = "none"\ntruncate = 2\nexit_confidence = 0.5')


THREE = 'architecture = "mlp"\nencoder = { type = "Poisson", time_steps = 3 }\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a truncated model, one of its weights with an early exit, and a static exit by gamma."""
    text = FILE.format(data="digits", model=f"{THREE}truncate = 1")
    for name, field in (("whole", ""), ("early", "exit_confidence = 0.5"), ("gamma", "truncate = { gamma = 9.0 }")):
        text = text.replace(
            "[[attacks]]", f'[[models]]\nname = "{name}"\n{THREE}same_weights_as = "snn"\n{field}\n[[attacks]]'
        )
    text = text.replace("train = 100", "train = 300").replace("samples = 10", "samples = 30")
    text = text.replace("epochs = 1", 'epochs = 3, rule = { type = "BPTT", lr = 1e-2 }')
    folder = tmp_path_factory.mktemp("parts") / "run"
    return folder, experiments.run(experiments.parse(text), text, folder, progress=False)


def _rows(report: RobustnessReport | dict[str, Any], model: str) -> list[dict[str, Any]]:
    rows = report["rows"] if isinstance(report, dict) else report.to_json()["rows"]
    return [{k: v for k, v in row.items() if k not in ("model", "seconds")} for row in rows if row["model"] == model]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("snn", lambda whole: truncate(whole, 1)),
        ("whole", lambda whole: whole),
        ("early", lambda whole: EarlyExit(whole, 0.5)),
        ("gamma", lambda whole: truncate(whole, exit_step(whole, 9.0))),
    ],
)
def test_the_finished_model_is_judged_and_saved(
    name: str, make: Callable[[SpikingClassifier], nn.Module], finished: tuple[Path, dict[str, Any]]
) -> None:
    folder, results = finished
    trained = load(folder / "models" / "snn.trained.safetensors")
    assert isinstance(trained, SpikingClassifier)
    assert trained.time_steps == 3
    model, saved = make(trained).eval(), load(folder / "models" / f"{name}.safetensors")
    assert fingerprint(saved) == fingerprint(model)
    fgsm = FGSM(Linf(0.1))  # eot = 1
    again = evaluate(
        model, data.load("digits", "test"), {"fgsm": fgsm}, eps=[0.1], n=30, seed=derive(0, "evaluation") >> 1,
        chips={"ideal": None}, name=name, progress=False,
    )  # fmt: skip
    assert _rows(results["report"], name) == _rows(again, name)


def test_truncation_and_early_exit_change_the_numbers(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    assert {row["model"] for row in results["report"]["rows"]} == {"snn", "whole", "early", "gamma"}
    configuration = json.loads((folder / "configuration.json").read_text())
    assert [m["truncate"] for m in configuration["models"]] == [1, None, None, {"gamma": 9.0}]
    files = {p.name for p in (folder / "models").glob("*.trained.safetensors")}
    assert files == {"snn.trained.safetensors"}  # the others have no training of their own
    rows = [_rows(results["report"], name) for name in ("snn", "whole", "early")]
    assert not any(a == b for a, b in combinations(rows, 2))
    x = data.load("digits", "test").tensors[0][:30]
    logits = []
    for name in ("snn", "whole", "early"):
        model = load(folder / "models" / f"{name}.safetensors")
        with torch.no_grad(), draws(getattr(model, "model", model), 0):
            logits.append(model(x))
    assert not any(torch.equal(a, b) for a, b in combinations(logits, 2))


def test_the_steps_of_early_exit_are_reported(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    assert set(results["exits"]) == {"early"}
    exits = results["exits"]["early"]
    early = load(folder / "models" / "early.safetensors")
    assert isinstance(early, EarlyExit)
    with draws(early.model, derive(0, "exits", "early")):
        steps = exit_steps(early.model, data.load("digits", "test").tensors[0][:30], 0.5)
    assert exits["mean_steps"] == pytest.approx(float(steps.double().mean()))
    assert 1 < exits["mean_steps"] < 3
    assert exits["interval"][0] <= exits["mean_steps"] <= exits["interval"][1]
    assert (exits["confidence"], exits["time_steps"], exits["samples"]) == (0.5, 3, 30)


@pytest.mark.parametrize("command", ["attack", "inspect"])
@pytest.mark.parametrize("name", ["snn", "snn.trained", "whole", "early", "gamma"])
def test_the_commands_take_every_checkpoint(command: str, name: str, finished: tuple[Path, dict[str, Any]]) -> None:
    options = ["--attack", "FGSM", "-q"] if command == "attack" else []
    path = finished[0] / "models" / f"{name}.safetensors"
    result = CliRunner().invoke(app, [command, str(path), "--samples", "10", *options])
    assert result.exit_code == 0, result.output
    if command == "inspect" and name == "early":
        assert "exits at confidence 0.5; what follows is of all its time steps" in result.output


@pytest.mark.parametrize(
    ("architecture", "kind"), [("lstm", "ordinary"), ("recurrent", "spiking"), ("lstm", "spiking")]
)
def test_a_network_that_remembers_reads_rows_by_default(architecture: str, kind: str) -> None:
    section = _parse(f'architecture = "{architecture}"\nkind = "{kind}"').models[0]
    model = build_model(section, (1, 8, 8), 10, 0)
    assert isinstance(model, SpikingClassifier)
    assert fingerprint(model.encoder) == fingerprint(Rows(8))


def test_the_encoder_of_other_networks_is_poisson() -> None:
    model = build_model(_parse("").models[0], (1, 8, 8), 10, 0)
    assert isinstance(model, SpikingClassifier)
    assert fingerprint(model.encoder) == fingerprint(Poisson(8))


@pytest.mark.parametrize("neuron", ["LIF", "PLIF", "ALIF"])
def test_channels_that_do_not_fit_are_named(neuron: str) -> None:
    wrong = "features = 16" if neuron == "PLIF" else f"threshold = [{', '.join(['1.0'] * 16)}]"
    model = f'architecture = "conv-small"\nneuron = {{ type = "{neuron}", {wrong} }}'
    with pytest.raises(ValueError, match=r"models\.snn: .* has 16 values, one per channel, .*\(1, 32, 4, 4\)"):
        _parse(model)
    alike = model.replace("conv-small", "lenet5").replace("16", "6")
    with pytest.raises(ValueError, match="has 6 values"):
        _parse(alike.replace(", 1.0" * 10 + "]", "]"), "mnist")


@pytest.mark.parametrize("kind", ["spiking", "ordinary"])
def test_networks_that_remember_are_put_on_chips(kind: str) -> None:
    chip = '[[chips]]\nname = "noisy"\nbackends = [{ type = "Uniform", bits = 4 }]\n[[attacks]]'
    text = FILE.format(data="digits", model=f'architecture = "lstm"\nkind = "{kind}"')
    assert experiments.parse(text.replace("[[attacks]]", chip)).chips[0].name == "noisy"


def test_how_an_attack_on_a_chip_is_crafted_is_checked_before_anything_runs() -> None:
    def parse(
        craft: str, chips: str = '[[chips]]\nname = "noisy"\nbackends = [{ type = "Uniform", bits = 4 }]\n'
    ) -> None:
        text = FILE.format(data="digits", model="")
        experiments.parse(text.replace("[[attacks]]", f"{chips}[[attacks]]\n{craft}\n", 1))

    for craft in CRAFTS:
        parse(f'craft = "{craft}"')
    with pytest.raises(ValueError, match=r"craft says how an attack on a chip is made, but there are no \[\[chips\]\]"):
        parse('craft = "eot"', "")
    with pytest.raises(ValueError, match=r"craft: .*software"):
        parse('craft = "hardware"')
    with pytest.raises(ValueError, match="a source or a craft, not both"):
        parse('craft = "eot"\nsource = "snn"')
    alike = "".join(f'[[chips]]\nname = "{n}"\nbackends = [{{ type = "Uniform", bits = 4 }}]\n' for n in ("a b", "a-b"))
    with pytest.raises(ValueError, match="chips: two names give the same file name: a b, a-b"):
        parse("", alike)
