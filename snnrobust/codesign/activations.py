"""What the synaptic layers of a model see and put out, while it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.codesign.knobs import ACTIVATIONS
from snnrobust.draws import evaluating
from snnrobust.hardware.deploy import SYNAPTIC
from snnrobust.neurons import Neuron, Recurrent
from snnrobust.quantization import QuantizedMembrane, SignalQuantizer
from snnrobust.temporal import Temporal

__all__ = ["Where", "activations", "plain_names"]

Where = Literal["activation", "input", "output"]
"""Of a synaptic layer: what the activation or neuron behind it puts out (of the last layer, its output); its input; or its
product with the weights, before normalisation and neuron."""

_SPIKING = (Neuron, Recurrent, QuantizedMembrane)
Seen = dict[str, list[Tensor]]


def plain_names(model: nn.Module) -> dict[str, str]:
    """The synaptic layers of ``model`` by the names that they have, or had before their inputs were quantized: name to name.

    ``{"0.1": "0"}`` for a layer ``"0"`` that :func:`~snnrobust.quantization.quantize` put behind a quantizer.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SYNAPTIC):
            parent = name.rpartition(".")[0]
            before = model.get_submodule(parent)
            if isinstance(before, nn.Sequential) and len(before) == 2 and isinstance(before[0], SignalQuantizer):
                found[name] = parent
            else:
                found[name] = name
    return found


@contextmanager
def activations(
    model: nn.Module, batch: int, where: Where = "activation", layers: Collection[str] | None = None
) -> Iterator[Seen]:
    """Inside, ``model`` is in eval mode, and what its layers see or put out is collected as ``[T, B, *]`` (T = 1 without time).

    Args:
        model: Its ``nn.Linear`` and ``nn.Conv*`` are watched.
        batch: B of the forward passes.
        where: What of a layer.
        layers: By their plain names; default all.

    Yields:
        By plain name a tensor for each call of the layer, of all passes so far: ``clear()`` it between passes.

    Raises:
        ValueError: no layers, or an unknown one.
    """
    checks.module("model", model)
    checks.choice("where", where, get_args(Where))
    names = plain_names(model)
    if not names:
        raise ValueError("the model has no nn.Linear or nn.Conv to watch; on a chip watch the original model")
    if isinstance(layers, str) or (layers is not None and not layers):
        raise ValueError(
            f"layers must be a collection of names such as [{next(iter(names.values()))!r}], got {layers!r}"
        )
    for name in layers or ():
        checks.choice("layers", name, names.values())
    watch = _Watch(batch, where)
    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            if name in names and (layers is None or names[name] in layers):
                hooks.callback(module.register_forward_hook(partial(watch.layer, names[name])).remove)
            elif name in names:  # an activation behind it is not that of the layer before
                hooks.callback(module.register_forward_hook(watch.other).remove)
            elif where == "activation" and isinstance(module, (*_SPIKING, *ACTIVATIONS)):
                hooks.callback(module.register_forward_hook(watch.activation).remove)
        yield watch.seen


class _Watch:
    def __init__(self, batch: int, where: Where) -> None:
        self.batch, self.where = batch, where
        self.seen: Seen = {}
        self.last: str | None = None  # the layer whose activation is still to come

    def layer(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.last = name
        value = args[0] if self.where == "input" else output
        self.seen.setdefault(name, []).append(self._unfold(name, value))

    def other(self, module: nn.Module, args: object, output: object) -> None:
        self.last = None

    def activation(self, module: nn.Module, args: object, output: Any) -> None:
        if self.last is None:
            return
        value = output if isinstance(module, Temporal) else self._unfold(self.last, output)
        self.seen[self.last][-1] = value.detach()
        self.last = None

    def _unfold(self, name: str, value: Tensor) -> Tensor:
        if value.dim() < 2 or len(value) % self.batch:
            raise ValueError(
                f"{name or 'the model'} saw {tuple(value.shape)} in a pass of {self.batch} samples: it must see [B, ...] or, "
                "with time folded into the batch, [T * B, ...]"
            )
        folded: Tensor = value.detach().unflatten(0, (-1, self.batch))
        return folded


def joined(seen: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """The calls of each layer one after the other, ``[calls * T, B, *]``: of a layer that is stepped, its time steps."""
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in seen.items()}
