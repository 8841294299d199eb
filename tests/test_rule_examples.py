"""The scripts in examples/ behind docs/learning_rules.md and docs/attacks run, on small stand-ins for the data."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import TensorDataset

from snnrobust.data import SHAPES

EXAMPLES = Path(__file__).parents[1] / "examples"


def few(name: str, split: str) -> TensorDataset:
    """Images of noise, in the shape of the data set."""
    generator = torch.Generator().manual_seed(len(name) + len(split))
    size = 200 if name == "digits" else 30
    return TensorDataset(torch.rand(size, *SHAPES[name], generator=generator), torch.arange(size) % 10)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., ModuleType]:
    def load(name: str, *arguments: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_script", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"{name}_script", module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module.data, "load", few)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--output", str(tmp_path), *arguments])
        return module

    return load


def test_rules(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("rules", "--rules", "dfa", "ottt", "conversion", "--epochs", "2", "--seeds", "1")
    script.SETTINGS = {}
    script.measured_memory = lambda rule: 2.0**20
    script.main()
    table = capsys.readouterr().out
    assert [row.split(" | ")[0] for row in table.splitlines() if "conv-small" in row] == [
        "| DFA",
        "| OTTT",
        "| Conversion",
    ]
    assert (tmp_path / "rules.png").is_file()
    script.main()
    assert "training" not in capsys.readouterr().out  # nothing is computed again


def test_mnist_rules(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("mnist_rules", "--seeds", "1")
    wanted = ("FA", "LE", "STDB")
    script.RUNS = [
        script.Run(
            r.rule,
            {**r.network, "architecture": "mlp"},
            2,
            1,
            {"ann_epochs": 1} if r.rule == "STDB" else {},
            30,
            r.variant,
        )
        for r in script.RUNS
        if r.rule in wanted
    ]
    script.main()
    table = capsys.readouterr().out
    assert [row.split(" | ")[0] for row in table.splitlines() if " mlp " in row] == [
        "| FA",
        "| LE",
        "| LE learnt",
        "| STDB",
    ]
    assert (tmp_path / "table.md").read_text() in table


def test_hybrid(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("hybrid", "--only", "conversion", "--seeds", "1")
    script.STEPS = (2, 4)
    script.main()
    assert capsys.readouterr().out.count("| converted, T =") == 2


def test_cifar_bntt(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("cifar_bntt", "--epochs", "1", "--seeds", "1")
    script.NARROW = (script.Conv(4), script.Pool(4), script.Dense(8))
    script.main()
    table = capsys.readouterr().out
    assert table.count("| BNTT | 0 |") == table.count("| none | 0 |") == 1
    assert (tmp_path / "accuracy.png").is_file()


def test_learning_rule_gradients(
    run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = run("learning_rule_gradients", "--quick", "--rules", "BPTT", "DFA")
    script.QUICK = script.Plan("digits", epochs=1, steps=1, queries=3, n=20)
    script.main()
    first = capsys.readouterr().out
    rows = [row.split(" | ") for row in first.splitlines() if row.startswith("| ")]
    assert [row[0] for row in rows] == ["| rule", "| BPTT", "| DFA"]
    assert rows[0][2:5] == ["clean", "random signs", "own rule, random, one step"]
    assert rows[1][4] == ""  # BPTT has no random feedback
    assert rows[2][4] != ""
    folder = tmp_path / "quick"
    assert (folder / "gradients.png").is_file()
    assert (folder / "table.md").read_text() == "\n".join(row for row in first.splitlines() if row.startswith("|"))
    cells = {p: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()}
    script.main()
    again = capsys.readouterr().out
    assert not any(word in again for word in ("training", "diagnosing"))  # nothing is computed again
    assert "diagnosis of DFA, attacked by its own rule alone:" in again
    assert "diagnosis of BPTT" not in again
    assert {p: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()} == cells


def test_poisson_grid(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("poisson_grid", "--quick")
    script.QUICK = replace(script.QUICK, steps=(3,), images={0: 5}, most=2, doubled=(3,))
    script.main()
    first = capsys.readouterr().out
    assert (
        first.count("| LIF, leak 1; Bernoulli |") == 5
    )  # clean, attacked, noise, training steps; and attack by attack
    assert first.count("| spikes, leak 1, in place of levels; Bernoulli |") == 1
    assert (tmp_path / "quick" / "grid.png").is_file()
    for path in (tmp_path / "quick").glob("*.json"):
        cell = json.loads(path.read_bytes())
        assert cell["distance"] <= 0.1
        assert all(0 <= right <= cell["draws"] for right in cell["correct"])
    script.main()
    again = capsys.readouterr().out
    assert again.startswith("| clean")  # nothing is computed again
    assert first.endswith(again)


def test_poisson_grid_networks(run: Callable[..., ModuleType]) -> None:
    script = run("poisson_grid")
    x = torch.rand(6, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    rounded = script.Rounded(4)(x)
    assert (rounded * 4).round().unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(rounded, (x * 5).floor() / 4)
    rate = script.Rate(3)(x) * 3
    assert torch.equal(rate, rate.round())
    plain = script.built(script.PLAIN, 0)
    weights = list(plain.parameters())
    for network in script.networks(script.QUICK):
        other = [p for p in script.built(network, 0).parameters() if p.dim() > 0]
        assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True)), network.name


@pytest.mark.filterwarnings("ignore::snnrobust.learning_rules.activity.TrainingWarning")  # noise teaches nothing
def test_surrogate_sweep(run: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run("surrogate_sweep", "--quick", "--seeds", "2")
    script.QUICK = replace(script.QUICK, images=4, steps=2)
    script.main()
    first = capsys.readouterr().out
    assert first.count("training seed") == 2
    assert all(f"| {source} |" in first for source in script.QUICK.sources)
    assert "| mean |" in first
    assert (tmp_path / "quick" / "sweep.png").is_file()
    for path in (tmp_path / "quick").glob("*.json"):
        found = json.loads(path.read_bytes())
        single = [found["right"][f"{s}, {o}"] for s in script.QUICK.sources for o in script.OPTIMISERS]
        assert found["right"][script.UNION] == [min(each) for each in zip(*single, strict=True)]
    script.main()
    again = capsys.readouterr().out
    assert "training" not in again.split("|")[0]  # nothing is computed again
    assert first.endswith(again)


def test_surrogate_sweep_gives_both_sides_the_same_budget(run: Callable[..., ModuleType]) -> None:
    script = run("surrogate_sweep")
    sweep, control = script.suites(script.FULL)
    assert sum(a.steps * a.restarts for a in sweep.values()) == sum(a.steps * a.restarts for a in control.values())
    assert {a.gradient for a in control.values()} == {script.SOURCES[script.TRAINING]}
    assert {a.threat for a in (*sweep.values(), *control.values())} == {script.attacks.Linf(script.FULL.eps)}
