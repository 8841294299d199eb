"""Device-to-device variation of stored weights: a random part of each device and a part that a layer or a column shares."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from snnrobust import checks, draws
from snnrobust.hardware.backend import Array, Backend, Drawn

__all__ = ["Distribution", "Shared", "WeightVariation", "vary"]

Distribution = Literal["lognormal", "gaussian"]
Shared = Literal["layer", "column"]
"""What has the systematic part in common: all weights of a layer, or those of one output (a column of the array)."""


def vary(w: Tensor, xi: Tensor, sigma: float, distribution: Distribution = "lognormal") -> Tensor:
    r"""Weights that devices store, given standard normal draws :math:`\xi` of the shape of ``w``.

    .. math:: \tilde w = w \, e^{\sigma \xi - \sigma^2 / 2} \quad \text{(lognormal)}, \qquad
        \tilde w = w + \sigma \max|w| \, \xi \quad \text{(gaussian)}

    Both keep the mean. The variance of the first is :math:`w^2 (e^{\sigma^2} - 1)`, its sign that of ``w``, and zeros stay zero;
    that of the second is :math:`\sigma^2 \max|w|^2`, for every weight alike.
    """
    if distribution == "lognormal":
        return w * torch.exp(sigma * xi - 0.5 * sigma * sigma)
    return w + sigma * w.abs().amax() * xi


class WeightVariation(Backend):
    r"""Weights as :func:`vary` stores them, with

    .. math:: \xi = \sqrt{1 - \rho} \, \xi_\text{device} + \sqrt{\rho} \, \xi_\text{shared}

    so that each weight has the same distribution whatever :math:`\rho` is. The shared draw is one for each layer, or one for each
    column; layers are independent. In the lognormal case it is a gain of the whole layer, :math:`e^{\sigma \sqrt{\rho} \xi}`,
    which a gain behind the layer can undo; the device part cannot be undone that way.

    Drawn once a chip, when it is programmed. The gradient with respect to the input is exact. Biases are kept digital.

    Args:
        sigma: :math:`\sigma \ge 0`; of the logarithm (lognormal), or relative to the largest magnitude of the layer (gaussian).
            No published chip is behind any value: measure yours.
        systematic: Share :math:`\rho` in [0, 1] of the variance of :math:`\xi` that is shared.
        distribution: ``"lognormal"`` or ``"gaussian"``.
        shared: ``"layer"`` or ``"column"``: all weights of one output, dimension 0 of the weight.

    Raises:
        ValueError: an argument out of range; weights that are not finite.
    """

    drawn: Drawn | None = "chip"

    def __init__(
        self,
        sigma: float,
        systematic: float = 0.0,
        distribution: Distribution = "lognormal",
        shared: Shared = "layer",
    ) -> None:
        super().__init__()
        self.sigma = checks.number("sigma", sigma, 0.0)
        self.systematic = checks.number("systematic", systematic, 0.0, 1.0)
        self.distribution: Distribution = checks.choice("distribution", distribution, get_args(Distribution))  # type: ignore[assignment]
        self.shared: Shared = checks.choice("shared", shared, get_args(Shared))  # type: ignore[assignment]

    def program(self, array: Array) -> Array:
        w = array.weight
        if not w.isfinite().all():
            raise ValueError(
                "the weight contains NaN or infinity, which no device stores: repair it before deploy, or leave the layer out "
                "with layers=[...]"
            )
        if self.sigma > 0 and w.numel() > 0:
            array.change(vary(w, self._xi(w), self.sigma, self.distribution), self)
        return array

    def _xi(self, w: Tensor) -> Tensor:
        rho = self.systematic
        xi = math.sqrt(1.0 - rho) * self._pattern(w, w.shape, 0)
        if rho > 0:
            shape = (1,) * w.dim() if self.shared == "layer" else (w.shape[0], *[1] * (w.dim() - 1))
            xi = xi + math.sqrt(rho) * self._pattern(w, shape, 1)
        return xi

    def _pattern(self, w: Tensor, shape: tuple[int, ...], part: int) -> Tensor:
        """Draws of this chip; each part is a step of its stream."""
        one = torch.zeros(1, dtype=torch.int64, device=w.device)
        xi: Tensor = draws.normal(self.chip_key(w.device), one, (1, 1, *shape), part)[0, 0]
        return xi.to(w.dtype)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, systematic={self.systematic}, distribution={self.distribution!r}, shared={self.shared!r}"
