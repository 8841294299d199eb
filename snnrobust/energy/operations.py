"""What a network executes, layer by layer and step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnrobust import checks

__all__ = ["Elementwise", "LayerOperations", "NeuronUpdates", "Operations"]


@dataclass(frozen=True, eq=False)
class LayerOperations:
    """Operations of one synaptic layer. The counts from ``dense`` on are int64 ``[T, n]``, for each step and sample.

    Attributes:
        name, type: As in ``model.named_modules()``.
        input_shape, output_shape: Of one sample at one step.
        magnitude: The only nonzero magnitude that the inputs take; 0 if all were zero, None if they take several.
        low, high: Smallest and largest input.
        constant: Whether the input is the same at every step, as that of the first layer under ``Direct``.
        weights, zeros: Number of weights (biases are none), and how many of them are zero.
        dense: Multiplications of the whole product, padding included, as a device that ignores zeros executes them.
        synapses: The same without padding.
        events: Synapses that nonzero inputs reach, padding excluded: what an event-driven device executes.
        effective: Those of them whose weight is not zero either.
        inputs, nonzero: Number of inputs, and how many of them were not zero.
        biases: Additions of a bias.
    """

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    magnitude: float | None
    low: float
    high: float
    constant: bool
    weights: int
    zeros: int
    dense: Tensor
    synapses: Tensor
    events: Tensor
    effective: Tensor
    inputs: Tensor
    nonzero: Tensor
    biases: Tensor

    @property
    def kind(self) -> Literal["AC", "MAC"]:
        """``"AC"`` where an event only adds a weight: the inputs are zero or of one magnitude, with either sign."""
        return "MAC" if self.magnitude is None else "AC"

    @property
    def dense_mac(self) -> Tensor:
        """Dense multiply-accumulates at each step, ``[T]``, mean over samples."""
        return self.dense.double().mean(1)

    @property
    def mac(self) -> Tensor:
        """Event-driven multiply-accumulates at each step, ``[T]``, mean over samples; 0 in an ``"AC"`` layer."""
        return self.events.double().mean(1) * (self.kind == "MAC")

    @property
    def ac(self) -> Tensor:
        """Event-driven accumulates at each step, ``[T]``, mean over samples; 0 in a ``"MAC"`` layer."""
        return self.events.double().mean(1) * (self.kind == "AC")

    @property
    def rate(self) -> Tensor:
        """Share of nonzero inputs at each step, ``[T]``; 0 where nothing ran."""
        return self.nonzero.sum(1).double() / self.inputs.sum(1).clamp(min=1)

    def _counts(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in _COUNTS}
        return replace(self, **changed)


_COUNTS = ("dense", "synapses", "events", "effective", "inputs", "nonzero", "biases")


@dataclass(frozen=True, eq=False)
class NeuronUpdates:
    """State updates of one layer of spiking neurons.

    Attributes:
        name, type: As in ``model.named_modules()``.
        shape: Of one sample at one step.
        after: The synaptic layer that ran before it; "" if there was none.
        states: Numbers that a neuron keeps from one step to the next.
        multiplications, additions: Of one update, without the reset: leaks; charge and comparison with the threshold.
        soft: Whether the reset is an addition, one for each spike.
        count: Neurons updated, int64 ``[T, n]``, for each step and sample.
        spikes: Outputs that are not zero, likewise.
        changed: Potentials that are others than after the step before (all of them at the first step), likewise; None unless
            asked for.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    after: str
    states: int
    multiplications: int
    additions: int
    soft: bool
    count: Tensor
    spikes: Tensor
    changed: Tensor | None = None

    @property
    def updates(self) -> Tensor:
        """Updates at each step, ``[T]``, mean over samples."""
        return self.count.double().mean(1)

    def _counts(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = None if self.changed is None else change(self.changed)
        return replace(self, count=change(self.count), spikes=change(self.spikes), changed=changed)


@dataclass(frozen=True, eq=False)
class Elementwise:
    """What is neither a synaptic layer nor a spiking neuron and yet touches every element.

    Attributes:
        name, type: As in ``model.named_modules()``.
        role: ``"normalisation"``, ``"encoder"``, or ``"activation"`` of an ordinary network.
        folded: Whether it goes into the weights of the synaptic layer before it, or is no arithmetic at all.
        shift: Whether folding gives that layer a bias that it did not have.
        count, nonzero: Outputs, and how many of them were not zero, int64 ``[T, n]``, for each step and sample.
    """

    name: str
    type: str
    role: Literal["normalisation", "encoder", "activation"]
    folded: bool
    shift: bool
    count: Tensor
    nonzero: Tensor

    def _counts(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, count=change(self.count), nonzero=change(self.nonzero))


@dataclass(frozen=True, eq=False)
class Operations:
    """Operations of a network; totals are means over ``samples``, summed over layers and steps.

    Attributes:
        samples, time_steps: n and T. An ordinary network has T = 1.
        layers: The synaptic layers, in order of execution.
        neurons: The layers of spiking neurons, in order of execution.
        elementwise: Normalisations, encoders and activations, in order of execution.
    """

    samples: int
    time_steps: int
    layers: tuple[LayerOperations, ...]
    neurons: tuple[NeuronUpdates, ...]
    elementwise: tuple[Elementwise, ...] = ()

    @property
    def dense_mac(self) -> float:
        """Multiply-accumulates per sample on a device that ignores zeros."""
        return float(sum(layer.dense_mac.sum() for layer in self.layers))

    @property
    def mac(self) -> float:
        """Multiply-accumulates per sample on an event-driven device."""
        return float(sum(layer.mac.sum() for layer in self.layers))

    @property
    def ac(self) -> float:
        """Accumulates per sample on an event-driven device."""
        return float(sum(layer.ac.sum() for layer in self.layers))

    @property
    def updates(self) -> float:
        """Neuron updates per sample."""
        return float(sum(neuron.updates.sum() for neuron in self.neurons))

    def upto(self, steps: int | Tensor | NDArray[np.integer[Any]]) -> Self:
        """Operations of the first ``steps`` steps: one number for all, or int64 ``[n]``, the exit step of each sample.

        A NumPy array of integers, as :meth:`~snnrobust.models.ExitCurve.exits` gives, does as well.

        Raises:
            ValueError: a number of steps outside 1..T, or other than one for each sample.
        """
        if isinstance(steps, np.ndarray) and np.issubdtype(steps.dtype, np.integer):
            steps = torch.from_numpy(steps.astype(np.int64))
        if not isinstance(steps, Tensor):
            first = checks.count("steps", steps)  # type: ignore[arg-type]
            self._within(first, first)
            return self._counts(lambda count: count[:first], time_steps=first)
        if steps.dtype != torch.int64 or steps.shape != (self.samples,):
            raise ValueError(
                f"steps must be an integer or int64 [{self.samples}], one for each sample, "
                f"got {steps.dtype} of shape {tuple(steps.shape)}"
            )
        self._within(int(steps.min()), int(steps.max()))
        runs = torch.arange(self.time_steps)[:, None] < steps.cpu()
        return self._counts(lambda count: count * runs)

    def _within(self, low: int, high: int) -> None:
        if not (low >= 1 and high <= self.time_steps):
            raise ValueError(f"steps must be within 1..{self.time_steps}, the steps that ran, got {low}..{high}")

    def hoisted(self) -> Self:
        """The same on a device that keeps the product of an input that does not change: ``constant`` layers run at the first
        step only."""
        first = (torch.arange(self.time_steps) == 0)[:, None]
        layers = (layer._counts(lambda count: count * first) if layer.constant else layer for layer in self.layers)
        return replace(self, layers=tuple(layers))

    @classmethod
    def join(cls, batches: Iterable[Operations]) -> Self:
        """The operations of several batches through one model, samples one after the other.

        Raises:
            ValueError: no batch, or batches of different networks or numbers of steps.
        """
        batches = list(batches)
        if not batches:
            raise ValueError("batches must hold at least one Operations")
        if len({_structure(batch) for batch in batches}) > 1:
            raise ValueError("batches must come from one model: their layers, shapes or time steps differ")
        layers = [_join_layer(parts) for parts in zip(*(batch.layers for batch in batches), strict=True)]
        neurons = [_join_neurons(parts) for parts in zip(*(batch.neurons for batch in batches), strict=True)]
        others = [
            replace(p[0], count=_cat(p, "count"), nonzero=_cat(p, "nonzero"))
            for p in zip(*(batch.elementwise for batch in batches), strict=True)
        ]
        samples = sum(batch.samples for batch in batches)
        return cls(samples, batches[0].time_steps, tuple(layers), tuple(neurons), tuple(others))

    def table(self) -> str:
        """A line for each synaptic layer, summed over steps, and the totals."""
        heading = ("layer", "type", "kind", "input", "output", "nonzero", "dense MAC", "MAC", "AC")
        lines: list[tuple[str, ...]] = [heading]
        for layer in self.layers:
            share = float(layer.nonzero.sum()) / max(int(layer.inputs.sum()), 1)
            lines.append(
                (
                    layer.name or "(model)", layer.type, layer.kind, _shape(layer.input_shape), _shape(layer.output_shape),
                    f"{100 * share:.1f} %", *(_number(float(c.sum())) for c in (layer.dense_mac, layer.mac, layer.ac)),
                )
            )  # fmt: skip
        total = ("", "", "", "", "", *map(_number, (self.dense_mac, self.mac, self.ac)))
        lines.append(("all layers", *total))
        widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
        text = [
            "  ".join(
                cell.rjust(w) if i > 4 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        rule = "-" * len(text[0])
        constant = [layer.name for layer in self.layers if layer.constant]
        caption = [
            f"per sample, mean of {self.samples}, T = {self.time_steps}; neuron updates: {_number(self.updates)}"
        ]
        if constant:
            caption.append(f"same input at every step, hoisted() counts it once: {', '.join(constant)}")
        return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:-1], rule, text[-1], *caption])

    def to_json(self) -> dict[str, Any]:
        """Means over samples; counts by layer and step."""
        return {
            "samples": self.samples, "time_steps": self.time_steps,
            "dense_mac": self.dense_mac, "mac": self.mac, "ac": self.ac, "updates": self.updates,
            "layers": [
                {
                    "name": layer.name, "type": layer.type, "kind": layer.kind, "magnitude": layer.magnitude,
                    "constant": layer.constant, "input_shape": layer.input_shape, "output_shape": layer.output_shape,
                    "dense_mac": layer.dense_mac.tolist(), "mac": layer.mac.tolist(), "ac": layer.ac.tolist(),
                    "rate": layer.rate.tolist(),
                }
                for layer in self.layers
            ],
            "neurons": [
                {"name": n.name, "type": n.type, "shape": n.shape, "updates": n.updates.tolist()} for n in self.neurons
            ],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to ``path``, atomically."""
        from snnrobust.models.checkpoint import write_bytes  # models may import this package

        write_bytes(Path(path), json.dumps(self.to_json(), indent=1).encode())

    def _counts(self, change: Callable[[Tensor], Tensor], time_steps: int | None = None) -> Self:
        return replace(
            self,
            time_steps=self.time_steps if time_steps is None else time_steps,
            layers=tuple(layer._counts(change) for layer in self.layers),
            neurons=tuple(neuron._counts(change) for neuron in self.neurons),
            elementwise=tuple(other._counts(change) for other in self.elementwise),
        )


def joint_magnitude(one: float | None, other: float | None) -> float | None:
    """The only nonzero magnitude of two sets of inputs, from that of each."""
    if one is None or other is None or one == 0:
        return None if one is None else other
    return one if other in (0, one) else None


def _join_layer(parts: Sequence[LayerOperations]) -> LayerOperations:
    magnitude = parts[0].magnitude
    for part in parts[1:]:
        magnitude = joint_magnitude(magnitude, part.magnitude)
    joined: dict[str, Any] = {name: _cat(parts, name) for name in _COUNTS}
    return replace(
        parts[0],
        magnitude=magnitude,
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        constant=all(part.constant for part in parts),
        **joined,
    )


def _join_neurons(parts: Sequence[NeuronUpdates]) -> NeuronUpdates:
    known = all(part.changed is not None for part in parts)
    return replace(
        parts[0],
        count=_cat(parts, "count"),
        spikes=_cat(parts, "spikes"),
        changed=_cat(parts, "changed") if known else None,
    )


def _cat(parts: Sequence[Any], name: str) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts], 1)


def _structure(operations: Operations) -> tuple[Any, ...]:
    layers = tuple((layer.name, layer.type, layer.input_shape, layer.output_shape) for layer in operations.layers)
    neurons = tuple((n.name, n.type, n.shape) for n in operations.neurons)
    return operations.time_steps, layers, neurons, tuple((e.name, e.type) for e in operations.elementwise)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _number(value: float) -> str:
    return f"{value:,.0f}"
