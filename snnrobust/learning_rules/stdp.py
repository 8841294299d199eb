"""Spike-timing-dependent plasticity: one layer of neurons that learns without labels, and a readout that uses them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Batch, Data, batches
from snnrobust.draws import derive, device_of, draws
from snnrobust.layers import LastOutput, MeanMembrane, MeanOutput, Readout, Sequential, SpikeCount
from snnrobust.layers.flow import run
from snnrobust.learning_rules.plasticity import bounded, compete, pair_sums
from snnrobust.learning_rules.preflight import digest, plain, preflight, structure
from snnrobust.learning_rules.progress import Bar, Log
from snnrobust.learning_rules.resume import load_state, save_state
from snnrobust.learning_rules.trainer import RULES, History, TrainingWarning
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF
from snnrobust.neurons.lif import lif

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["STDP"]

_LINEAR_READOUTS = (MeanMembrane, MeanOutput, SpikeCount, LastOutput)
_ADVICE = "architecture='dense' and norm='none', or spiking((Dense(400),), shape, classes, encoder, norm='none')"
_LEAST = 1e-6  # threshold, where the weights have a mean of mean_weight
_SETTLING = 60  # batches in which thresholds are found for neurons that do not compete any more


@dataclass(frozen=True, kw_only=True)
class STDP:
    r"""Pair-based STDP with homeostasis and winner-take-all, for a model with one hidden layer; labels train its readout only.

    .. math:: \Delta w_{ji} = \eta \, \big( (1 - w_{ji}) P_{ji} - A \, w_{ji} D_{ji} \big), \quad
        \Delta \log \theta_j = \kappa \, (n_j - \bar n)

    with the sums P and D over pairs of spikes of :func:`~snnrobust.learning_rules.plasticity.pair_sums` and the spikes
    :math:`n_j` of a batch. Weights stay in [0, 1], each neuron's with the same mean. While they learn, the neurons inhibit each
    other (:func:`~snnrobust.learning_rules.plasticity.compete`).

    Afterwards the model is plain, without lateral inhibition. What all neurons would take from each other goes into their
    weights, :math:`w_j - \bar w` (:math:`\bar w` the mean over neurons); thresholds at which each fires at ``rate`` are found by
    homeostasis without competition, and folded into the weights, :math:`w_j \theta / \theta_j`, which gives the same spikes.
    Then the last layer is trained by multinomial logistic regression. The weights that the model had before are not used.

    Args:
        lr: :math:`\eta`, of each pair of spikes.
        depression: A.
        tau_plus, tau_minus: Time constants of the two sides, in steps.
        inhibition: Share of their potential that the other neurons lose to a spike.
        mean_weight: Mean weight of each neuron, in (0, 1).
        homeostasis: :math:`\kappa`, by which each spike raises the logarithm of the threshold.
        spikes: Spikes of the whole layer for a sample while it learns; :math:`\bar n` is each neuron's part in it.
        rate: Mean firing rate of each neuron afterwards, without competition, in (0, 1).
        l2: Of the readout, on features of unit variance.
        batch_size: Samples whose changes are summed before weights and thresholds move.
        seed: Key of the first weights, of shuffling and of every draw.

    Source: Diehl and Cook 2015, "Unsupervised learning of digit recognition using spike-timing-dependent plasticity", whose
    synapses have conductances and whose inhibition stays when classifying; what is above is ours, after their example.
    """

    name: ClassVar[str] = "STDP"
    needs: ClassVar[Mapping[str, Any]] = {"architecture": "dense", "norm": "none"}

    lr: float = 0.02
    depression: float = 0.1
    tau_plus: float = 5.0
    tau_minus: float = 5.0
    inhibition: float = 1.0
    mean_weight: float = 0.1
    homeostasis: float = 0.02
    spikes: float = 5.0
    rate: float = 0.1
    l2: float = 1e-4
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "tau_plus", "tau_minus", "spikes"):
            checks.number(name, getattr(self, name), 0.0, exclusive_low=True)
        for name in ("depression", "homeostasis", "l2"):
            checks.number(name, getattr(self, name), 0.0)
        checks.number("inhibition", self.inhibition, 0.0, 1.0)
        for name in ("mean_weight", "rate"):
            if checks.number(name, getattr(self, name), 0.0, 1.0, exclusive_low=True) == 1.0:
                raise ValueError(f"{name} must be below 1, got 1: use 0.1")
        checks.count("batch_size", self.batch_size)
        checks.count("seed", self.seed, low=0)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        """Raise TypeError or ValueError if the rule cannot train ``model``, and say what to change."""
        parts = _parts(model)
        if parts.neuron.refractory:
            raise ValueError(
                "STDP's competition knows no refractory period: use refractory=0, as inhibition keeps neurons apart"
            )
        for layer in (parts.hidden, parts.last):
            if not layer.weight.requires_grad:
                raise ValueError(
                    "STDP trains both linear layers, and one is frozen: set requires_grad of its weight to True"
                )
        if example.is_meta:  # shapes without values: nothing to look at
            return
        with torch.no_grad(), draws(model, 0):
            _seen(parts, example)

    @torch.no_grad()
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
        """Train ``model`` in place; see :meth:`Supervised.fit <snnrobust.learning_rules.supervised.Supervised.fit>`.

        Loss and accuracy of the history are those of the readout on the training data, which is trained anew after each epoch.
        ``History.learnt`` has the weights in [0, 1] and the thresholds of the competing neurons.

        Raises:
            ValueError, TypeError: empty data, bad inputs or labels, a model that the rule cannot train, more than one process, a
                checkpoint of another training.

        Warns:
            TrainingWarning: no neuron fires.
        """
        checks.module("model", model)
        checks.count("epochs", epochs)
        if fabric is not None and fabric.world_size > 1:
            raise ValueError(f"STDP runs in one process, and the fabric has {fabric.world_size}: use devices=1")
        if fabric is not None and fabric._precision.precision != "32-true":
            raise ValueError(
                f"STDP computes in float32, and the fabric has {fabric._precision.precision!r}: use '32-true'"
            )
        example = preflight(model, train)
        if validation is not None:
            preflight(model, validation, "validation ")
        self.refuse(model, example)
        path = None if checkpoint is None else Path(checkpoint)
        identity = {"rule": self.name, **plain(self), "model": structure(model), "data": digest(train)}
        if fabric is not None:
            fabric.to_device(model)
        model.eval()
        training = _Training(self, model)
        history, nothing = History(), torch.optim.SGD(model.parameters())  # there is no optimizer whose state to keep
        if path is not None and path.exists():
            history, _ = load_state(path, model, nothing, identity, training.learnt)
        records = history.records
        if len(records) > epochs:
            raise ValueError(f"{path} is already at epoch {len(records)}, past epochs={epochs}: raise epochs")
        logged, bar = Log(log), Bar(progress, self.name, train, self.batch_size, epochs, history)
        try:
            with bar if len(records) < epochs else nullcontext():
                for epoch in range(len(records), epochs):
                    began = time.perf_counter()
                    training.compete(train, epoch, bar)
                    training.become_plain(train, epoch)
                    record = training.read(train, epoch)
                    accuracy = None if validation is None else training.accuracy(validation, epoch)
                    seconds = time.perf_counter() - began
                    records.append({**record, "validation_accuracy": accuracy, "lr": self.lr, "seconds": seconds})
                    if path is not None:
                        save_state(path, model, nothing, identity, history, training.learnt)
                    bar.epoch(records[-1])
                    logged.epoch(records[-1])
        finally:
            logged.close()
        history.learnt = {name: t.clone() for name, t in training.learnt.state_dict().items()}
        return history


class _Parts(NamedTuple):
    model: SpikingClassifier
    before: tuple[nn.Module, ...]
    hidden: nn.Linear
    neuron: LIF
    last: nn.Linear
    readout: Readout
    name: str


class _Training:
    """A training that is going on; ``learnt`` has the weights in [0, 1] and the thresholds of the competition."""

    def __init__(self, rule: STDP, model: nn.Module) -> None:
        self.rule, self.parts = rule, _parts(model)
        hidden = self.parts.hidden
        if hidden.bias is not None:
            hidden.bias.zero_()
        first = torch.rand(
            hidden.weight.shape, generator=torch.Generator().manual_seed(derive(rule.seed, "weights"))
        ).to(hidden.weight)
        self.learnt = nn.Module()
        self.weights, self.threshold = (
            bounded(2 * rule.mean_weight * first, rule.mean_weight),
            first.new_zeros(len(first)),
        )
        self.learnt.register_buffer("weight", self.weights)
        self.learnt.register_buffer("threshold", self.threshold)  # 0: not known before the first batch

    def _batches(self, data: Data, size: int, purpose: str, *labels: int) -> Iterator[tuple[Batch, Tensor]]:
        """Batches and what the first layer sees of them, ``[T, B, n]``; in order for the readout, else shuffled."""
        rule, parts, device = self.rule, self.parts, device_of(self.parts.model)
        shuffle = None if purpose == "readout" else derive(rule.seed, "shuffle", purpose, *labels)
        for index, batch in enumerate(batches(data, size, shuffle)):
            with draws(parts.model, derive(rule.seed, purpose, *labels, index), batch.sample_ids):
                seen = _seen(parts, batch.x.to(device))
            yield batch, seen

    def compete(self, data: Data, epoch: int, bar: Bar) -> None:
        """One epoch of plasticity. It looks at no label."""
        rule, neuron, weights, threshold = self.rule, self.parts.neuron, self.weights, self.threshold
        fired = 0.0
        for batch, pre in self._batches(data, rule.batch_size, "train", epoch):
            current = F.linear(pre, weights)
            if not threshold.any():
                threshold.copy_((2 * current.mean()).clamp(min=_LEAST).expand_as(threshold))
            post = compete(current, neuron.decay, threshold, neuron.reset, rule.inhibition)
            potentiation, depression = pair_sums(pre, post, rule.tau_plus, rule.tau_minus)
            change = (1 - weights) * potentiation - rule.depression * weights * depression
            weights.copy_(bounded(weights + rule.lr * change, rule.mean_weight))
            counts = post.sum((0, 1))
            expected = rule.spikes * len(batch.x) / len(threshold)
            threshold.mul_(torch.exp(rule.homeostasis * (counts - expected))).clamp_(min=_LEAST)
            fired += float(counts.sum())
            bar.batch(epoch, math.nan, math.nan, len(batch.x))
        if fired == 0.0:
            self._warn("has not fired", epoch, "raise homeostasis, or look whether the inputs are all zero")

    def become_plain(self, data: Data, epoch: int) -> None:
        """Weights of neurons that do not compete: the common part taken off, thresholds of equal rates folded in."""
        rule, neuron = self.rule, self.parts.neuron
        weights = self.weights - self.weights.mean(0)
        threshold, rate = torch.zeros_like(self.threshold), rule.rate
        done, least = 0, _LEAST
        while done < _SETTLING:
            for _, pre in self._batches(data, 2 * rule.batch_size, "settle", epoch, done):
                current = F.linear(pre, weights)
                if done == 0:
                    threshold += (3 * current.abs().mean()).clamp(min=_LEAST)
                    least = float(threshold[0]) / 100  # of neurons that nothing can make fire; their weights stay small
                found = lif(current, neuron.decay, threshold, neuron.reset).mean((0, 1))
                step = 0.5 * (1 - done / _SETTLING) * ((found - rate) / rate).clamp(-1.0, 1.0)
                threshold.mul_(torch.exp(step)).clamp_(min=least)
                done += 1
                if done == _SETTLING:
                    break
        own = torch.as_tensor(neuron.threshold).to(threshold)
        self.parts.hidden.weight.copy_(weights * (own / threshold)[:, None])

    def read(self, data: Data, epoch: int) -> dict[str, Any]:
        """Train the readout of the plain model; the epoch's record."""
        parts, features, labels, fired, seen = self.parts, [], [], 0.0, 0
        for batch, pre in self._batches(data, 8 * self.rule.batch_size, "readout", epoch):
            spikes = run([parts.hidden, parts.neuron], pre)
            features.append(parts.readout(spikes))
            checks.labels("labels", batch.y, len(batch.x), parts.last.out_features)
            labels.append(batch.y.to(spikes.device))
            fired, seen = fired + float(spikes.mean()) * len(batch.x), seen + len(batch.x)
        x, y, rate = torch.cat(features), torch.cat(labels), fired / seen
        # logits are linear in the spikes, so those of the constant are what the bias is multiplied by
        constant = float(parts.readout(torch.ones_like(spikes[:, :1, :1])))
        weight, bias = _logistic_regression(x, y, parts.last.out_features, self.rule.l2, parts.last.bias is not None)
        parts.last.weight.copy_(weight)
        if parts.last.bias is not None:
            parts.last.bias.copy_(bias / constant)
        if rate == 0.0:
            self._warn("has not fired", epoch, "raise rate")
        logits = x @ weight.T + bias
        accuracy, loss = float((logits.argmax(1) == y).double().mean()), float(F.cross_entropy(logits, y))
        found = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
        return {**found, "spike_rate": rate, "rates": {parts.name: rate}}

    def accuracy(self, data: Data, epoch: int) -> float:
        model, device, correct, seen = self.parts.model, device_of(self.parts.model), 0.0, 0
        for index, batch in enumerate(batches(data, 8 * self.rule.batch_size)):
            x, y = batch.x.to(device), batch.y.to(device)
            with draws(model, derive(self.rule.seed, "validate", epoch, index), batch.sample_ids):
                correct += float((checks.call(model, x, y).argmax(1) == y).sum())
            seen += len(x)
        return correct / seen

    def _warn(self, what: str, epoch: int, remedy: str) -> None:
        kind = type(self.parts.neuron).__name__
        text = f"{self.parts.name} ({kind}) {what} in epoch {epoch + 1}: nothing can be learnt. {remedy}"
        warnings.warn(text, TrainingWarning, stacklevel=5)  # past the wrapper of torch.no_grad


