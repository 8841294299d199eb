"""Spikes in the forward pass, a smooth quantity in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["straight_through"]


def straight_through(value: Tensor, spikes: Tensor) -> Tensor:
    r""":math:`s` forward, :math:`\partial s := \partial v` backward (Bengio et al. 2013).

    Args:
        value: :math:`v`, what the spikes stand for; only its gradient and its dtype are used.
        spikes: :math:`s`, bool or integers, shape of ``value``.

    Returns:
        ``spikes`` in the dtype of ``value``.
    """
    return _StraightThrough.apply(value, spikes)  # type: ignore[no-any-return, no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, spikes: Tensor) -> Tensor:
        return spikes.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
