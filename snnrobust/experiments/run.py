"""Run an experiment in a folder. What is finished is on disk; running again goes on from there."""

from __future__ import annotations

import io
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from snnrobust import data, hardware
from snnrobust.attacks import EOT_DRAWS, Attack, BluntGradientWarning, crafted
from snnrobust.draws import derive, draws, is_stochastic
from snnrobust.energy import count_operations, estimate
from snnrobust.evaluation import RobustnessReport, diagnose, evaluate
from snnrobust.evaluation.fingerprint import fingerprint
from snnrobust.experiments.build import (
    build_attack,
    build_backend,
    build_model,
    build_rule,
    build_threat,
    changes,
    finished,
    quantized,
    quantized_when,
)
from snnrobust.experiments.config import ChipSection, Experiment, ModelSection, file_name
from snnrobust.models import EarlyExit, SpikingClassifier, describe, exit_curve, load, save
from snnrobust.models.checkpoint import write_bytes, write_tensors
from snnrobust.quantization import precision

__all__ = ["read_results", "render_folder", "run", "versions"]

_COUNTED = 100  # samples whose operations are counted


def run(experiment: Experiment, text: str, folder: str | Path, progress: bool = True) -> dict[str, Any]:
    """Train, attack, deploy and judge; returns what ``results.json`` holds.

    The folder then holds ``experiment.toml``, ``configuration.json`` (with all defaults), ``versions.json``, ``models/`` (of each
    the checkpoint that is judged, history and resumable training state, and ``NAME.trained.safetensors`` where truncation or an
    early exit made another model of the trained one; where a rule gives them, ``NAME.conversion.json``, the report of a
    conversion, and ``NAME.learnt.safetensors``, what it learnt beside the model, such as readouts), ``chips/`` (each model on
    each chip, ``MODEL--CHIP.safetensors``), ``cells/``, ``figures/``, ``results.json``, ``samples.csv`` and ``report.html``.
    Every file is written atomically. On a folder of an interrupted run it goes on; on a finished one it does nothing.

    Raises:
        ValueError: the folder is of another experiment.
    """
    from snnrobust.evaluation.html import render  # matplotlib, only where it is needed

    folder = Path(folder)
    _claim(folder, experiment, text)
    if (folder / "results.json").exists():
        return read_results(folder)
    train, validation, test = _data(experiment)
    models, histories = _train(experiment, train, validation, folder / "models", progress)
    report = _evaluate(experiment, models, test, folder, progress)
    results: dict[str, Any] = {
        "name": experiment.name,
        "notes": experiment.notes,
        "report": report.to_json(),
        "diagnoses": _diagnose(experiment, models, test, folder / "diagnoses", progress),
        "histories": histories,
        "exits": _exits(experiment, models, test),
        "precision": _precision(experiment, models, test),
        "configuration": text,
        "versions": json.loads((folder / "versions.json").read_text()),
        "traps": [_trap(m) for m in experiment.models if m.trap is not None],
    }
    report.save_samples(folder / "samples.csv")
    _write_figures(results, folder / "figures")
    write_bytes(folder / "report.html", render(results).encode())
    _write_json(folder / "results.json", results)  # last: its presence says that all is done
    return results


