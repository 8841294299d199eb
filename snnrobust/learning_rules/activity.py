"""How much neurons fire while they are trained: a layer that never fires, or always, is named while it happens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnrobust.learning_rules.trainer import TrainingWarning
from snnrobust.neurons import Recurrent
from snnrobust.neurons.neuron import Neuron

__all__ = ["Activity"]

_PATIENCE = 3  # watched batches in a row before a layer is called dead or saturated
_SATURATED = 0.99


class Activity:
    """Firing rates by layer (of ReLU: the share that is not zero), of the batches that are watched.

    Args:
        model: Its neurons, recurrent layers and ReLUs are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = {id(m.neuron) for m in model.modules() if isinstance(m, Recurrent)}
        kinds = (Neuron, Recurrent, nn.ReLU)
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds) and id(m) not in inner}
        self._names = {id(m): name for name, m in self.layers.items()}
        self._sums: dict[str, list[float]] = {}
        self._strikes: dict[str, int] = {}
        self._batch: dict[str, list[float]] = {}
        self._warned: set[str] = set()
        self.on = False

    def see(self, layer: nn.Module, output: Tensor) -> None:
        """Count one output of ``layer``; for rules that run the neurons themselves."""
        with torch.no_grad():
            fired = output if isinstance(layer, Neuron | Recurrent) else (output != 0)
            self._batch.setdefault(self._names[id(layer)], []).append(float(fired.float().mean()))

    @contextmanager
    def watching(self, epoch: int, step: int, hooks: bool = True) -> Iterator[None]:
        """Inside, what the layers give is counted; at the end it is judged."""
        handles = []
        if hooks:
            for layer in self.layers.values():
                handles.append(layer.register_forward_hook(lambda m, _, y: self.see(m, y)))
        self.on, self._batch = True, {}
        try:
            yield
        finally:
            self.on = False
            for handle in handles:
                handle.remove()
        for name, seen in self._batch.items():
            rate = sum(seen) / len(seen)
            self._sums.setdefault(name, []).append(rate)
            self._judge(name, rate, epoch, step)

    def _judge(self, name: str, rate: float, epoch: int, step: int) -> None:
        spiking = not isinstance(self.layers[name], nn.ReLU)
        dead, saturated = rate == 0.0, spiking and rate > _SATURATED
        self._strikes[name] = self._strikes.get(name, 0) + 1 if dead or saturated else 0
        if self._strikes[name] < _PATIENCE or name in self._warned:
            return
        self._warned.add(name)
        kind, where = type(self.layers[name]).__name__, f"in epoch {epoch + 1}, step {step + 1}"
        if dead:
            what = "has not fired" if spiking else "has been zero"
            remedy = "lower its threshold, make the weights before it larger, or normalise (norm='BNTT')"
            remedy = remedy if spiking else "lower lr, or normalise"
            text = f"{what} in the last {_PATIENCE} watched batches ({where}): nothing reaches what follows. {remedy}"
        else:
            remedy = "raise its threshold, make the weights before it smaller, lower lr, or normalise (norm='BNTT')"
            text = f"fires at {rate:.1%} of all steps ({where}), so it says nothing about its input. {remedy}"
        warnings.warn(f"{name} ({kind}) {text}", TrainingWarning, stacklevel=2)

    def rates(self) -> dict[str, float]:
        """Mean rate of each layer since the last call."""
        found = {name: sum(seen) / len(seen) for name, seen in self._sums.items()}
        self._sums = {}
        return found
