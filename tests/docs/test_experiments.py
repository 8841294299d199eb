"""The example of docs/experiments.md runs, and its tables have every key with its default."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from snnrobust import experiments
from snnrobust.experiments import config

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
SECTIONS = {
    "## The whole file": config.Experiment,
    "## `[data]`": config.DataSection,
    "## `[[models]]`": config.ModelSection,
    "`training`:": config.Training,
    "## `[quantization]`": config.QuantizationSection,
    "## `[[attacks]]`": config.AttackSection,
    "## `[[chips]]`": config.ChipSection,
    "## `[evaluation]`": config.Evaluation,
    "## `[diagnosis]`": config.Diagnosis,
}


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    table = PAGE.split(f"\n{heading}\n")[1].split("\n| key |")[1]
    lines = re.findall(r"^\|(.*)\|$", table.split("\n\n")[0], re.MULTILINE)[1:]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_has_a_row(heading: str) -> None:
    keys = [key for row in _rows(heading) for key in re.findall(r"`(\w+)`", row[0])]
    assert sorted(keys) == sorted(SECTIONS[heading].model_fields)


@pytest.mark.parametrize("heading", SECTIONS)
def test_numbers_given_as_defaults(heading: str) -> None:
    for names, default, *_ in _rows(heading):
        for key in re.findall(r"`(\w+)`", names):
            field = SECTIONS[heading].model_fields[key]
            if re.fullmatch(r"\d+", default):
                assert field.default == int(default), key
            elif not default:
                assert field.is_required() or field.default is None, key


def test_the_keys_of_spiking_models_are_marked() -> None:
    marked = {row[0].split("`")[1] for row in _rows("## `[[models]]`") if row[0].endswith("*")}
    given: dict[str, Any] = {
        "encoder": {"type": "Direct"}, "neuron": {"type": "LIF"}, "norm": "none", "readout": {"type": "MeanOutput"},
        "same_weights_as": "x", "truncate": 1, "exit_confidence": 0.5,
    }  # fmt: skip
    assert marked == set(given)
    for key, value in given.items():
        with pytest.raises(ValueError, match=f"an ordinary network has no {key}"):
            config.ModelSection.model_validate({"name": "ann", "kind": "ordinary", key: value})


def test_the_example_runs(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    experiment = experiments.parse(text)
    results = experiments.run(experiment, text, tmp_path / "run", progress=False)
    assert set(results["exits"]) == {"early"}
    found = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    listed = re.findall(r"^\| (`[^|]+) \|", PAGE.split("## The run folder")[1], re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", " ".join(listed)):
        # here no model that is trained is changed afterwards, and BPTT neither converts nor learns anything beside the model
        if not any(part in name for part in ("trained", "conversion", "learnt")):
            assert name.replace("NAME", "snn").replace("MODEL--CHIP", "snn--4-bits-and-noisy").rstrip("/") in found, (
                name
            )
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["models"][2]["name"] == "ANN"
