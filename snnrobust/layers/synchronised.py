"""Batch normalisation over the batches of all processes, also where ``nn.SyncBatchNorm`` does not go: on CPUs, through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers.batch_norm import check_features
from snnrobust.layers.bntt import BNTT
from snnrobust.layers.tdbn import TDBN
from snnrobust.layers.tebn import TEBN

__all__ = ["synchronised"]


@contextmanager
def synchronised(model: nn.Module, counted: bool = True) -> Iterator[None]:
    """Inside, batch statistics of ``model``'s normalisations are those of all processes' batches together.

    Sums are all-reduced, forward and backward, so that gradients summed over the processes are those of one process with the
    whole batch. Without several processes (``torch.distributed``) nothing changes. All processes have to call the model alike.

    Args:
        model: Its ``nn.BatchNorm``, ``BNTT``, ``TDBN`` and ``TEBN`` layers in train mode are reached.
        counted: False for a process whose batch is there only to go along.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in model.modules():
            for name, call in (_calls(module, counted) if module.training else {}).items():
                before.append((module, name, vars(module).get(name)))
                vars(module)[name] = _training(module, call, getattr(module, name))
        yield
    finally:
        for module, name, value in before:
            if value is None:
                del vars(module)[name]
            else:
                vars(module)[name] = value


def _training(module: nn.Module, call: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` while ``module`` trains, else its own: an attack in the midst of a training meets the model in eval mode."""
    return lambda *arguments: call(*arguments) if module.training else own(*arguments)


def _calls(module: nn.Module, counted: bool) -> dict[str, Callable[..., Any]]:
    """What stands in for methods of ``module``. A ``forward`` of its own also keeps a layer from being fused."""
    if isinstance(module, BNTT):
        return {"forward": partial(_bntt, module, counted), "step": partial(_bntt_step, module, counted)}
    if isinstance(module, TEBN):
        normalised = partial(_over_batch, module, counted)
        return {"forward": partial(type(module).forward, module), "_normalised": normalised}
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        return {"forward": partial(_batch_norm, module, counted)}
    return {}


def _bntt(layer: BNTT, counted: bool, x: Tensor) -> Tensor:
    T = checks.sequence("x", x).shape[0]
    if layer.time_steps < T:
        raise ValueError(f"BNTT was made for {layer.time_steps} time steps and got a sequence of {T}")
    check_features("BNTT", x[0], layer.features)
    running = layer.running_mean[:T], layer.running_var[:T]
    return _normalise(x, (1, *range(3, x.dim())), layer.weight[:T], None, running, layer.momentum, layer.eps, counted)


def _bntt_step(layer: BNTT, counted: bool, x_t: Tensor, state: int) -> tuple[Tensor, int]:
    check_features("BNTT", x_t, layer.features)
    running = layer.running_mean[state], layer.running_var[state]
    dims = (0, *range(2, x_t.dim()))
    y = _normalise(x_t, dims, layer.weight[state], None, running, layer.momentum, layer.eps, counted)
    return y, state + 1


def _over_batch(layer: TEBN, counted: bool, x: Tensor) -> Tensor:
    check_features("TEBN", x, layer.features)
    running = layer.running_mean, layer.running_var
    dims = (0, *range(2, x.dim()))
    return _normalise(x, dims, layer.weight, layer.bias, running, layer.momentum, layer.eps, counted)


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, counted: bool, x: Tensor) -> Tensor:
    check_features(type(layer).__name__, x, layer.num_features)
    weight: Tensor | None = layer.weight
    if weight is None:
        weight = torch.ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if isinstance(layer, TDBN):
        weight = weight * (layer.alpha * layer.threshold)
    momentum, running = layer.momentum, None
    if layer.running_mean is not None and layer.running_var is not None:
        running = layer.running_mean, layer.running_var
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            momentum = 1.0 / float(layer.num_batches_tracked) if momentum is None else momentum
    dims = (0, *range(2, x.dim()))
    return _normalise(x, dims, weight, layer.bias, running, momentum or 0.0, layer.eps, counted)


def _normalise(
    x: Tensor,
    dims: tuple[int, ...],
    weight: Tensor,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    counted: bool,
) -> Tensor:
    """Over ``dims``, of all processes; ``weight`` and ``running`` have the other axes."""
    dtype, x = x.dtype, x.to(weight.dtype)
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
    number = torch.tensor(float(x.numel() // weight.numel() * counted), dtype=torch.float64, device=x.device)
    dist.all_reduce(number)
    n = float(number)
    if n <= 1:
        raise ValueError("batch normalisation needs more than one value a channel in training: use larger batches")
    mean = _Sum.apply((x * counted).sum(dims, keepdim=True)) / n  # type: ignore[no-untyped-call]
    centred = x - mean
    var = _Sum.apply((centred.square() * counted).sum(dims, keepdim=True)) / n  # type: ignore[no-untyped-call]
    if running is not None:
        with torch.no_grad():
            running[0].lerp_(mean.view_as(running[0]).to(running[0].dtype), momentum)
            running[1].lerp_((var * (n / (n - 1))).view_as(running[1]).to(running[1].dtype), momentum)
    y: Tensor = centred * (var + eps).rsqrt() * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)
    return y.to(dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes. Each of them has its own share of the loss, so the gradient is the sum too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad
