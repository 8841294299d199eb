"""What a conversion costs: how far rates and answers of the spiking network are from the ordinary one's, by layer and by T."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust.data import Batch
from snnrobust.draws import derive, draws
from snnrobust.learning_rules.conversion_scales import activations, neurons
from snnrobust.models import SpikingClassifier

__all__ = ["TOLERANCE", "CalibrationReport", "LayerCalibration", "measure", "report_steps", "suggest"]

TOLERANCE = 0.005
"""By how much the accuracy may be below the ordinary network's at the suggested T."""


@dataclass(frozen=True)
class LayerCalibration:
    r"""One layer of neurons.

    Attributes:
        name: Of the neurons in the spiking classifier.
        threshold: :math:`\theta`.
        scale: :math:`\lambda`, the activation that a rate of 1 stands for.
        rate_errors: :math:`\operatorname{mean} |\lambda r_T - a| \,/\, \operatorname{mean} |a|` of rates r and activations a, for
            each T of the report.
        saturation: Share of the positive activations that are larger than :math:`\lambda`, which no rate can stand for.
    """

    name: str
    threshold: float
    scale: float
    rate_errors: tuple[float, ...]
    saturation: float


@dataclass(frozen=True)
class CalibrationReport:
    """How well a converted network stands for its original, on the calibration data.

    Attributes:
        method: How the scales were found.
        samples: Calibration samples.
        steps: The T that were looked at.
        layers: By layer.
        ann_accuracy: Of the ordinary network.
        accuracies: Of the spiking one, for each of ``steps``.
        agreements: Share of the samples for which both give the same class.
        suggested: The smallest of ``steps`` from which on the accuracy is at most half a point below the ordinary network's; None
            if there is none, and more time steps are needed.
    """

    method: str
    samples: int
    steps: tuple[int, ...]
    layers: tuple[LayerCalibration, ...]
    ann_accuracy: float
    accuracies: tuple[float, ...]
    agreements: tuple[float, ...]
    suggested: int | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Layers, then accuracies, as text."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        heads = "".join(f"{f'T={T}':>8}" for T in self.steps)
        lines = [f"{'':{width}} {'':>10} {'':>9} {'above':>7}  relative error of rates"]
        lines += [f"{'layer':{width}} {'threshold':>10} {'scale':>9} {'scale':>7}{heads}"]
        for layer in self.layers:
            errors = "".join(f"{error:8.3f}" for error in layer.rate_errors)
            own = f"{layer.threshold:10.4g} {layer.scale:9.4g} {layer.saturation:7.2%}"
            lines.append(f"{layer.name:{width}} {own}{errors}")
        left = width + 29
        for what, values in (("accuracy", self.accuracies), ("same answer as the ANN", self.agreements)):
            lines.append(f"{what:{left}}" + "".join(f"{value:8.2%}" for value in values))
        found = "none of these: use more time steps" if self.suggested is None else f"T={self.suggested}"
        lines.append(f"ANN: {self.ann_accuracy:.2%} of {self.samples} samples, {self.method}; suggested: {found}")
        return "\n".join(lines)


def report_steps(time_steps: int) -> tuple[int, ...]:
    """4, 8, 16, ... and T itself."""
    return (*(2**k for k in range(2, time_steps.bit_length()) if 2**k < time_steps), time_steps)


@torch.no_grad()
def measure(
    ann: nn.Sequential,
    model: SpikingClassifier,
    data: Sequence[Batch],
    scales: Sequence[float],
    method: str,
    steps: Sequence[int],
    seed: int,
) -> CalibrationReport:
    """Run both on ``data``; ``ann`` is the folded one, ``steps`` are in ascending order."""
    of_ann, of_snn = activations(ann), neurons(model)
    errors = torch.zeros(len(scales), len(steps), dtype=torch.float64)
    size, above, positive = (torch.zeros(len(scales), dtype=torch.float64) for _ in range(3))
    right, same = (torch.zeros(len(steps), dtype=torch.float64) for _ in range(2))
    ann_right, samples = 0, 0
    values: dict[int, Tensor] = {}

    def see_ann(index: int, _: nn.Module, __: Any, y: Tensor) -> None:
        values[index] = y
        size[index] += float(y.abs().double().sum())
        positive[index] += int((y > 0).sum())

    def see_input(index: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        above[index] += int((given[0] > scales[index]).sum())

    def see_snn(index: int, _: nn.Module, __: Any, s: Tensor) -> None:
        for i, mean in enumerate(_means(s, steps)):
            errors[index, i] += float((mean * scales[index] - values[index]).abs().double().sum())

    handles = [m.register_forward_hook(partial(see_ann, i)) for i, m in enumerate(of_ann)]
    handles += [m.register_forward_pre_hook(partial(see_input, i)) for i, m in enumerate(of_ann)]
    handles += [m.register_forward_hook(partial(see_snn, i)) for i, (_, m) in enumerate(of_snn)]
    try:
        for index, batch in enumerate(data):
            answer = ann(batch.x).argmax(1)
            with draws(model, derive(seed, "report", index), batch.sample_ids):
                outputs = model.outputs(batch.x)
            ann_right, samples = ann_right + int((answer == batch.y).sum()), samples + len(batch.x)
            for i, mean in enumerate(_means(outputs, steps)):
                right[i] += int((mean.argmax(1) == batch.y).sum())
                same[i] += int((mean.argmax(1) == answer).sum())
    finally:
        for handle in handles:
            handle.remove()
    layers = tuple(
        LayerCalibration(
            name,
            float(neuron.threshold),
            scales[i],
            tuple((errors[i] / size[i]).tolist()),
            float(above[i] / positive[i].clamp(min=1)),
        )
        for i, (name, neuron) in enumerate(of_snn)
    )
    accuracies, agreements = (tuple((v / samples).tolist()) for v in (right, same))
    of_ann_itself = ann_right / samples
    suggested = suggest(steps, accuracies, of_ann_itself)
    return CalibrationReport(method, samples, tuple(steps), layers, of_ann_itself, accuracies, agreements, suggested)


def suggest(steps: Sequence[int], accuracies: Sequence[float], of_ann: float) -> int | None:
    """The smallest of ``steps`` from which on the accuracy is at most :data:`TOLERANCE` below the ordinary network's."""
    found = None
    for T, accuracy in zip(reversed(steps), reversed(accuracies), strict=True):
        if accuracy < of_ann - TOLERANCE - 1e-12:
            break
        found = T
    return found


def _means(x: Tensor, steps: Sequence[int]) -> list[Tensor]:
    """Means of ``[T, B, *]`` over the first so many steps."""
    total, before, means = torch.zeros_like(x[0]), 0, []
    for T in steps:
        total = total + x[before:T].sum(0)
        before = T
        means.append(total / T)
    return means
