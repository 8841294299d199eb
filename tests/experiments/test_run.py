"""A run folder holds everything, survives being killed, and says whose it is."""

import csv
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from snnrobust import experiments, hardware, models
from snnrobust.cli import app
from snnrobust.draws import draws
from snnrobust.models.checkpoint import read_tensors
from snnrobust.quantization import Uniform

TEXT = """
name = "small"
seed = 3
[data]
train = 200
validation = 40
[[models]]
name = "ann"
kind = "ordinary"
training = { epochs = 3 }
[[models]]
name = "my snn"
architecture = "mlp"
encoder = { type = "Poisson", time_steps = 3 }
training = { epochs = 4, rule = { type = "BPTT", lr = 1e-2 } }
[[models]]
name = "blind"
architecture = "mlp"
encoder = { type = "Poisson", time_steps = 3, gradient = "none" }
same_weights_as = "my snn"
trap = "no gradient"
[[attacks]]
name = "pgd"
attack = { type = "PGD", steps = 3 }
eot = 2
[[attacks]]
name = "transfer"
attack = { type = "FGSM" }
source = "ann"
[[attacks]]
name = "sharp"
attack = { type = "PGD", steps = 2, loss = "margin" }
surrogate = { type = "ATan", alpha = 8.0 }
[[attacks]]
name = "unaware"
attack = { type = "FGSM" }
craft = "software"
[[chips]]
name = "chip"
backends = [{ type = "Uniform", bits = 4 }, { type = "GaussianNoise", multiplicative = 0.2 }]
[evaluation]
samples = 60
eps = [0.1, 0.2]
chip_eps = [0.1]
selection_draws = 3
judge_draws = 10
[diagnosis]
eps = 0.1
samples = 60
draws = 4
"""


def run(folder: Path, text: str = TEXT) -> dict[str, Any]:
    return experiments.run(experiments.parse(text), text, folder, progress=False)


