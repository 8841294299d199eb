"""ANN-to-SNN conversion: of a trained network, and as a trainer of spiking ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Batch, Data, batches
from snnrobust.draws import derive, device_of, draws
from snnrobust.encoders import Direct, Encoder
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.conversion_ann import flat, folded
from snnrobust.learning_rules.conversion_report import CalibrationReport, measure, report_steps
from snnrobust.learning_rules.conversion_scales import activation_scales, balanced_scales, neurons, spiking_network
from snnrobust.learning_rules.conversion_twin import (
    check_encoder,
    check_model,
    given_surrogate,
    mark,
    neurons_by_place,
    twin,
    write,
)
from snnrobust.learning_rules.supervised import Supervised
from snnrobust.learning_rules.trainer import RULES, History
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, PrechargedIF
from snnrobust.neurons.neuron import Neuron
from snnrobust.neurons.relative import relative
from snnrobust.neurons.surrogate import ATan, Surrogate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Conversion", "Method", "Settings", "accuracy", "check_settings", "convert", "train_and_convert"]

Method = Literal["max", "percentile", "balancing"]


def convert(
    ann: nn.Module,
    data: Data,
    *,
    time_steps: int,
    encoder: Encoder | None = None,
    method: Method = "percentile",
    percentile: float = 99.9,
    initial: float = 0.5,
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    samples: int = 512,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[SpikingClassifier, CalibrationReport]:
    r"""A spiking classifier whose firing rates stand for the activations of the trained network ``ann``.

    .. math:: r_l \approx a_l / \lambda_l, \quad \theta_l = \lambda_l / \lambda_{l-1}, \quad b'_l = b_l / \lambda_{l-1}

    with soft reset. Batch normalisation is folded first; the logits are those of ``ann`` as T grows, but for activations above
    :math:`\lambda_l`, which a rate cannot reach.

    Args:
        ann: An ``nn.Sequential`` of convolutions, linear layers, batch normalisation right behind them, ReLU or QCFS, average
            pooling, dropout and ``OrdinaryResidual``; it is not changed.
        data: What it is calibrated on: ``samples`` of them, drawn by ``seed``.
        time_steps: T.
        encoder: ``Direct(T)`` (default) or ``Poisson(T)``.
        method: Of :math:`\lambda_l`. ``"max"``: the largest activation on the data; ``"percentile"`` of all; ``"balancing"``: the
            thresholds are the largest inputs of the neurons while the layers before spike. Layers of QCFS have their own.
        percentile: In (0, 100], for ``method="percentile"``; the others do not look at it.
        initial: The potential at the start, a share of the threshold. 1/2 rounds rates to the nearest; QCFS needs it.
        surrogate: Of the neurons, for a threshold of 1; at theirs it is as wide in proportion, see
            :func:`~snnrobust.neurons.relative.relative`.
        samples, batch_size: Of the calibration, which runs the network once for T steps (balancing: once for each layer more).
        seed: Of the choice of samples and of the encoder's draws.

    Raises:
        TypeError, ValueError: a network that cannot be converted, and what to change.

    Source: Diehl et al. 2015, "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing";
    Rueckauer et al. 2017, "Conversion of continuous-valued deep networks to efficient event-driven networks for image
    classification"; Sengupta et al. 2019, "Going deeper in spiking neural networks"; Bu et al. 2022 (initial potential, QCFS).
    """
    checks.count("time_steps", time_steps)
    encoder = Direct(time_steps) if encoder is None else encoder
    if not isinstance(encoder, Encoder) or encoder.time_steps != time_steps:
        raise ValueError(f"encoder must be one of {time_steps} time steps, got {encoder!r:.80}")
    _check(method, percentile, initial, samples)
    relative(surrogate, 1.0)
    checks.module("ann", ann)
    whole = folded(ann)
    check_encoder(encoder, next(part for _, part in flat(whole)))
    calibration = calibration_data(data, samples, batch_size, seed, device_of(ann))

    def neuron(_: int, threshold: float) -> Neuron:
        return _neuron(threshold, initial, surrogate)

    return _converted(whole, calibration, encoder, method, percentile, neuron, seed)


def _neuron(threshold: float, initial: float, surrogate: Surrogate, detach_reset: bool = True) -> Neuron:
    """With ``surrogate`` for a threshold of 1."""
    own = relative(surrogate, threshold)
    if initial == 0:
        return mark(IF(threshold, surrogate=own, detach_reset=detach_reset), surrogate)
    return mark(PrechargedIF(threshold, initial, surrogate=own, detach_reset=detach_reset), surrogate)


def _check(method: str, percentile: float, initial: float, samples: int) -> None:
    checks.choice("method", method, get_args(Method))
    checks.number("percentile", percentile, 0.0, 100.0, exclusive_low=True)
    checks.number("initial", initial, 0.0, 1.0)
    checks.count("samples", samples)


def calibration_data(data: Data, samples: int, batch_size: int, seed: int, device: torch.device) -> list[Batch]:
    """``samples`` of ``data``, or all if there are fewer, drawn by ``seed``."""
    found: list[Batch] = []
    left = samples
    for batch in batches(data, batch_size, derive(seed, "calibration")):
        x, y, ids = (t[:left] for t in batch)
        found.append(Batch(x.to(device), y.to(device), ids))
        left -= len(x)
        if left <= 0:
            break
    return found


def _converted(
    ann: nn.Sequential,
    data: Sequence[Batch],
    encoder: Encoder,
    method: Method,
    percentile: float,
    neuron: Callable[[int, float], Neuron],
    seed: int,
) -> tuple[SpikingClassifier, CalibrationReport]:
    """Of the folded network."""
    if method == "balancing":
        scales, how = balanced_scales(ann, encoder, data, seed), "threshold balancing"
    else:
        scales = activation_scales(ann, [batch.x for batch in data], 100.0 if method == "max" else percentile)
        how = "largest activations" if method == "max" else f"percentile {percentile:g}"
    network = spiking_network(ann, scales, neuron)
    model = SpikingClassifier(encoder, network, MeanOutput()).to(data[0].x.device).eval()
    return model, measure(ann, model, data, scales, how, report_steps(encoder.time_steps), seed)


class Settings(Protocol):
    """How a model is obtained from its ordinary twin; see :class:`Conversion`."""

    @property
    def method(self) -> Method: ...
    @property
    def percentile(self) -> float: ...
    @property
    def initial(self) -> float: ...
    @property
    def levels(self) -> int | None: ...
    @property
    def batch_norm(self) -> bool: ...
    @property
    def samples(self) -> int: ...


def check_settings(how: Settings) -> None:
    """Raise where one of them is wrong."""
    _check(how.method, how.percentile, how.initial, how.samples)
    checks.boolean("batch_norm", how.batch_norm)
    if how.levels is not None:
        checks.count("levels", how.levels)
        if how.initial != 0.5:
            raise ValueError(f"QCFS rounds to the nearest, which neurons do with initial=0.5, got {how.initial}")


def train_and_convert(
    rule: Supervised,
    model: SpikingClassifier,
    train: Data,
    validation: Data | None,
    how: Settings,
    **settings: Any,
) -> History:
    """Train the ordinary twin of ``model`` by ``rule``, with ``settings`` of its ``fit``, and write what it is converted to into
    ``model``, which may be one that this has converted before if a checkpoint gives back the weights of the twin."""
    ann = twin(model, how.batch_norm, how.levels)
    if settings.get("log") is not None:
        settings["log"] = Path(settings["log"]) / "ann"
    history = rule.fit(ann, train, validation, **settings)
    neuron = converted_neurons(model, how.initial)
    calibration = calibration_data(train, how.samples, rule.batch_size, rule.seed, device_of(ann))
    whole = folded(ann)
    converted, report = _converted(whole, calibration, model.encoder, how.method, how.percentile, neuron, rule.seed)
    assert isinstance(converted.network, Sequential)
    write(model, converted.network)
    model.eval()
    history.conversion = {**report.to_json(), "validation_accuracy": accuracy(model, validation, rule)}
    return history


def surrogates(model: SpikingClassifier) -> list[Surrogate]:
    """Of the neurons of ``model`` for a threshold of 1: as they were before a conversion, if there was one."""
    return [given_surrogate(neuron) or neuron.surrogate for neuron in neurons_by_place(model)]


def converted_neurons(model: SpikingClassifier, initial: float) -> Callable[[int, float], Neuron]:
    """Makes the neuron that stands for the i-th one of ``model``, with a threshold."""
    before = list(zip(surrogates(model), [n.detach_reset for n in neurons_by_place(model)], strict=True))
    return lambda index, threshold: _neuron(threshold, initial, *before[index])


def resumes(model: nn.Module, *checkpoints: Path | None) -> bool:
    """Whether ``model`` was converted in this process, and a file is there that gives back the weights of its twin."""
    there = any(path is not None and path.exists() for path in checkpoints)
    found = neurons(model)
    return there and bool(found) and all(given_surrogate(neuron) is not None for _, neuron in found)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data | None, rule: Supervised) -> float | None:
    """Of ``model`` on all of ``data``, with batches and seed of ``rule``."""
    if data is None:
        return None
    correct, seen, device = 0, 0, device_of(model)
    for index, batch in enumerate(batches(data, rule.batch_size)):
        with draws(model, derive(rule.seed, "converted", index), batch.sample_ids):
            correct += int((model(batch.x.to(device)).argmax(1) == batch.y.to(device)).sum())
        seen += len(batch.x)
    return correct / seen


@dataclass(frozen=True, kw_only=True)
class Conversion(Supervised):
    """Train the ordinary twin of a spiking classifier by backpropagation, then convert it; see :func:`convert`.

    The model is built with ``norm="none"``, ``IF`` neurons and ``MeanOutput``. Its weights, biases and neurons are replaced in
    place; encoder and T stay. ``history`` is that of the twin's training, with its validation accuracy as ``ann_accuracy``;
    ``validation_accuracy`` is the spiking model's, which there is in the last record only. ``history.conversion`` is the report
    of the conversion, with the same ``validation_accuracy``. A checkpoint holds the twin's training, and ``log`` has its curves
    in the subfolder ``ann``. Frozen weights are refused, as the conversion rewrites them.

    Args:
        method, percentile, initial: As in :func:`convert`.
        levels: Train with QCFS of so many levels in place of ReLU, for few time steps; T = ``levels`` fits best.
        batch_norm: Train with batch normalisation, which is folded afterwards.
        samples: For the calibration, of the training data.
    """

    name: ClassVar[str] = "Conversion"
    needs: ClassVar[Mapping[str, Any]] = {
        "norm": "none",
        "neuron": {"type": "IF"},
        "readout": {"type": "MeanOutput"},
    }

    method: Method = "percentile"
    percentile: float = 99.9
    initial: float = 0.5
    levels: int | None = None
    batch_norm: bool = True
    samples: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        self._check(model, again=False)

    def _check(self, model: nn.Module, again: bool) -> None:
        check_model(model, self.name, converted=again)
        assert isinstance(model, SpikingClassifier)
        twin(model, self.batch_norm, self.levels)

    def refuse_gradient(self, model: nn.Module, example: Tensor) -> None:
        raise TypeError(
            "Conversion trains an ordinary network and has no gradient for the spiking one: use BPTT() with either of them, or "
            "STDB(ann_epochs=0)"
        )

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        fabric: Fabric | None = None,
        log: str | Path | None = None,
    ) -> History:
        path = None if checkpoint is None else Path(checkpoint)
        self._check(checks.module("model", model), again=resumes(model, path))
        assert isinstance(model, SpikingClassifier)
        rule = BPTT(**{f.name: getattr(self, f.name) for f in fields(Supervised)})
        settings: dict[str, Any] = {"progress": progress, "fabric": fabric, "log": log}
        settings |= {"epochs": epochs, "checkpoint": checkpoint}
        history = train_and_convert(rule, model, train, validation, self, **settings)
        history.records = [
            {**r, "validation_accuracy": None, "ann_accuracy": r["validation_accuracy"]} for r in history.records
        ]
        history.last["validation_accuracy"] = history.conversion["validation_accuracy"]
        return history


RULES[Conversion.name] = Conversion
