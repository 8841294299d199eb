"""Removal of unused paths: what no next layer reads, and inputs that no filter fills. The function stays what it was."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.hardware.operation import Operation
from snnrobust.layers import BNTT, TEBN
from snnrobust.quantization.paths import Path, Steady, paths

__all__ = ["Purification", "purify"]


@dataclass(frozen=True, eq=False)
class Purification:
    """A purified copy, and what was removed.

    Attributes:
        model: The copy; it computes the same function in eval mode.
        masks: By the name of a parameter that was changed, False where it is zero.
        unread: By layer, filters that no next layer reads, which are zero now.
        unfilled: By layer, input channels whose constant is zero and whose weights are zero now.
        folded: By layer, input channels with another constant, which its bias has taken over.
        constant: By layer, input channels that are constant and stay, and why.
        removed: Weights that were not zero and are now.
        passes: Over all layers, until nothing changed.
    """

    model: nn.Module
    masks: dict[str, Tensor] = field(default_factory=dict)
    unread: dict[str, list[int]] = field(default_factory=dict)
    unfilled: dict[str, list[int]] = field(default_factory=dict)
    folded: dict[str, list[int]] = field(default_factory=dict)
    constant: dict[str, dict[int, str]] = field(default_factory=dict)
    removed: int = 0
    passes: int = 0


def purify(model: nn.Module, example: Tensor, *, fold: bool = True) -> Purification:
    r"""A copy of ``model`` without unused paths, in eval mode the same function.

    Repeated until nothing changes, over each pair of neighbouring layers (:func:`~snnrobust.quantization.paths.paths`):

    - a filter that the next layer does not read becomes zero, with its bias and the scale and offset of its normalisation;
    - a filter without weights gives a constant: its bias, then what normalisation, activation, neuron and pooling make of it.
      That constant is computed, at every time step and place. Where it is zero, the next layer's weights for it become zero;
      where it is not, ``fold`` adds their product to the next layer's bias: possible if it is alike at all time steps and, for a
      convolution, at all places and without a border of zeros. Otherwise the channel stays, and the result says why.

    While training, batch normalisation turns a constant channel into its offset whatever the constant: the function is kept in
    eval mode only.

    Args:
        model: Untouched.
        example: One input, ``[1, *]``: shapes and time steps are read off it.
        fold: Allow a bias to change, or to be added to a layer without one.

    Raises:
        ValueError: no two synaptic layers follow one another where that can be seen.
    """
    checks.pixels("example", example, bounds=(-float("inf"), float("inf")))
    copy = deepcopy(checks.module("model", model))
    routes = paths(copy, example)
    if not routes:
        raise ValueError(
            "the model has no path: two nn.Linear or nn.Conv layers in a Sequential with nothing between that mixes channels"
        )
    found = Purification(copy)
    before = _weights(copy)
    changed, passes = True, 0
    with torch.no_grad():
        while changed:
            changed, passes = False, passes + 1
            found.constant.clear()
            for path in reversed(routes):
                changed |= _drop_unread(copy, path, found)
            for path in routes:
                changed |= _drop_unfilled(copy, path, found, fold)
    for name in {name for path in routes for name in (path.first, path.last)}:
        found.masks[f"{name}.weight"] = copy.get_parameter(f"{name}.weight") != 0
    object.__setattr__(found, "removed", before - _weights(copy))
    object.__setattr__(found, "passes", passes)
    return found


def _weights(model: nn.Module) -> int:
    return sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)


def _drop_unread(model: nn.Module, path: Path, found: Purification) -> bool:
    layer = model.get_submodule(path.first)
    unread = ~path.read(model)
    parts = [(f"{path.first}.weight", layer.weight)]
    if layer.bias is not None:
        parts.append((f"{path.first}.bias", layer.bias))
    for name in path.between:
        norm = model.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm | BNTT | TEBN):
            parts += [
                (f"{name}.{p}", v) for p, v in norm.named_parameters(recurse=False)
                if p in ("weight", "bias") and v.shape[-1] == len(unread)
            ]  # fmt: skip
    changed = False
    for parameter, value in parts:
        assert isinstance(value, Tensor)
        filters = "weight" in parameter and value is layer.weight
        out = unread.view(-1, *(1,) * (value.dim() - 1)).expand(value.shape) if filters else unread.expand(value.shape)
        if bool((out & (value != 0)).any()):
            changed = True
        value.masked_fill_(out, 0.0)
        if bool(out.any()) and not filters:
            found.masks[parameter] = found.masks.get(parameter, torch.ones_like(out)) & ~out
    if bool(unread.any()):
        found.unread[path.first] = unread.nonzero()[:, 0].tolist()
    return changed


def _drop_unfilled(model: nn.Module, path: Path, found: Purification, fold: bool) -> bool:
    first = model.get_submodule(path.first)
    assert isinstance(first.weight, Tensor)
    empty = ~first.weight.flatten(1).any(1) & path.read(model)
    if not bool(empty.any()):
        return False
    changed, inputs = False, path.inputs(model)
    for c, steady in path.steady(model, empty.nonzero()[:, 0]).items():
        if steady.zero:
            found.unfilled.setdefault(path.last, []).append(c)
        else:
            why = "fold=False" if not fold else _fold(model, path, c, steady)
            if why:
                found.constant.setdefault(path.last, {})[c] = why
                continue
            found.folded.setdefault(path.last, []).append(c)
        inputs[c] = 0.0
        changed = True
    return changed


def _fold(model: nn.Module, path: Path, channel: int, steady: Steady) -> str:
    """Put the constant into the last layer's bias; or say why that cannot be."""
    layer, value = model.get_submodule(path.last), steady.in_time
    if value is None:
        return "another value at each time step"
    weight = path.inputs(model)[channel].double()  # [out, places, *kernel]
    operation = Operation.of(layer)
    if operation.kernel:
        if any(operation.pads) and operation.padding_mode == "zeros":
            return "the convolution pads with zeros"
        if bool((value != value[0]).any()):
            return "another value at each place"
        offset = weight.flatten(1).sum(1) * value[0].double()
    else:
        offset = weight @ value.double()
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    layer.bias.copy_(layer.bias.double() + offset)  # type: ignore[operator]
    return ""