def _parts(model: nn.Module) -> _Parts:
    """The parts of a model with one hidden layer."""
    if not isinstance(model, SpikingClassifier) or not isinstance(model.network, Sequential):
        kind = type(model.network).__name__ if isinstance(model, SpikingClassifier) else type(model).__name__
        raise TypeError(f"STDP trains a SpikingClassifier of a Sequential, got {kind}: use {_ADVICE}")
    found = [(name, m) for name, m in model.network.named_modules() if not isinstance(m, Sequential | nn.Sequential)]
    before = tuple(m for _, m in found if isinstance(m, nn.Flatten))
    kinds = [type(m) for _, m in found]
    wanted = [nn.Flatten] * len(before) + [nn.Linear, None, nn.Linear]
    plainly = len(kinds) == len(wanted) and all(w in (None, k) for k, w in zip(kinds, wanted, strict=True))
    if not plainly or kinds[-2] not in (LIF, IF):
        has = ", ".join(k.__name__ for k in kinds)
        raise TypeError(f"STDP trains nn.Linear, LIF or IF, nn.Linear, and the network is {has}: use {_ADVICE}")
    if type(model.readout) not in _LINEAR_READOUTS:
        names = ", ".join(kind.__name__ for kind in _LINEAR_READOUTS)
        raise TypeError(
            f"STDP trains the last layer through a readout that is linear ({names}), got {type(model.readout).__name__}"
        )
    (_, hidden), (name, neuron), (_, last) = found[-3:]
    return _Parts(model, before, hidden, neuron, last, model.readout, f"network.{name}")


def _seen(parts: _Parts, x: Tensor) -> Tensor:
    """What the first layer sees, ``[T, B, n]``."""
    pre = run(parts.before, parts.model.encoder(x)) if parts.before else parts.model.encoder(x)
    if float(pre.min()) < 0:
        raise ValueError(
            f"{type(parts.model.encoder).__name__} gives negative values, which are no spikes: use Poisson, or Direct with "
            "inputs from 0 on"
        )
    return pre


def _logistic_regression(x: Tensor, y: Tensor, classes: int, l2: float, biased: bool) -> tuple[Tensor, Tensor]:
    """Weights ``[classes, n]`` and bias of the least mean cross-entropy plus ``l2`` times the squares of the weights."""
    x, dtype = x.double(), x.dtype
    scale = x.var(0, correction=0).mean().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    features = x / scale
    weight, bias = (x.new_zeros(shape, requires_grad=True) for shape in ((classes, x.shape[1]), (classes,)))
    learnt = [weight, bias] if biased else [weight]
    optimizer = torch.optim.LBFGS(learnt, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, y) + l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (weight.detach() / scale).to(dtype), bias.detach().to(dtype)


RULES[STDP.name] = STDP