def timeless(value: Any) -> Any:
    """Without what measures time."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(folder)
    return folder


def test_the_folder_holds_everything(finished: Path) -> None:
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert names >= {
        "experiment.toml", "configuration.json", "versions.json", "results.json", "samples.csv", "report.html",
        "models/ann.safetensors", "models/my-snn.safetensors", "models/blind.safetensors",
        "models/ann.history.json", "models/ann.training.safetensors", "chips/ann--chip.safetensors",
        "chips/my-snn--chip.safetensors",
    }  # fmt: skip
    assert not [n for n in names if n.endswith(".tmp")]
    assert (finished / "experiment.toml").read_text() == TEXT
    assert json.loads((finished / "configuration.json").read_text())["seed"] == 3
    assert json.loads((finished / "versions.json").read_text())["torch"] == str(torch.__version__)
    assert [r["epoch"] for r in json.loads((finished / "models" / "ann.history.json").read_text())] == [1, 2, 3]


def test_results_cover_every_model_chip_attack_and_budget(finished: Path) -> None:
    results = experiments.read_results(finished)
    found = {(r["model"], r["chip"], r["attack"], r["eps"]) for r in results["report"]["rows"]}
    for model, named in (("ann", {"pgd"}), ("my snn", {"pgd", "transfer", "sharp"})):
        for chip, budgets in (("ideal", {0.1, 0.2}), ("chip", {0.1})):
            lines = {(a, e) for m, c, a, e in found if (m, c) == (model, chip)}
            run_there = named | {"worst case", "null control"} | ({"unaware"} if chip == "chip" else set())
            assert lines == {("clean", 0.0)} | {(a, e) for a in run_there for e in budgets}
    assert {c for m, c, _, _ in found if m == "blind"} == {"ideal"}  # a trap is not put on chips
    assert set(results["diagnoses"]) == {"ann", "my snn", "blind"}
    assert results["diagnoses"]["blind"]["verdict"] == "masked"
    with (finished / "samples.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 60 * len(found)


def test_the_checkpoint_is_the_model_that_was_judged(finished: Path) -> None:
    history = json.loads((finished / "models" / "my-snn.history.json").read_text())
    model = models.load(finished / "models" / "my-snn.safetensors")
    assert model.time_steps == 3
    assert history[-1]["validation_accuracy"] is not None


def test_the_chips_are_those_that_were_judged_and_can_be_attacked_again(finished: Path) -> None:
    chip = hardware.load(finished / "chips" / "ann--chip.safetensors")
    again = hardware.deploy(
        models.load(finished / "models" / "ann.safetensors"),
        hardware.Chain(Uniform(bits=4), hardware.GaussianNoise(multiplicative=0.2)),
        seed=0,
    )
    x = torch.rand(3, 1, 8, 8)
    with draws(chip, 1), draws(again, 1):
        assert torch.equal(chip(x), again(x))
    command = [
        "attack",
        str(finished / "chips" / "ann--chip.safetensors"),
        "--eps",
        "0.1",
        "--samples",
        "8",
        "--steps",
        "1",
    ]
    result = CliRunner().invoke(app, [*command, "--selection-draws", "2", "--judge-draws", "2", "-q"])
    assert result.exit_code == 0, result.output
    assert "worst case" in result.output


def test_running_a_finished_folder_changes_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert run(finished) == experiments.read_results(finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_the_seed_decides_everything(finished: Path, tmp_path: Path) -> None:
    again, other = run(tmp_path / "again"), run(tmp_path / "other", TEXT.replace("seed = 3", "seed = 4"))
    first = experiments.read_results(finished)
    assert timeless(again) == timeless(first)
    assert timeless(other)["report"]["rows"] != timeless(first)["report"]["rows"]


def test_a_folder_of_another_experiment_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"another experiment \(seed differ"):
        run(finished, TEXT.replace("seed = 3", "seed = 4"))
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / ".draft.tmp").write_text("mine too")
    with pytest.raises(ValueError, match=r"holds .draft.tmp and is not a run folder"):
        run(tmp_path)
    assert (tmp_path / ".draft.tmp").exists()


def test_what_a_kill_leaves_of_the_very_first_file_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / ".experiment.toml.abc.tmp").write_text("half of it")
    with pytest.raises(ValueError, match="only 500 test samples"):  # it gets as far as the data
        run(folder, TEXT.replace("samples = 60\neps", "samples = 501\neps"))
    assert not list(folder.rglob("*.tmp"))


def test_other_versions_are_told(tmp_path: Path) -> None:
    text = TEXT.replace("samples = 60\neps", "samples = 501\neps")
    with pytest.raises(ValueError, match="only 500"):
        run(tmp_path / "x", text)
    path = tmp_path / "x" / "versions.json"
    path.write_text(path.read_text().replace(str(torch.__version__), "1.0"))
    with pytest.warns(UserWarning, match=r"begun with .*'torch': '1.0'"), pytest.raises(ValueError, match="only 500"):
        run(tmp_path / "x", text)


def test_too_many_samples_are_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only 500 test samples"):
        run(tmp_path / "x", TEXT.replace("samples = 60\neps", "samples = 501\neps"))
    assert not (tmp_path / "x" / "models").exists()


def test_missing_data_is_told_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNROBUST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="SNNROBUST_DATA"):
        run(tmp_path / "x", TEXT.replace("[data]", '[data]\nname = "mnist"'))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"report": {"rows": 1, "nonsense": 2}}'])
def test_damaged_results_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        experiments.read_results(tmp_path)


def steps(folder: Path) -> int:
    """Finished epochs, cells and diagnoses."""
    states = [read_tensors(path, "training state")[1] for path in folder.glob("models/[!.]*.training.safetensors")]
    cells = [*folder.glob("cells/[!.]*.safetensors"), *folder.glob("diagnoses/[!.]*.json")]
    return sum(len(state["records"]) for state in states) + len(cells)


def killed(folder: Path, after: float, delay: float = 0.0) -> bool:
    """Run in a process of its own and kill it ``after`` more steps and ``delay`` seconds; False if it finished before."""
    file, log, until = folder.parent / "small.toml", folder.parent / "log", steps(folder) + after
    file.write_text(TEXT)
    command = [sys.executable, "-m", "snnrobust.cli", "run", str(file), "-o", str(folder), "-q"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            limit = time.monotonic() + 300
            while process.poll() is None and steps(folder) < until:
                assert time.monotonic() < limit, f"stuck: {log.read_text()}"
                time.sleep(0.01)
            time.sleep(delay)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()
    return process.returncode != 0


def _same_after_kills(finished: Path, folder: Path, moments: list[tuple[int, float]]) -> None:
    assert sum(killed(folder, *moment) for moment in moments) > 0
    assert not killed(folder, math.inf)  # and this time to the end
    assert timeless(experiments.read_results(folder)) == timeless(experiments.read_results(finished))
    assert (folder / "samples.csv").read_bytes() == (finished / "samples.csv").read_bytes()


def test_a_killed_run_goes_on_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    """Killed in the second model's training, then amid the cells."""
    _same_after_kills(finished, tmp_path / "killed", [(3 + 2, 0.0), (2 + 10, 0.0)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments(finished: Path, tmp_path: Path) -> None:
    total = steps(finished)
    for index in range(10):  # each on a folder of its own, then all ten on one
        (tmp_path / str(index)).mkdir()
        moment = random.randrange(total // 2), random.uniform(0, 0.1)
        _same_after_kills(finished, tmp_path / str(index) / "killed", [moment])
    moments = [(random.randint(0, total // 5), random.uniform(0, 0.1)) for _ in range(10)]
    _same_after_kills(finished, tmp_path / "killed", moments)


def test_the_same_weights_include_what_a_conversion_changed(tmp_path: Path) -> None:
    """Thresholds and neurons, which are no weights."""
    text = """
name = "small"
trainer = "conversion"
[data]
train = 60
[[models]]
name = "my snn"
architecture = "mlp"
encoder = { type = "Poisson", time_steps = 4 }
training = { epochs = 1 }
[[models]]
name = "blind"
architecture = "mlp"
encoder = { type = "Poisson", time_steps = 4, gradient = "none" }
same_weights_as = "my snn"
trap = "no gradient"
[[attacks]]
name = "random"
attack = { type = "RandomSign" }
[evaluation]
samples = 10
eps = [0.1]
selection_draws = 1
judge_draws = 1
"""
    run(tmp_path / "run", text)
    original, blind = (models.load(tmp_path / "run" / "models" / f"{n}.safetensors") for n in ("my-snn", "blind"))
    thresholds = [[m.threshold for m in model.modules() if hasattr(m, "threshold")] for model in (original, blind)]
    assert thresholds[0] == thresholds[1]
    assert thresholds[0] != [1.0, 1.0]
    report = json.loads((tmp_path / "run" / "models" / "my-snn.conversion.json").read_text())
    assert [layer["threshold"] for layer in report["layers"]] == thresholds[0]
    assert not (tmp_path / "run" / "models" / "my-snn.learnt.safetensors").exists()
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad(), draws(original, 5), draws(blind, 5):
        assert torch.equal(original(x), blind(x))


def test_what_was_learnt_beside_the_model_is_kept(tmp_path: Path) -> None:
    text = """
name = "small"
trainer = { type = "LE", readout = "learnt" }
[data]
train = 60
[[models]]
name = "my snn"
architecture = "mlp"
encoder = { type = "Direct", time_steps = 4 }
training = { epochs = 1 }
[[attacks]]
name = "random"
attack = { type = "RandomSign" }
[evaluation]
samples = 10
eps = [0.1]
selection_draws = 1
judge_draws = 1
"""
    run(tmp_path / "run", text)
    learnt = load_file(tmp_path / "run" / "models" / "my-snn.learnt.safetensors")
    assert learnt
    assert all(t.isfinite().all() for t in learnt.values())
    assert not (tmp_path / "run" / "models" / "my-snn.conversion.json").exists()
