"""The command line, as a user types it."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from snnrobust import models
from snnrobust.cli import app
from snnrobust.draws import keyed
from snnrobust.encoders import Poisson

COMMANDS = ["demo", "run", "attack", "inspect", "report", "list", "doctor"]


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
        (["inspect", "none.safetensors"], "no model file"),
        (["inspect", "CHECKPOINT", "--data", "digit"], "did you mean 'digits'?"),
        (["attack", "CHECKPOINT", "--eps", "-1"], "eps must be in"),
        (["attack", "CHECKPOINT", "--eps", "8"], "pixel steps"),
        (["attack", "CHECKPOINT", "--attack", "PDG"], "did you mean 'PGD'?"),
        (["attack", "CHECKPOINT", "--data", "digit"], "did you mean 'digits'?"),
        (["attack", "CHECKPOINT", "--samples", "501"], "only 500"),
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
