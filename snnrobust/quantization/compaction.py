"""Physical removal of channels that nothing reads: smaller layers, the same outputs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers import BNTT, TDBN, TEBN
from snnrobust.neurons import Neuron
from snnrobust.quantization.paths import NORMS, Path, paths

__all__ = ["compact"]


def compact(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy without the channels that no next layer reads; call :func:`~snnrobust.quantization.purify` first, which finds them.

    Removed are the filter, its bias, its part of ``nn.BatchNorm``, ``BNTT``, ``TDBN`` and ``TEBN`` (statistics too), and the
    next layer's weights for it. At least one channel stays. Outputs in eval mode are equal but for the order in which sums are
    rounded, in models that draw nothing: the draws of removed channels are not there any more.
    Layers in front of a residual sum, grouped layers, and those followed by neurons with constants of each channel stay whole.
    An optimizer has to be made anew, as every training of ours does.

    Args:
        model: Untouched.
        example: One input, ``[1, *]``.
    """
    checks.pixels("example", example, bounds=(-float("inf"), float("inf")))
    copy = deepcopy(checks.module("model", model))
    with torch.no_grad():
        for path in paths(copy, example):
            left = path.read(copy)
            if not bool(left.any()):
                left[0] = True  # a layer without outputs would cut the network
            if not bool(left.all()) and all(_divisible(copy.get_submodule(name)) for name in path.between):
                _remove(copy, path, left)
    return copy


def _divisible(module: nn.Module) -> bool:
    if not isinstance(module, Neuron):
        return True
    return all(t.numel() == 1 for t in (*module.parameters(), *module.buffers()))


def _remove(model: nn.Module, path: Path, left: Tensor) -> None:
    first, last = model.get_submodule(path.first), model.get_submodule(path.last)
    _shorten(first, "weight", left, 0)
    _shorten(first, "bias", left, 0)
    index = left
    for name in path.between:
        module = model.get_submodule(name)
        if isinstance(module, nn.Flatten) and path.places > 1:
            index = left.repeat_interleave(path.places)
        elif isinstance(module, NORMS):
            for part in ("weight", "bias", "running_mean", "running_var"):
                _shorten(module, part, index, -1)
            size = int(index.sum())
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.num_features = size
            if isinstance(module, BNTT | TDBN | TEBN):
                module.features = size
    columns = left.repeat_interleave(path.places)
    _shorten(last, "weight", columns, 1)
    if isinstance(first, nn.Linear):
        first.out_features = len(first.weight)
    else:
        first.out_channels = len(first.weight)  # type: ignore[arg-type,assignment]
    if isinstance(last, nn.Linear):
        last.in_features = last.weight.shape[1]
    else:
        last.in_channels = last.weight.shape[1]  # type: ignore[index,assignment]


def _shorten(module: nn.Module, name: str, left: Tensor, axis: int) -> None:
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return
    short = value.detach().index_select(axis, left.nonzero()[:, 0]).clone()
    if isinstance(value, nn.Parameter):
        setattr(module, name, nn.Parameter(short, value.requires_grad))
    else:
        setattr(module, name, short)
