"""Which channels of one synaptic layer reach the next, where nothing between the two mixes channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import Stochastic, device_of, evaluating
from snnrobust.hardware.deploy import PLAIN_FORWARDS, SYNAPTIC, sees_time
from snnrobust.hardware.operation import Operation
from snnrobust.layers import (
    BNTT,
    QCFS,
    TDBN,
    TEBN,
    Concat,
    Dropout,
    OrdinaryConcat,
    OrdinaryDropout,
    OrdinaryResidual,
    Residual,
    Sequential,
)
from snnrobust.neurons import Neuron

__all__ = ["Path", "Steady", "paths"]

CONTAINERS = (nn.Sequential, Sequential)
BRANCHES = (Residual, Concat, OrdinaryResidual, OrdinaryConcat)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BNTT, TDBN, TEBN)
CHANNELWISE = (
    *NORMS, QCFS, Dropout, OrdinaryDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Flatten,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
"""In eval mode a channel of their output depends on that channel of their input alone."""


@dataclass(frozen=True, eq=False)
class Steady:
    """What a channel is behind the modules between two layers when the first gives it a constant: ``[T, F]``, F places of it."""

    values: Tensor

    @property
    def zero(self) -> bool:
        return not bool(self.values.any())

    @property
    def in_time(self) -> Tensor | None:
        """The values ``[F]``, if they are the same at each step."""
        first = self.values[0]
        return first if bool((self.values == first).all()) else None


@dataclass(frozen=True, eq=False)
class Path:
    """From one synaptic layer to the next.

    Attributes:
        first, last: Their names.
        between: Names of the modules between them, in order.
        places: Inputs of the last layer that belong to one channel: 1, or the positions of a channel that was flattened.
        shape: Of the first layer's output for one sample at one step.
        steps: T that the first layer sees, or 0 where there is no time.
    """

    first: str
    last: str
    between: tuple[str, ...]
    places: int
    shape: tuple[int, ...]
    steps: int

    def steady(self, model: nn.Module, channels: Tensor) -> dict[int, Steady]:
        """What each of ``channels`` is in front of the last layer if it is nothing but the first layer's bias, in eval mode."""
        first = model.get_submodule(self.first)
        value = torch.zeros(self.shape, dtype=first.weight.dtype, device=first.weight.device)  # type: ignore[arg-type]
        if isinstance(first.bias, Tensor):
            value[channels] = (
                first.bias.detach()[channels].view(-1, *(1,) * (value.dim() - 1)).expand_as(value[channels])
            )
        modules = [model.get_submodule(name) for name in self.between]
        with torch.no_grad(), evaluating(model):
            if self.steps:
                seen = Sequential(*modules)(value.expand(self.steps, 1, *self.shape).contiguous())[:, 0]
            else:
                seen = nn.Sequential(*modules)(value[None])
        seen = seen.flatten(1).unflatten(1, (self.shape[0], -1))  # [T, C, F]
        return {c: Steady(seen[:, c]) for c in channels.tolist()}

    def read(self, model: nn.Module) -> Tensor:
        """Which channels the last layer reads, bool ``[C]``."""
        return self.inputs(model).flatten(1).ne(0).any(1)

    def inputs(self, model: nn.Module) -> Tensor:
        """The last layer's weight by channel, ``[C, out, *]``; a view that can be changed."""
        weight = model.get_submodule(self.last).weight
        assert isinstance(weight, Tensor)
        view: Tensor = weight.detach().unflatten(1, (self.shape[0], -1)).transpose(0, 1)
        return view


def paths(model: nn.Module, example: Tensor) -> list[Path]:
    """The paths of ``model``, in order of execution.

    Found in ``nn.Sequential``, :class:`~snnrobust.layers.Sequential`, :class:`~snnrobust.models.SpikingClassifier` and the
    branches of residual and dense blocks. A layer that ends in a block's sum, or that a module follows which mixes channels or
    is not known, has no path from it; nor has a grouped or shared layer.

    Args:
        model: Runs once on ``example``, in eval mode.
        example: Inputs ``[B, *]``; the first is used.
    """
    checks.module("model", model)
    chains = list(_chains("", model))
    names = {id(m): name for name, m in model.named_modules()}
    counts: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        counts[id(module)] = counts.get(id(module), 0) + 1
    wanted = {}
    for chain in chains:
        for first, between, last in _pairs([names[id(m)] for m in chain], model):
            parts = [model.get_submodule(name) for name in (first, *between, last)]
            if all(counts[id(m)] == 1 for m in parts if m.state_dict()):
                wanted[first] = (between, last)
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for first in wanted:

        def note(module: nn.Module, given: object, y: Tensor, first: str = first) -> None:
            shapes[first] = tuple(y.shape)

        handles.append(model.get_submodule(first).register_forward_hook(note))
    try:
        with torch.no_grad(), evaluating(model):
            model(example[:1].to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for first, (between, last) in wanted.items():
        if first not in shapes:
            continue
        timed = sees_time(model, first)
        shape, steps = shapes[first][1:], shapes[first][0] if timed else 0
        weight = model.get_submodule(last).weight
        assert isinstance(weight, Tensor)
        if weight.shape[1] % shape[0] == 0 and _fits(model, last, between, shape):
            found.append(Path(first, last, between, weight.shape[1] // shape[0], shape, steps))
    return found


def _chains(name: str, module: nn.Module) -> Iterator[list[nn.Module]]:
    """Modules that are run one after the other."""
    from snnrobust.models.classifier import SpikingClassifier  # models imports this package

    if isinstance(module, SpikingClassifier):
        yield from _chains(f"{name}.network", module.network)
        return
    if type(module) not in CONTAINERS:
        return
    chain = list(_flat(module))
    yield chain
    for part in chain:
        if isinstance(part, BRANCHES):
            for child in part.children():
                yield from _chains("", child)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    for child in module._modules.values():  # children() leaves out repeated ones
        if child is None:
            continue
        if type(child) in CONTAINERS:
            yield from _flat(child)
        else:
            yield child


def _pairs(names: list[str], model: nn.Module) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Neighbouring synaptic layers of a chain, where all between them keeps channels apart."""
    first: str | None = None
    between: list[str] = []
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, SYNAPTIC):
            plain = type(module).forward in PLAIN_FORWARDS and Operation.of(module).groups == 1
            plain = plain and "weight" in module._parameters and not _hooked(module)
            if first is not None and plain:
                yield first, tuple(between), name
            first, between = (name, []) if plain else (None, [])
        elif first is not None:
            if _channelwise(module):
                between.append(name)
            else:
                first = None


def _channelwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return False
    if _hooked(module) or any(m.stochastic for m in module.modules() if isinstance(m, Stochastic) and not m.training):
        return False
    if isinstance(module, Neuron):
        return not any(isinstance(m, SYNAPTIC) for m in module.modules())
    return type(module) in CHANNELWISE


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fits(model: nn.Module, last: str, between: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    """Channels are where the last layer takes them: on axis 1 of a convolution, in front after ``nn.Flatten``."""
    flattened = any(isinstance(model.get_submodule(name), nn.Flatten) for name in between)
    if isinstance(model.get_submodule(last), nn.Linear):
        return flattened or len(shape) == 1
    return len(shape) > 1 and not flattened
