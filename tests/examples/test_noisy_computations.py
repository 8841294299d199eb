"""The script of docs/hardware/noisy_computations.md runs on small stand-ins for the data, and selects as it says."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from snnrobust.data import SHAPES

PATH = Path(__file__).parents[2] / "examples" / "papers" / "noisy_computations.py"


def few(shape: tuple[int, ...]) -> TensorDataset:
    return TensorDataset(torch.rand(40, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("noisy_computations_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "noisy_computations_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.data, "load", lambda name, split: few(SHAPES[name]))
    monkeypatch.setattr(module.data, "mnist_strokes", lambda folder, split, points, kind: few((points, 2)))
    monkeypatch.setattr(module, "ATTACKED", (0.0, 0.4))
    return module


@pytest.fixture
def run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["noisy_computations.py", "--quick", "--output", str(tmp_path), *arguments])
        script.main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_all_parts_run_and_go_on_where_they_stopped(
    run: Callable[..., str], script: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "quick"
    first = run("--part", "lstm", "--seeds", "1")
    assert first.count("training lstm/") == 2
    two = run("--part", "lstm", "--seeds", "2")
    assert two.count("training lstm/seed0") == 0
    assert two.count("training lstm/seed1") == 2
    assert "pen strokes, multiplicative noise in its gates and output (Tables 6 and 9); seeds: 2, n = 20" in two
    everything = run("--seeds", "1")
    assert everything.count("training lstm") == 0
    tables = (folder / "tables.md").read_text()
    for title in script.TITLES.values():
        assert f"## {title}; seeds: 1, n = 20" in tables
    assert (folder / "noisy_computations.png").is_file()
    shown = run("--seeds", "2", "--tables", "--part", "add")  # of the other parts, too, what is there
    assert (shown.count("seeds: 1,"), shown.count("seeds: 2,")) == (3, 1)
    assert run("--seeds", "1").strip() == tables.strip()  # nothing is computed again
    summary = json.loads((folder / "summary.json").read_text())
    assert {p: len(summary[p]) for p in script.GRIDS} == dict.fromkeys(script.GRIDS, 4)
    with pytest.raises(SystemExit, match="other settings"):
        run("--n", "10")


def cell(script: ModuleType, **right: list[list[int]]) -> dict[str, Tensor]:
    return {name.replace("_", " "): torch.tensor(r, dtype=torch.uint8) for name, r in right.items()}


def test_the_training_sigma_is_chosen_on_the_images_that_are_named(script: ModuleType) -> None:
    good, bad = [[1, 1, 1]], [[0, 1, 0]]
    cells = {
        0.0: cell(script, train_single=good, test_single=bad, train_voted=bad, test_voted=bad),
        1.0: cell(script, train_single=bad, test_single=good, train_voted=bad, test_voted=good),
    }
    grid = script.Grid((0.0, 1.0), {(t, 1.0): [c] for t, c in cells.items()})
    assert (grid.best(1.0, "single", "train"), grid.best(1.0, "single", "test")) == (0.0, 1.0)
    assert grid.best(1.0, "voted", "train") == 0.0  # the smallest of equal ones
    assert np.allclose(grid.right(0.0, 1.0, "single"), [[0, 1, 0]])


def test_votes_are_those_of_so_many_draws(script: ModuleType) -> None:
    chip = script.deploy(script.cnn(script.QUICK).eval(), script.noise("mult", 1.0), seed=0)
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = script.predicted(chip, x, 5, 3)
    assert found["single"].shape == (5, 6)
    assert found["voted"].shape == (4, 6)  # of 1, 2, 3 and 5
    assert torch.equal(found["voted"][0], found["single"][0])
    for row, k in ((2, 3), (3, 5)):
        counts = torch.stack([torch.bincount(v, minlength=10) for v in found["single"][:k].long().T])
        won = counts.gather(1, found["voted"][row].long()[:, None])[:, 0]
        assert torch.equal(won, counts.amax(1))
    grid = script.Grid((0.0, 1.0), {(0.0, 1.0): [{"test voted": torch.eye(4, 6, dtype=torch.uint8)}]})
    assert np.allclose(grid.right(0.0, 1.0, "voted", votes=3), torch.eye(4, 6)[2:3])
    assert np.allclose(grid.right(0.0, 1.0, "voted"), torch.eye(4, 6)[3:])


def test_the_worst_of_attacks_that_do_nothing_is_no_worse(script: ModuleType) -> None:
    """Right in 95 % of draws whatever the input: judged on the draws that chose, three would seem to gain several points."""
    generator = np.random.default_rng(0)
    found = {}
    for name in ("no noise", "frozen", "eot"):
        halves = generator.binomial(10, 0.95, (2, 3, 2000)) / 10
        found[0.4, name] = np.stack([halves.mean(0), *halves], 1)
    least = script.worst(found, 0.4, ("no noise", "frozen", "eot"))
    assert least.shape == (3, 2000)
    assert abs(least.mean() - 0.95) < 4 * (0.95 * 0.05 / 10 / 6000) ** 0.5
    assert np.minimum.reduce([v[:, 0] for v in found.values()]).mean() < 0.93


def test_batch_normalisation_of_additive_runs_has_no_scale_and_offset_to_learn(script: ModuleType) -> None:
    for part, learnt in (("mult", True), ("add", False)):
        model = script.untrained(part, script.QUICK)
        norms = [
            p for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for p in m.parameters()
        ]
        assert len(norms) == 10
        assert all(p.requires_grad is learnt for p in norms)
        assert all(m.requires_grad for m in model[0].parameters())
    (lstm,) = (m for m in script.untrained("lstm", script.QUICK).modules() if isinstance(m, torch.nn.LSTM))
    assert lstm.input_size == 2
