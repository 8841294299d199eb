"""The study of quantization against membership inference: its quantizers by hand, and that it goes on where it stopped."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

PATH = Path(__file__).parents[1] / "examples" / "papers" / "quantized_membership.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quantized_membership_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_ternary_and_binary_are_the_least_squares_of_all_assignments(script: ModuleType) -> None:
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rule, levels in (("ternary", (-1.0, 0.0, 1.0)), ("binary", (-1.0, 1.0))):
        every = torch.tensor(list(itertools.product(levels, repeat=7)), dtype=torch.float64)
        every = every[every.abs().sum(1) > 0]
        for row, found in zip(w, script.rounded(w, rule), strict=True):
            scale = (every @ row) / (every**2).sum(1)
            best = ((row - scale[:, None] * every) ** 2).sum(1).min()
            torch.testing.assert_close(((row - found) ** 2).sum(), best)
            assert len(found.abs().unique()) <= len(levels) - 1


@pytest.mark.parametrize(("rule", "count"), [("8", 255), ("4", 15), ("3", 7), ("2", 4), ("ternary", 3), ("binary", 2)])
def test_each_row_has_few_levels_and_rounding_again_changes_nothing(script: ModuleType, rule: str, count: int) -> None:
    w = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = script.rounded(w, rule)
    assert all(len(row.unique()) <= count for row in found)
    torch.testing.assert_close(script.rounded(found, rule), found)
    if rule.isdigit():
        step = (w.amax(1) - w.amin(1)) / 3 if rule == "2" else w.abs().amax(1) / (count // 2)
        assert ((w - found).abs() <= step[:, None] / 2 + 1e-12).all()


def test_fine_tuning_ends_on_the_levels_and_last_means_last(script: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))
    pair = torch.rand(20, 1, 4, 4), torch.arange(20) % 10
    tuner = script.fine_tuned("ternary", 1)
    made = tuner.quantize(model)
    tuner.fit(made, pair, 0)
    assert all(len(row.unique()) <= 3 for layer in (made[1], made[3]) for row in layer.weight)
    assert not torch.equal(made[1].weight, script.weights("ternary")(model)[1].weight)
    last = script.weights("binary", last_only=True)(model)
    assert torch.equal(last[1].weight, model[1].weight)
    assert all(len(row.unique()) == 2 for row in last[3].weight)


def test_energy_and_size_by_hand(script: ModuleType) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.zero_()
    x = torch.rand(3, 1, 4, 4) + 0.5
    found = script.hardware_of(model, x, "4", True)
    assert found["kB"] == pytest.approx((16 * 8 * 32 + 8 * 10 * 4) / 8 / 1024)
    # of a layer whose inputs have one magnitude events are accumulates; here all are different
    assert found["nJ arithmetic"] == pytest.approx(4.6 * (128 + 80) / 1e3)
    assert found["nJ weights"] == pytest.approx((5 * 128 + 5 * 80 / 8) / 1e3)


@pytest.mark.slow
def test_the_study_goes_on_where_it_stopped(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["quantized_membership.py", "--quick", "--only", "ANN", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", run)
    script.main()
    first = capsys.readouterr().out
    assert len(list(tmp_path.glob("*.json"))) == 15 + len(script.ATTACKED)
    assert first.count("| ANN |") == 5
    script.main()
    assert capsys.readouterr().out == first[first.index("| ANN |") :]
    monkeypatch.setattr(sys, "argv", [*run, "--shadows", "3"])
    with pytest.raises(SystemExit, match="is of other settings"):
        script.main()