def read_results(folder: str | Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
        FileNotFoundError: not a run folder, or not finished.
        ValueError: the file is damaged.
    """
    folder = Path(folder)
    path = folder / "results.json"
    if not path.is_file():
        if (folder / "configuration.json").is_file():
            raise FileNotFoundError(
                f"the run in {folder} is not finished: snnrobust run {folder / 'experiment.toml'} -o {folder}"
            )
        raise FileNotFoundError(f"{folder} is not a run folder: there is no results.json")
    try:
        results = json.loads(path.read_bytes())
        RobustnessReport(**results["report"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it and run the experiment again, its cells are kept"
        ) from error
    return results  # type: ignore[no-any-return]


def render_folder(folder: str | Path) -> Path:
    """Write ``report.html`` of a finished run anew."""
    from snnrobust.evaluation.html import render

    results = read_results(folder)
    path = Path(folder) / "report.html"
    _write_figures(results, Path(folder) / "figures")
    write_bytes(path, render(results).encode())
    return path


def versions() -> dict[str, str]:
    """What made a result, beside its configuration and seed."""
    found = {"python": platform.python_version()}
    for package in ("snnrobust", "torch", "numpy", "scipy", "scikit-learn", "lightning-fabric", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["platform"] = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    return found


def _claim(folder: Path, experiment: Experiment, text: str) -> None:
    resolved = experiment.model_dump(mode="json")
    path = folder / "configuration.json"
    if path.exists():
        _check_claim(folder, resolved)
    elif folder.is_dir():  # nothing but what a kill may have left of the first files
        first = ("experiment.toml", "versions.json")
        ours = (*first, *(f".{name}." for name in (*first, path.name)))
        strangers = [p.name for p in folder.iterdir() if not p.name.startswith(ours)]
        if strangers:
            raise ValueError(f"{folder} holds {min(strangers)} and is not a run folder: give another with -o")
    for left in folder.rglob(".*.tmp"):
        left.unlink()
    if not path.exists():
        write_bytes(folder / "experiment.toml", text.encode())
        _write_json(folder / "versions.json", versions())
        _write_json(path, resolved)


def _check_claim(folder: Path, resolved: dict[str, Any]) -> None:
    path = folder / "configuration.json"
    try:
        there, begun = json.loads(path.read_bytes()), json.loads((folder / "versions.json").read_bytes())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{folder} is a damaged run folder ({error}): give another with -o") from error
    if there != resolved:
        differing = ", ".join(sorted(k for k in resolved.keys() | there.keys() if resolved.get(k) != there.get(k)))
        raise ValueError(
            f"{folder} holds a run of another experiment ({differing} differ): give another folder with -o"
        )
    if begun != versions() and not (folder / "results.json").exists():
        warnings.warn(f"{folder} was begun with {begun}, and goes on with {versions()}", stacklevel=4)


def _data(experiment: Experiment) -> tuple[TensorDataset, TensorDataset | None, TensorDataset]:
    section = experiment.data
    test = data.load(section.name, "test")
    x, y = data.load(section.name, "train").tensors
    wanted = max(experiment.evaluation.samples, experiment.diagnosis.samples if experiment.diagnosis else 0)
    if wanted > len(test):
        raise ValueError(f"{wanted} samples are asked for, but {section.name} has only {len(test)} test samples")
    size = len(x) if section.train is None else section.train
    if size > len(x) or section.validation >= size:
        raise ValueError(
            f"data: train = {size}, validation = {section.validation}, but {section.name} has {len(x)} training samples"
        )
    cut = size - section.validation
    validation = TensorDataset(x[cut:size], y[cut:size]) if section.validation else None
    return TensorDataset(x[:cut], y[:cut]), validation, test


def _train(
    experiment: Experiment, train: TensorDataset, validation: TensorDataset | None, folder: Path, progress: bool
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    shape, classes = train.tensors[0].shape[1:], int(train.tensors[1].max()) + 1
    trained: dict[str, nn.Module] = {}
    histories: dict[str, Any] = {}
    for section in sorted(experiment.models, key=lambda m: m.same_weights_as is not None):
        stem = file_name(section.name)
        final, record = folder / f"{stem}.safetensors", folder / f"{stem}.history.json"
        model = build_model(section, shape, classes, experiment.seed)
        if section.same_weights_as is not None:
            original = next(m for m in experiment.models if m.name == section.same_weights_as)
            _copy(trained[original.name], build_model(original, shape, classes, experiment.seed), model)
            trained[section.name] = model.eval()
            continue
        kept = folder / f"{stem}.trained.safetensors" if changes(section) else final
        if not (kept.exists() and record.exists()):
            rule, state = build_rule(section, experiment.seed), folder / f"{stem}.training.safetensors"
            if quantized_when(section) == "training":
                model = quantized(section, model, train.tensors[0])
            if progress:
                print(f"training {section.name}: {section.training.epochs} epochs of {section.training.rule.type}")
            history = rule.fit(
                model, train, validation, epochs=section.training.epochs, checkpoint=state, progress=progress
            )
            if history.conversion:
                _write_json(folder / f"{stem}.conversion.json", history.conversion)
            if history.learnt:
                write_tensors(folder / f"{stem}.learnt.safetensors", "learnt beside the model", history.learnt, {})
            _write_json(record, history.records)
            save(model, kept)
        trained[section.name] = load(kept)
        histories[section.name] = json.loads(record.read_bytes())
    judged = {m.name: finished(m, trained[m.name], train.tensors[0]) for m in experiment.models}
    for section in experiment.models:
        if changes(section) or section.same_weights_as is not None:
            save(judged[section.name], folder / f"{file_name(section.name)}.safetensors")
    return judged, histories


def _copy(source: nn.Module, untrained: nn.Module, model: nn.Module) -> None:
    """Weights of ``source`` into ``model``; where a rule such as conversion has changed more than those, its whole network."""
    if describe(source) != describe(untrained):
        assert isinstance(source, SpikingClassifier)
        assert isinstance(model, SpikingClassifier)
        model.network = deepcopy(source.network)
    model.load_state_dict(source.state_dict())


def _exits(experiment: Experiment, models: Mapping[str, nn.Module], test: TensorDataset) -> dict[str, Any]:
    """After how many time steps the models with an early exit stop, over the clean samples that are judged."""
    x, y = data.take(test, experiment.evaluation.samples)
    found = {}
    for name, model in models.items():
        if isinstance(model, EarlyExit):
            key = derive(experiment.seed, "exits", name)
            curve = exit_curve(model.model, (x, y), [model.confidence], key=key)
            mean, low, high = (float(values[0]) for values in curve.steps)
            found[name] = {
                "confidence": model.confidence, "time_steps": model.model.time_steps, "samples": len(x),
                "mean_steps": mean, "interval": [low, high],
            }  # fmt: skip
    return found


def _precision(experiment: Experiment, models: Mapping[str, nn.Module], test: TensorDataset) -> dict[str, Any]:
    """Bits, size and energy of each layer of each model, where any is quantized: small numbers say little on their own."""
    if all(m.quantization is None for m in experiment.models):
        return {}
    x, _ = data.take(test, min(experiment.evaluation.samples, _COUNTED))
    found = {}
    for name, model in models.items():
        inner = model.model if isinstance(model, EarlyExit) else model  # of all its steps
        with draws(inner, derive(experiment.seed, "operations", name)):
            operations = count_operations(inner, x)
        bits = precision(inner)
        report = estimate(
            operations, bits={n: p for n, p in bits.items() if n in {la.name for la in operations.layers}}
        )
        found[name] = {
            "samples": len(x), "costs": report.to_json()["costs"],
            "bytes": sum(p.bytes for p in bits.values()), "weights": sum(p.count for p in bits.values()),
            "usual_pj": report.usual, "traffic_pj": report.traffic, "forgotten_pj": report.forgotten,
            "layers": [
                {
                    "name": n or "(model)", "weights": p.weights, "inputs": p.inputs, "membranes": p.membranes, "count": p.count,
                    "bytes": p.bytes, "usual_pj": report.of(n, group="usual"), "traffic_pj": report.of(n, group="traffic"),
                }
                for n, p in bits.items()
            ],
        }  # fmt: skip
    return found


def _evaluate(
    experiment: Experiment, models: Mapping[str, nn.Module], test: TensorDataset, run_folder: Path, progress: bool
) -> RobustnessReport:
    cells, folder = run_folder / "cells", run_folder / "chips"
    settings, report = experiment.evaluation, RobustnessReport()
    for section in experiment.models:
        model = models[section.name]
        chips: dict[str, nn.Module | None] = {}
        for chip in experiment.chips_of(section):
            chips[chip.name] = _chip(
                chip, model, folder / f"{file_name(section.name)}--{file_name(chip.name)}.safetensors"
            )
        grids: list[tuple[dict[str, nn.Module | None], Sequence[float]]] = [({"ideal": None}, settings.eps)]
        if chips:
            grids.append((chips, settings.chip_eps or settings.eps))
        for targets, eps in grids:
            for chip_name, chip_model in targets.items():
                victim = model if chip_model is None else chip_model
                attacks = _attacks(experiment, models, section, victim, on_chip=chip_model is not None)
                if not attacks:
                    continue
                with warnings.catch_warnings():
                    if section.trap is not None:
                        warnings.simplefilter("ignore", BluntGradientWarning)  # it is what the trap shows
                    part = evaluate(
                        model, test, attacks, eps=eps, chips={chip_name: chip_model},
                        n=settings.samples, seed=derive(experiment.seed, "evaluation") >> 1,
                        selection_draws=settings.selection_draws, judge_draws=settings.judge_draws, name=section.name,
                        controls=settings.controls,
                        examples=settings.examples if chip_model is None and section.trap is None else 0,
                        folder=cells, progress=progress,
                    )  # fmt: skip
                report.extend(part)
    report.settings["seed"] = experiment.seed
    return report


def _chip(section: ChipSection, model: nn.Module, path: Path) -> nn.Module:
    """The model on a chip, which is kept: what it cost to make is paid once, and the chip can be attacked again."""
    if path.exists():
        return hardware.load(path)
    chip = hardware.deploy(model, build_backend(section), seed=section.seed)
    hardware.save(chip, path)
    return chip


def _attacks(
    experiment: Experiment, models: Mapping[str, nn.Module], victim: ModelSection, model: nn.Module, on_chip: bool
) -> dict[str, Attack]:
    threat, ideal, made = build_threat(experiment.threat), models[victim.name], {}
    for a in experiment.attacks_on(victim):
        if a.craft is None:
            made[a.name] = build_attack(a, models, is_stochastic(models[a.source] if a.source else model), threat)
        elif on_chip:
            averages = a.craft != "eot" and is_stochastic(ideal if a.craft == "software" else model)
            plain = build_attack(a, models, averages, threat)
            made[a.name] = crafted(plain, a.craft, ideal, a.eot if a.eot > 1 else EOT_DRAWS)
    return made


def _diagnose(
    experiment: Experiment, models: Mapping[str, nn.Module], test: TensorDataset, folder: Path, progress: bool
) -> dict[str, Any]:
    section, found = experiment.diagnosis, {}
    if section is None:
        return {}
    threat = build_threat(experiment.threat, section.eps)
    for victim in experiment.models:
        source = section.source if section.source not in (victim.name, victim.same_weights_as) else None
        if source is None:
            source = next((m.name for m in experiment.models if _independent(m, victim)), None)
        other = None if source is None else models[source]
        key = fingerprint(
            models[victim.name], other, section.model_dump(), threat, experiment.seed, experiment.data.model_dump()
        )
        path = folder / f"{key}.json"
        if not path.exists():
            report = diagnose(
                models[victim.name], test, threat, source=other, n=section.samples, seed=experiment.seed,
                draws=section.draws, progress=progress,
            )  # fmt: skip
            _write_json(path, report.to_json())
        found[victim.name] = json.loads(path.read_bytes())
    return found


def _independent(source: ModelSection, victim: ModelSection) -> bool:
    """Trained on its own, and sound enough to lend its gradient."""
    own = {victim.name, victim.same_weights_as}
    return source.trap is None and source.same_weights_as is None and source.name not in own


def _trap(section: ModelSection) -> dict[str, Any]:
    return {
        "model": section.name,
        "same_weights_as": section.same_weights_as,
        "title": section.name,
        "text": section.trap,
    }


def _write_figures(results: Mapping[str, Any], folder: Path) -> None:
    """The report's main figures once more, as pictures to put elsewhere."""
    from snnrobust.evaluation import plots

    traps = {t["model"]: t["same_weights_as"] for t in results.get("traps", [])}
    rows = results["report"]["rows"]
    sound = [m for m in plots.distinct(rows, "model") if m not in traps]
    figures = {
        "accuracy": plots.accuracy_vs_eps(rows, models=sound),
        "chips": plots.accuracy_per_chip(rows, models=sound),
    }
    for trap, honest in traps.items():
        if honest is not None:
            figures[f"trap-{file_name(trap)}"] = plots.compare_worst_case(
                rows, {honest: honest, trap: trap}, null=honest
            )
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        write_bytes(folder / f"{name}.png", picture.getvalue())


def _write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=1) + os.linesep).encode())
