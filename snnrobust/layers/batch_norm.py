"""What the layers of batch normalisation have in common."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from snnrobust import checks

__all__ = ["batch_norm", "check_features", "check_steps"]


def batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    r"""``F.batch_norm`` over ``[N, C, *]``, with roundings in eval mode that depend on neither batch size nor layout.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    The library's kernels do not promise that, and a stream has to equal the whole sequence. Computed in the dtype of the
    statistics; the output has that of ``x``.
    """
    if training:
        return F.batch_norm(x.to(mean.dtype), mean, var, weight, bias, True, momentum, eps).to(x.dtype)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    y = (x - mean.view(shape)) * (weight * (var + eps).rsqrt()).view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def check_features(layer: str, x: Tensor, features: int) -> None:
    """``x`` is a floating batch ``[B, C, *]`` of ``features`` channels and at most three further axes."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{layer} expects a floating tensor, got {given}")
    if not 2 <= x.dim() <= 5 or x.shape[1] != features:
        raise ValueError(f"{layer} expects {features} channels in [B, C, ...], got shape {tuple(x.shape)}")


def check_steps(layer: str, steps: int, time_steps: int) -> int:
    """``steps`` is one of the lengths to which a layer or model of ``time_steps`` steps can be cut."""
    if checks.count("steps", steps) > time_steps:
        raise ValueError(f"steps must be in 1..{time_steps}, the time steps that {layer} was made for, got {steps}")
    return steps
