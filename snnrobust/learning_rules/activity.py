"""How much neurons fire while they are trained: a layer that never fires, or always, is named while it happens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import temporal
from snnrobust.learning_rules.trainer import TrainingWarning
from snnrobust.neurons import Neuron, Recurrent
from snnrobust.temporal import Temporal

__all__ = ["Activity"]

_PATIENCE = 3  # watched batches in a row before a layer is called dead or saturated
_SATURATED = 0.99

Total = Callable[..., list[float]]


class Activity:
    """Firing rates by layer (of ReLU: the share that is not zero), of the batches that are watched.

    A watched layer has a hook, so it is shown every step and not fused with the normalisation before it: sums may be in another
    order than in a step that nobody watches. In a compiled model nothing is watched: hooks would compile it again.

    Args:
        model: Its neurons, recurrent layers and ReLUs are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = {id(m.neuron) for m in model.modules() if isinstance(m, Recurrent)}
        kinds = (Neuron, Recurrent, nn.ReLU)
        compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
        found = {} if compiled else dict(model.named_modules())
        self.layers = {n: m for n, m in found.items() if isinstance(m, kinds) and id(m) not in inner}
        self.on = False
        self._names = {id(m): name for name, m in self.layers.items()}
        self._batch = self._none()
        self._epoch = self._none()
        self._strikes = dict.fromkeys(self.layers, 0)
        self._recent = dict.fromkeys(
            self.layers, 0
        )  # of this epoch alone: a resumed training has to watch the same steps
        self._warned: set[str] = set()

    def see(self, layer: nn.Module, output: Tensor) -> None:
        """Count one output of ``layer``; for rules that run the neurons themselves. Does nothing unless ``on``."""
        again = torch._C._current_graph_task_id() >= 0  # recomputed in the backward pass
        if self.on and layer.training and id(layer) in self._names and not again:  # in eval mode it is an attack's pass
            with torch.no_grad():
                self._add(self._batch, self._names[id(layer)], int(torch.count_nonzero(output)), output.numel())

    @contextmanager
    def watching(self, hooks: bool = True) -> Iterator[None]:
        """Inside, ``on`` is set and what the layers give is counted, by hooks or by a rule that calls :meth:`see`."""
        self.on, self._batch = True, self._none()
        try:
            with ExitStack() as hung:
                for layer in self.layers.values() if hooks else ():
                    self._hang(hung, layer)
                yield
        finally:
            self.on = False

    def _hang(self, hung: ExitStack, layer: nn.Module) -> None:
        """See what ``layer`` gives when it is called, and when a sequence goes through it in pieces, which no hook is told."""
        called: list[bool] = []

        def seen(_: nn.Module, __: object, y: Tensor) -> None:
            called.clear()
            self.see(layer, y)

        hung.callback(layer.register_forward_pre_hook(lambda *_: called.append(True)).remove)
        hung.callback(layer.register_forward_hook(seen).remove)
        if not isinstance(layer, Temporal):
            return
        name = "advance" if temporal.advances(layer) else "step"
        own, bound = vars(layer).get(name), getattr(layer, name)

        def piece(x: Tensor, state: Any) -> Any:
            y, state = bound(x, state)
            if not called:
                self.see(layer, y)
            return y, state

        def put_back() -> None:
            if own is None:
                del vars(layer)[name]
            else:
                vars(layer)[name] = own

        vars(layer)[name] = piece
        hung.callback(put_back)

    def judge(self, epoch: int, step: int, total: Total = lambda *values: list(values), speak: bool = True) -> None:
        """Add what was counted to the epoch, and warn of layers that are dead or saturated.

        Args:
            epoch, step: Where that was.
            total: Sums over all processes.
            speak: Whether this is the process that warns.
        """
        counts = total(*(value for name in self.layers for value in self._batch[name]))
        for name, fired, size in zip(self.layers, counts[::2], counts[1::2], strict=True):
            if size:
                self._add(self._epoch, name, fired, size)
                self._judge(name, fired / size, f"epoch {epoch + 1}, step {step + 1}", speak)

    def _judge(self, name: str, rate: float, where: str, speak: bool) -> None:
        spiking = self._spikes(name)
        dead, saturated = rate == 0.0, spiking and rate > _SATURATED
        for strikes in (self._strikes, self._recent):
            strikes[name] = strikes[name] + 1 if dead or saturated else 0
        if self._strikes[name] < _PATIENCE or name in self._warned:
            return
        self._warned.add(name)
        if not dead:
            remedy = "raise its threshold, make the weights before it smaller, lower lr, or normalise (norm='BNTT')"
            text = f"fires at {rate:.1%} of all steps ({where}), so it says nothing about its input: {remedy}"
        elif spiking:
            remedy = "lower its threshold, make the weights before it larger, or normalise (norm='BNTT')"
            text = f"has not fired in the last {_PATIENCE} watched batches ({where}), so nothing reaches what follows: {remedy}"
        else:
            remedy = "lower lr, or normalise the inputs of that layer"
            text = f"has been zero in the last {_PATIENCE} watched batches ({where}), so it does not learn: {remedy}"
        if speak:
            warnings.warn(f"{name} ({type(self.layers[name]).__name__}) {text}", TrainingWarning, stacklevel=2)

    @property
    def suspects(self) -> bool:
        """Whether a layer was dead or saturated when it was last watched in this epoch, and not yet often enough to be sure."""
        return any(0 < strikes < _PATIENCE for strikes in self._recent.values())

    def rates(self) -> tuple[dict[str, float], float | None]:
        """Since the last call: the rate of each layer, and that of all spiking neurons together (None without any)."""
        seen = {name: counts for name, counts in self._epoch.items() if counts[1]}
        spiking = [counts for name, counts in seen.items() if self._spikes(name)]
        self._epoch, self._recent = self._none(), dict.fromkeys(self.layers, 0)
        mean = sum(fired for fired, _ in spiking) / sum(size for _, size in spiking) if spiking else None
        return {name: fired / size for name, (fired, size) in seen.items()}, mean

    def _spikes(self, name: str) -> bool:
        return not isinstance(self.layers[name], nn.ReLU)

    def _none(self) -> dict[str, list[float]]:
        return {name: [0.0, 0.0] for name in self.layers}

    @staticmethod
    def _add(to: dict[str, list[float]], name: str, fired: float, size: float) -> None:
        to[name][0] += fired
        to[name][1] += size
