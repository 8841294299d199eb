"""The product of an array whose devices are noisy at every read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnrobust import draws
from snnrobust.hardware.backend import Array, Backend, Drawn

__all__ = ["NoisyArray", "plain"]

CHUNK = 1 << 24
"""Weights of samples that are drawn at a time: 64 MB."""


class NoisyArray(Array):
    r"""Weights with independent Gaussian noise of their own at each read: ``[T, B, *] -> [T, B, *]``.

    ``drawn="step"``, every weight anew at each read, that is for each sample, time step and output position. The noise of an
    output is then exactly one Gaussian number, so two products do instead of a noisy weight for each read:

    .. math:: y_j = \sum_k W_{jk} x_k + b_j + \xi_j \sqrt{\textstyle\sum_k \sigma_{jk}^2 x_k^2}, \quad \xi_j \sim N(0, 1)

    ``drawn="inference"``, every weight once a sample: all time steps and positions of a convolution see the same device, so
    their noises are correlated, and each sample has weights of its own, :math:`W + \sigma \xi^{(b)}`. Exact too, at the cost
    of drawing all weights for each sample; when streaming, at each step again.

    The gradient with respect to ``x`` is exact for the noise that was drawn (where all :math:`\sigma_{jk} x_k` are zero, the root
    has no derivative, and 0 is taken).

    Args:
        weight: Mean weights.
        operation: The layer's.
        variance: :math:`\sigma^2 \ge 0`, shape of ``weight``.
        drawn: ``"step"`` or ``"inference"``; noise that a chip draws once is part of its weights.
    """

    variance: Tensor

    def __init__(self, weight: Tensor, operation: Any, variance: Tensor, drawn: Drawn) -> None:
        super().__init__(weight, operation)
        self.register_buffer("variance", variance.detach().clone())
        self.drawn = drawn

    @property
    def stochastic(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None, start: int) -> Tensor:
        y = super().product(x, bias, start)
        if self.drawn == "inference":
            return y + self._of_samples(x)
        squares: Tensor = self.operation(x.flatten(0, 1).square(), self.variance, None)
        squares = squares.unflatten(0, x.shape[:2])
        xi = self.normal(y.shape, start, y.device).to(y.dtype)
        if not squares.requires_grad:
            return torch.addcmul(y, squares.clamp_(min=0.0).sqrt_(), xi)
        some = squares > 0  # the root of zero would make NaN of a gradient
        return torch.addcmul(y, torch.where(some, squares, 1.0).sqrt() * some, xi)

    def _of_samples(self, x: Tensor) -> Tensor:
        sigma = self.variance.sqrt()
        key, ids = self._state((1, x.shape[1]), x.device)
        rows = max(1, CHUNK // sigma.numel())
        noises = []
        for part, of in zip(x.split(rows, 1), ids.split(rows), strict=True):
            xi = draws.normal(key, of, (1, len(of), *sigma.shape))[0].to(x.dtype)
            product = torch.func.vmap(lambda a, w: self.operation(a, w, None), in_dims=(1, 0), out_dims=1)
            noises.append(product(part, sigma * xi))
        return torch.cat(noises, 1)


def plain(array: Array, backend: Backend) -> Array:
    """``array`` if it holds plain weights: what another kind does would be lost."""
    if type(array) is not Array:
        raise TypeError(
            f"{type(backend).__name__} programs plain weights, and a backend before it in the Chain has made a "
            f"{type(array).__name__} of the layer: take one of the two, quantizers excepted"
        )
    return array
