"""The command line, as a user types it."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from snnrobust import data, models
from snnrobust.cli import app
from snnrobust.draws import draws, keyed
from snnrobust.encoders import Poisson
from snnrobust.energy import count_operations
from snnrobust.layers import BNTT

COMMANDS = ["demo", "run", "attack", "diagnose", "inspect", "report", "list", "doctor"]


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with keyed(0):
        models.save(
            models.spiking(models.ARCHITECTURES["mlp"], (1, 8, 8), 10, Poisson(2)), tmp_path / "snn.safetensors"
        )
    return tmp_path / "snn.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command: str) -> None:
    code, output = call(command, "--help")
    assert code == 0
    assert f"snnrobust {command}" in output.split("Example:")[1]


def test_help_names_every_command() -> None:
    _, output = call("--help")
    assert all(command in output for command in COMMANDS)


def test_list_names_the_parts() -> None:
    code, output = call("list")
    assert code == 0
    for name in (
        "LIF",
        "Poisson",
        "ATan",
        "PGD",
        "GaussianNoise",
        "Uniform",
        "BPTT",
        "digits",
        "conv-small",
        "MeanMembrane",
        "model key",
        "exit_confidence",
        "same_weights_as",
    ):
        assert name in output


def test_doctor_says_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNNROBUST_DATA", str(tmp_path))
    code, output = call("doctor")
    assert code == 0
    assert torch.__version__ in output
    assert "1,297 training and 500 test samples" in output
    assert "is missing" in output  # MNIST


def test_attack_prints_a_table_and_writes_a_report(checkpoint: Path, tmp_path: Path) -> None:
    code, output = call(
        "attack", str(checkpoint), "--eps", "8/255", "--eps", "0.2", "--steps", "2", "--samples", "20",
        "--selection-draws", "2", "--judge-draws", "4", "-q", "-o", str(tmp_path / "report"),
    )  # fmt: skip
    assert code == 0
    for word in ("PGD", "worst case", "eps 0.03137", "eps 0.2", "n = 20 samples"):
        assert word in output
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("norm", "eps", "name"), [("l2", "0.5", "L2"), ("L0", "3", "L0 (pixels)"), ("linf", "0.1", "Linf")]
)
def test_attack_in_another_norm(norm: str, eps: str, name: str, checkpoint: Path) -> None:
    code, output = call(
        "attack", str(checkpoint), "--norm", norm, "--eps", eps, "--steps", "1", "--samples", "10",
        "--selection-draws", "2", "--judge-draws", "2", "-q",
    )  # fmt: skip
    assert code == 0
    assert f"eps in {name}; n = 10 samples" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norm", "l3", "--eps", "1"], "--norm must be one of linf, l"),
        (["--norm", "l2"], "--norm l2 needs --eps"),
        (["--norm", "l0", "--eps", "8/255"], "eps must be a whole number"),
    ],
)
def test_attack_names_a_norm_that_does_not_fit(arguments: list[str], words: str, checkpoint: Path) -> None:
    code, output = call("attack", str(checkpoint), *arguments, "-q")
    assert code != 0
    assert words in output


def test_diagnose_says_what_it_found(checkpoint: Path, tmp_path: Path) -> None:
    few = ("--eps", "0.1", "--samples", "20", "--draws", "4", "--check", "noise", "-q")
    code, output = call("diagnose", str(checkpoint), "-o", str(tmp_path / "found.json"), *few)
    assert code == 0
    assert output.startswith("gradient: inconclusive (eps = 0.1 in Linf, n = 20, seed 0, 4 draws a judgement)")
    assert "PGD-40 is stronger than random signs" in output
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["settings"]["gradient"].startswith("EOT(samples=4")
    assert call("diagnose", str(checkpoint), "--gradient", "HART", *few)[0] == 0


def test_attack_through_another_gradient_source(checkpoint: Path) -> None:
    few = "--eps", "0.2", "--steps", "1", "--samples", "4", "--selection-draws", "2", "--judge-draws", "2", "-q"
    code, output = call("attack", str(checkpoint), "--gradient", "HART", *few)
    assert code == 0, output
    code, output = call("attack", str(checkpoint), "--gradient", "HRAT", *few)
    assert code != 0
    assert "did you mean 'HART'?" in output


@pytest.mark.parametrize("kind", ["spiking", "ordinary"])
def test_inspect_prints_tables_and_writes_pictures(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    if kind == "ordinary":
        models.save(models.ordinary(models.ARCHITECTURES["mlp"], (1, 8, 8), 10), checkpoint)
    code, output = call("inspect", str(checkpoint), "--samples", "20", "-o", str(tmp_path / "seen"))
    assert code == 0, output
    assert "dense MAC" in output
    assert ("exit at confidence" in output) == (kind == "spiking")
    assert "mean of 20" in output
    written = {path.name for path in (tmp_path / "seen").iterdir()}
    assert written == {"operations.json", "rates.png"} | ({"exit.png"} if kind == "spiking" else set())


def test_inspect_shows_what_stopping_early_saves(checkpoint: Path) -> None:
    model = models.load(checkpoint)
    assert isinstance(model, models.SpikingClassifier)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BNTT):
                layer.weight[1:] = 0.05
    models.save(model, checkpoint)
    code, output = call("inspect", str(checkpoint), "--samples", "20", "--seed", "3")
    assert code == 0, output
    x = data.load("digits", "test").tensors[0][:20]
    with draws(model, 3):
        operations = count_operations(model, x)
    lines = output.splitlines()
    (first,) = [line for line in lines if line.startswith("1  ")]
    assert first.split()[-2:] == [f"{operations.upto(1).mac:,.0f}", f"{operations.upto(1).ac:,.0f}"]
    (row,) = [line for line in lines if line.startswith("network.2 ") and "LIF" not in line]
    assert row.split() == ["network.2", "1.000", "0.050"]
    saved = operations.ac - operations.upto(1).ac
    assert saved > 0
    assert (
        f"below 0.1 in every layer after step 1 of 2: stopping there saves 0 MAC and {saved:,.0f} AC a sample" in output
    )


@pytest.mark.parametrize("early", [False, True])
def test_inspect_takes_every_model_of_ours(early: bool, checkpoint: Path, tmp_path: Path) -> None:
    """An LSTM has no neurons to watch; an early exit is looked into."""
    model = models.ordinary(models.ARCHITECTURES["lstm"], (1, 8, 8), 10)
    assert isinstance(model, models.SpikingClassifier)
    models.save(models.EarlyExit(model.eval(), 0.11) if early else model, checkpoint)
    code, output = call("inspect", str(checkpoint), "--samples", "5", "-o", str(tmp_path / "seen"))
    assert code == 0, output
    assert "activity" not in output
    assert "gamma" not in output
    assert ("exits at confidence 0.11; what follows is of all its time steps" in output) == early
    assert any(line.startswith("0.11 ") for line in output.splitlines()) == early
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"operations.json", "exit.png"}


def test_run_prints_the_steps_of_early_exit(tmp_path: Path) -> None:
    (tmp_path / "early.toml").write_text(
        'name = "early"\n[data]\ntrain = 100\n[[models]]\nname = "snn"\narchitecture = "mlp"\n'
        'encoder = { type = "Direct", time_steps = 2 }\nexit_confidence = 1.0\ntraining = { epochs = 1 }\n'
        '[[attacks]]\nname = "fgsm"\nattack = { type = "FGSM" }\n[evaluation]\nsamples = 5\neps = [0.1]\n'
    )
    code, output = call("run", str(tmp_path / "early.toml"), "-o", str(tmp_path / "run"), "-q")
    assert code == 0, output
    assert "snn stops after 2.00 [2.00, 2.00] of 2 steps on average, at confidence 1 (clean inputs)" in output


def test_transfer_from_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    with keyed(1):
        models.save(models.ordinary(models.ARCHITECTURES["mlp"], (1, 8, 8), 10), tmp_path / "ann.safetensors")
    code, output = call(
        "attack", str(checkpoint), "--attack", "FGSM", "--source", str(tmp_path / "ann.safetensors"), "--eps", "0.1",
        "--samples", "10", "--selection-draws", "1", "--judge-draws", "1", "-q",
    )  # fmt: skip
    assert code == 0
    assert "transfer of FGSM" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "there is no experiment file"),
        (["attack", "none.safetensors"], "no model file"),
        (["diagnose", "CHECKPOINT", "--eps", "0.1", "--check", "swep"], "did you mean 'sweep'?"),
        (["diagnose", "CHECKPOINT", "--eps", "0.1", "--gradient", "HRAT"], "did you mean 'HART'?"),
        (["diagnose", "CHECKPOINT", "--eps", "0"], "eps must be positive"),
        (["inspect", "none.safetensors"], "no model file"),
        (["inspect", "CHECKPOINT", "--data", "digit"], "did you mean 'digits'?"),
        (["attack", "CHECKPOINT", "--eps", "-1"], "eps must be in"),
        (["attack", "CHECKPOINT", "--eps", "8"], "pixel steps"),
        (["attack", "CHECKPOINT", "--attack", "PDG"], "did you mean 'PGD'?"),
        (["attack", "CHECKPOINT", "--data", "digit"], "did you mean 'digits'?"),
        (["attack", "CHECKPOINT", "--samples", "501"], "only 500"),
        (["inspect", "CHECKPOINT", "--samples", "501"], "only 500"),
        (["inspect", "CHECKPOINT", "--samples", "0"], "n must be at least 1"),
        (["inspect", "CHECKPOINT", "--samples", "-3"], "n must be at least 1"),
        (["attack", "PICKLE"], "truncated or not a safetensors file"),
        (["report", "."], "not a run folder"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, checkpoint: Path, tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "model.pt")
    places = {"CHECKPOINT": str(checkpoint), "PICKLE": str(tmp_path / "model.pt"), ".": str(tmp_path)}
    code, output = call(*(places.get(a, a) for a in arguments))
    assert code == 2
    assert message in output.replace("\n", " ")
    assert "Traceback" not in output


@pytest.fixture
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("snnrobust.attacks.standard")
    for name, value in {"STEPS": 2, "QUERIES": 12, "TARGETS": 1, "CHUNK": 50}.items():
        monkeypatch.setattr(module, name, value)


def test_the_suite_is_run_from_the_command_line(checkpoint: Path, tmp_path: Path, small_suite: None) -> None:
    few = ["--samples", "12", "--selection-draws", "2", "--judge-draws", "3", "--eps", "0.1"]
    code, output = call(
        "attack", str(checkpoint), "--suite", "standard", *few, "--no-diagnose", "-o", str(tmp_path / "out")
    )
    assert code == 0, output
    for words in (
        "standard, version 1",
        "at most",
        "equal-budget control",
        "doubled effort",
        "for a paper: Threat model",
    ):
        assert words in output
    assert "the gradient was not examined" in output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The suite, stage by stage" in page
    code, output = call(
        "attack", str(checkpoint), "--suite", "standard", *few, "--no-diagnose", "-o", str(tmp_path / "out")
    )
    assert code == 0, output  # read back


def test_the_diagnosis_stands_in_the_report_of_the_suite(
    checkpoint: Path, tmp_path: Path, small_suite: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snnrobust import evaluation

    original = evaluation.diagnose
    monkeypatch.setattr(evaluation, "diagnose", lambda *a, **k: original(*a, **k, checks=["skill"], draws=2))
    few = ["--samples", "12", "--selection-draws", "2", "--judge-draws", "3", "--eps", "0.1", "--no-controls", "-q"]
    code, output = call("attack", str(checkpoint), "--suite", "standard", *few, "-o", str(tmp_path / "out"))
    assert code == 0, output
    assert "gradient: inconclusive" in output
    assert "Diagnosis: can the attacks be believed?" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("option", [["--steps", "3"], ["--eot", "2"], ["--gradient", "ASSG"], ["--restarts", "2"]])
def test_a_suite_is_fixed_beforehand(option: list[str], checkpoint: Path) -> None:
    code, output = call("attack", str(checkpoint), "--suite", "standard", *option, "-q")
    assert code == 2
    assert f"{option[0]} says nothing to a suite" in output
