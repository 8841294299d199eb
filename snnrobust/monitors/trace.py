"""One layer in full, for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import evaluating
from snnrobust.monitors.monitor import potential
from snnrobust.neurons import Neuron, Recurrent

__all__ = ["Trace", "trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """What went into a layer of neurons and what came out, ``[T, B, *]`` each.

    Attributes:
        name: Of the layer.
        current: Its input.
        membrane: Potential after the reset.
        spikes: Its output.
        threshold: A number, or ``[C]``; that of an adaptive neuron at rest.
    """

    name: str
    current: Tensor
    membrane: Tensor
    spikes: Tensor
    threshold: float | Tensor


def trace(model: nn.Module, x: Tensor, layer: str) -> Trace:
    """Run ``model`` on ``x`` in eval mode, without gradient and under the draws of the context, and keep one layer.

    Args:
        model: Its modes are restored.
        x: What ``model`` takes; few samples, for everything is kept.
        layer: Name of a layer of spiking neurons, as in ``model.named_modules()``.

    Raises:
        ValueError: there is no such layer, or it did not run exactly once.
    """
    checks.module("model", model)
    stepped = {id(m.neuron) for m in model.modules() if isinstance(m, Recurrent)}
    found = {n: m for n, m in model.named_modules() if isinstance(m, Neuron | Recurrent) and id(m) not in stepped}
    if not found:
        raise ValueError("the model has no neurons of snnrobust to trace")
    module = found[checks.choice("layer", layer, found)]
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(
            f"{layer} ran {len(seen)} times in one forward pass: only a layer that runs once can be traced"
        )
    current, spikes = seen[0]
    assert isinstance(module, Neuron | Recurrent)
    threshold = (module.neuron if isinstance(module, Recurrent) else module).threshold
    threshold = threshold.detach().clone() if isinstance(threshold, Tensor) else threshold
    with torch.no_grad(), evaluating(model):
        return Trace(layer, current, potential(module, current, spikes), spikes, threshold)
