"""Gradients by the input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["InputFeedback", "gradient_of", "sum_of_gradients"]

InputFeedback = Literal["random", "transpose"]
"""How an error reaches the input through the first layer: by fixed random weights, or by the layer's own."""


def gradient_of(value: Tensor, x: Tensor, error: Tensor | None = None) -> Tensor:
    """The gradient of ``value`` (of ``error * value``) by ``x``.

    Raises:
        ValueError: there is no path.
    """
    gradient = torch.autograd.grad(value, x, error, allow_unused=True)[0] if value.requires_grad else None
    return _demand(gradient)


def sum_of_gradients(values: Iterable[Tensor], x: Tensor) -> Tensor:
    """The gradients by ``x`` of values that may share what is before them, each taken when it comes.

    Raises:
        ValueError: none has a path.
    """
    total: Tensor | None = None
    for value in values:
        if value.requires_grad:
            (found,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
            if found is not None:
                total = found if total is None else total + found
    return _demand(total)


def _demand(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError("the error does not reach x through any differentiable path: an encoder or a layer cuts it")
    return gradient
