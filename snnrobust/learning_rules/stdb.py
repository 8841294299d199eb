"""STDB: convert an ordinary network, then train the spiking one on by backpropagation with the spike-time surrogate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Data
from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.conversion import (
    Method,
    accuracy,
    check_settings,
    converted_neurons,
    resumes,
    surrogates,
    train_and_convert,
)
from snnrobust.learning_rules.conversion_scales import neurons
from snnrobust.learning_rules.conversion_twin import check_model, put_neurons, twin
from snnrobust.learning_rules.gradients import InputFeedback, gradient_of
from snnrobust.learning_rules.losses import answer, cross_entropy
from snnrobust.learning_rules.preflight import structure
from snnrobust.learning_rules.resume import check_identity
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History
from snnrobust.models import SpikingClassifier
from snnrobust.models.checkpoint import read_tensors, write_tensors
from snnrobust.neurons.relative import relative
from snnrobust.neurons.surrogate import SpikeTime, Surrogate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["STDB", "scale_thresholds"]


@dataclass(frozen=True, kw_only=True)
class STDB(Supervised):
    r"""Hybrid training: an ordinary network, threshold balancing, then spike-based backpropagation.

    .. math:: \frac{\partial s}{\partial h} = \frac{\alpha}{\theta} e^{-\beta \Delta t}

    with :math:`\Delta t` steps since the last spike. The ordinary twin of the model is trained for ``ann_epochs``, converted by
    threshold balancing in place, and its thresholds are multiplied by ``scaling``; then come ``epochs`` of backpropagation
    through time, with the cross-entropy of the mean output. The surrogate is lent for that time only. Dropout has one mask a
    sequence (``layers.Dropout``). Neurons fire on the membrane that their input of the same step has charged; in the authors'
    code on that of the step before.

    ``history`` is that of the spiking network; ``history.conversion`` the report of the conversion, with ``validation_accuracy``
    right after it, ``scaled_validation_accuracy`` with the thresholds that training begins with, and the twin's ``ann_records``.
    With ``checkpoint``, a file with ``.ann`` appended to its name holds the training of the twin, and ``.converted`` what
    it was converted to: once that is there, the first phase is not run again. ``log`` has the twin's curves in its subfolder
    ``ann``.

    Args:
        surrogate: For a threshold of 1; at that of each layer it is as wide in proportion
            (:func:`~snnrobust.neurons.relative.relative`). Any other gives the same hybrid with that.
        ann_epochs: 0 trains the model as it is: one that :func:`~snnrobust.learning_rules.convert` made, or a random one.
            Nothing is converted then, and what is said of the conversion below, ``scaling`` too, has no effect.
        ann_lr: Learning rate of the twin; ``lr`` is that of the spiking network.
        scaling: Of the thresholds after the conversion, by :func:`~snnrobust.learning_rules.scale_thresholds`. Lower ones make
            more spikes in few time steps.
        method, percentile, initial, levels, batch_norm, samples: Of the conversion, as in
            :class:`~snnrobust.learning_rules.Conversion`. The paper starts at a potential of zero, and its networks have neither
            normalisation nor biases.

    Source: Rathi et al. 2020, "Enabling deep spiking neural networks with hybrid conversion and spike timing dependent
    backpropagation".
    """

    name: ClassVar[str] = "STDB"
    needs: ClassVar[Mapping[str, Any]] = {
        "norm": "none",
        "neuron": {"type": "IF"},
        "readout": {"type": "MeanOutput"},
    }

    lr: float = 1e-4
    surrogate: Surrogate = SpikeTime(0.3, 0.01)  # noqa: RUF009 (frozen: safe to share)
    ann_epochs: int = 10
    ann_lr: float = 1e-3
    scaling: float = 0.7
    method: Method = "balancing"
    percentile: float = 99.9
    initial: float = 0.0
    levels: int | None = None
    batch_norm: bool = True
    samples: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        relative(self.surrogate, 1.0)
        checks.count("ann_epochs", self.ann_epochs, low=0)
        checks.number("ann_lr", self.ann_lr, 0.0, exclusive_low=True)
        checks.number("scaling", self.scaling, 0.0, exclusive_low=True)
        check_settings(self)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        self._check(model, again=False)

    def _check(self, model: nn.Module, again: bool) -> None:
        check_model(model, self.name, converted=again or self.ann_epochs == 0)
        assert isinstance(model, SpikingClassifier)
        if self.ann_epochs > 0:
            twin(model, self.batch_norm, self.levels)
        for name, neuron in neurons(model) if self.ann_epochs == 0 else ():
            if not isinstance(neuron.threshold, float):
                raise ValueError(
                    f"STDB trains layers of one threshold, and {name} has one per channel: give it a number"
                )

    def refuse_gradient(self, model: nn.Module, example: Tensor) -> None:
        """The gradient is that of the spiking network, which may be converted already."""
        replace(self, ann_epochs=0).refuse(model, example)

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
        settings: dict[str, Any] = {"progress": progress, "fabric": fabric, "log": log}
        if self.ann_epochs == 0:
            return super().fit(model, train, validation, epochs=epochs, checkpoint=checkpoint, **settings)
        checks.count("epochs", epochs)
        path = None if checkpoint is None else Path(checkpoint)
        files = _files(path)
        self._check(checks.module("model", model), again=resumes(model, *files.values()))
        assert isinstance(model, SpikingClassifier)
        ordinary = BPTT(**{f.name: getattr(self, f.name) for f in fields(Supervised)} | {"lr": self.ann_lr})
        converted = files.get("converted")
        identity = {} if converted is None else self._identity_before(model, train, validation, epochs)
        if converted is not None and converted.exists():
            report = self._put_back(converted, identity, model)
        else:
            phase = {**settings, "epochs": self.ann_epochs, "checkpoint": files.get("ann")}
            before = train_and_convert(ordinary, model, train, validation, self, **phase)
            thresholds = [neuron.threshold for _, neuron in neurons(model)]
            scale_thresholds(model, self.scaling)
            scaled = accuracy(model, validation, ordinary)
            report = {**before.conversion, "scaled_validation_accuracy": scaled, "ann_records": before.records}
            report = json.loads(json.dumps(report))  # as the file will give it back
            if converted is not None and (fabric is None or fabric.is_global_zero):
                content = {"identity": identity, "thresholds": thresholds, "report": report}
                write_tensors(converted, "converted network", model.state_dict(), content)
        history = replace(self, ann_epochs=0).fit(model, train, validation, epochs=epochs, checkpoint=path, **settings)
        history.conversion = report
        return history

    def _identity_before(
        self, model: SpikingClassifier, train: Data, validation: Data | None, epochs: int
    ) -> dict[str, Any]:
        """The same whether ``model`` was converted already or not."""
        found = self._identity(twin(model, self.batch_norm, self.levels), train, validation, epochs)
        return {**found, "encoder": structure(model.encoder), "surrogates": [repr(s) for s in surrogates(model)]}

    def _put_back(self, path: Path, identity: dict[str, Any], model: SpikingClassifier) -> dict[str, Any]:
        """Make ``model`` what the first phase made of it; the report of that."""
        tensors, content = read_tensors(path, "converted network")
        check_identity(path, content["identity"], identity)
        neuron = converted_neurons(model, self.initial)
        put_neurons(model, [neuron(index, threshold) for index, threshold in enumerate(content["thresholds"])])
        model.load_state_dict(tensors)
        scale_thresholds(model, self.scaling)
        report: dict[str, Any] = content["report"]
        return report

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            given = answer(model, x)
            loss = cross_entropy(given, y)
            (loss * scale).backward()
            return loss.detach(), given.logits.detach()

        with self._surrogates(model):
            yield Lent(backward)

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Through the surrogate that trains."""
        with self._surrogates(model):
            return gradient_of(cross_entropy(answer(model, x), y) * len(x), x)

    @contextmanager
    def _surrogates(self, model: nn.Module) -> Iterator[None]:
        """Lends each neuron the surrogate for its threshold."""
        found = [neuron for _, neuron in neurons(model)]
        before = [neuron.surrogate for neuron in found]
        try:
            for neuron in found:
                assert isinstance(neuron.threshold, float)
                neuron.surrogate = relative(self.surrogate, neuron.threshold)
            yield
        finally:
            for neuron, own in zip(found, before, strict=True):
                neuron.surrogate = own


def _files(checkpoint: Path | None) -> dict[str, Path]:
    """Of the first phase."""
    if checkpoint is None:
        return {}
    return {end: checkpoint.with_name(f"{checkpoint.name}.{end}") for end in ("ann", "converted")}


def scale_thresholds(model: nn.Module, factor: float) -> None:
    """Multiply every threshold of ``model``, in place; surrogates stay as wide in proportion."""
    checks.number("factor", factor, 0.0, exclusive_low=True)
    for name, neuron in neurons(model):
        if not isinstance(neuron.threshold, float):
            raise ValueError(f"{name} has one threshold per channel: give it a number")
        neuron.threshold *= factor
        neuron.surrogate = relative(neuron.surrogate, factor)


RULES[STDB.name] = STDB
