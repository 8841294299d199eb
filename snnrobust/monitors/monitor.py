"""Watch a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.monitors.record import Record
from snnrobust.monitors.tally import Tally
from snnrobust.neurons import Neuron, Recurrent

__all__ = ["monitor"]


@contextmanager
def monitor(model: nn.Module, *, membrane: bool = False) -> Iterator[Record]:
    r"""Record what the neurons of ``model`` put out in each forward pass inside the context.

    .. math:: \text{rate}_t = \tfrac{1}{B N} \sum_{b, i} [s_{t, b, i} \ne 0]

    Statistics run over all forward passes, weighted by samples; no output is kept. Outputs, draws, gradients and modes of the
    model are untouched. Seen are the neurons of snnrobust, and those of SpikingJelly and snnTorch, where each call inside one
    forward of ``model`` is a step (in SpikingJelly's multi-step mode: all steps). A model without spiking neurons is seen
    through its ``nn.ReLU`` modules, with T = 1. A module that is called again in the same forward has another entry,
    ``name (call 2)``.

    Args:
        model: Any module. Calls of its parts are seen too; ``stream()`` and ``step()`` are not.
        membrane: Record the potentials of our neurons too, which costs another pass through each layer of them.

    Raises:
        ValueError: ``model`` has no neurons to watch, or ``membrane`` is asked of neurons of another library.
    """
    checks.module("model", model)
    checks.boolean("membrane", membrane)
    watched = _watched(model)
    if membrane and not any(isinstance(m, Neuron | Recurrent) for m in watched.values()):
        kinds = sorted({type(m).__name__ for m in watched.values()})
        raise ValueError(
            f"membrane=True needs neurons of snnrobust, and the model has {', '.join(kinds)}: leave it out"
        )
    record = Record()
    watch = _Watch(record, membrane)
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(watch.begin).remove)
        for name, module in watched.items():
            hooks.callback(module.register_forward_hook(watch.hook(name)).remove)
        # after the hooks of the layers, one of which may be the model itself
        hooks.callback(model.register_forward_hook(watch.end, always_call=True).remove)
        yield record


def _watched(model: nn.Module) -> dict[str, nn.Module]:
    spiking = {name: m for name, m in model.named_modules() if _spikes(m)}
    found = spiking or {name: m for name, m in model.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)}
    if not found:
        raise ValueError(
            "the model has no neurons to watch: modules of snnrobust.neurons, SpikingJelly or snnTorch, or nn.ReLU; "
            "activations that are functions cannot be seen"
        )
    return found


def _spikes(module: nn.Module) -> bool:
    return isinstance(module, Neuron | Recurrent) or _foreign(module)


def _foreign(module: nn.Module) -> bool:
    """A neuron of SpikingJelly or of snnTorch."""
    return (hasattr(module, "step_mode") and hasattr(module, "v_threshold")) or hasattr(module, "spike_grad")


class _Watch:
    """Hooks that feed a record; they know where in a forward pass of the model they are."""

    def __init__(self, record: Record, membrane: bool) -> None:
        self.tallies, self.membrane = record._tallies, membrane
        self.calls: dict[str, int] = {}
        self.inside = False

    def begin(self, model: nn.Module, args: object) -> None:
        self.inside = True

    def end(self, model: nn.Module, args: object, output: object) -> None:
        self.inside, self.calls = False, {}
        for tally in self.tallies.values():
            tally.close()

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def seen(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self.calls.get(name, 0)
            if self.inside:
                self.calls[name] = call + 1
            output = output[0] if isinstance(output, tuple) else output  # snnTorch: spikes, membrane
            if output.numel() == 0:
                return
            stepwise = _foreign(module) and getattr(module, "step_mode", "s") == "s"
            tally = self._tally(name, module, 0 if stepwise else call)
            if stepwise:
                tally.add(output[None], call)
            else:
                tally.add(output[None] if isinstance(module, nn.ReLU | nn.ReLU6) else output)
                if self.membrane and isinstance(module, Neuron | Recurrent):
                    tally.add_membrane(potential(module, args[0], output))
            if not (stepwise and self.inside):
                tally.close()

        return seen

    def _tally(self, name: str, module: nn.Module, call: int) -> Tally:
        if (name, call) not in self.tallies:
            shown = f"{name} (call {call + 1})" if call else name
            self.tallies[name, call] = Tally(shown, type(module).__name__)
        return self.tallies[name, call]


def potential(module: Neuron | Recurrent, x: Tensor, spikes: Tensor) -> Tensor:
    """Membrane potentials ``[T, B, *]`` after the reset, of neurons that answered ``x`` with ``spikes``."""
    with torch.no_grad():
        if isinstance(module, Neuron):
            return module.membrane(x)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        # as a function: the module's hooks are not for this second pass
        return module.neuron.membrane(x + F.linear(before, module.recurrent.weight))
