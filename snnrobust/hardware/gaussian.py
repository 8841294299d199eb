"""Gaussian noise on every product."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import Backend, Drawn
from snnrobust.kernels.noise import gaussian_noise

__all__ = ["GaussianNoise"]


class GaussianNoise(Backend):
    r"""Additive and multiplicative Gaussian noise on the product :math:`y = Wx + b`.

    .. math:: \tilde y = y \, (1 + \sigma_m \xi) + \sigma_a \xi', \quad \xi, \xi' \sim N(0, 1)

    elementwise and independent. The multiplicative signal-to-noise ratio is :math:`-20 \log_{10} \sigma_m` dB. Its gradient
    is exact.

    Args:
        multiplicative: :math:`\sigma_m \ge 0`, relative to each product.
        additive: :math:`\sigma_a \ge 0`, in units of the product: meaningful where signals are normalised.
        drawn: ``"step"`` (every product of every time step), ``"inference"`` (once a forward, equal at all steps) or
            ``"chip"`` (a fixed pattern, equal for all inputs).

    Source: Qin and Vucinic 2018, "Training recurrent neural networks against noisy computations during inference", and its
    companion for convolutional networks (arXiv:1811.10649).
    """

    def __init__(self, multiplicative: float = 0.0, additive: float = 0.0, drawn: Drawn = "step") -> None:
        super().__init__()
        self.multiplicative = checks.number("multiplicative", multiplicative, 0.0)
        self.additive = checks.number("additive", additive, 0.0)
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]

    @property
    def stochastic(self) -> bool:
        return self.drawn != "chip" and (self.multiplicative > 0 or self.additive > 0)

    def read(self, y: Tensor, start: int) -> Tensor:
        if self.multiplicative == 0 and self.additive == 0:
            return y
        return gaussian_noise(y, *self.source(y, start, self.drawn), self.multiplicative, self.additive)

    def extra_repr(self) -> str:
        return f"multiplicative={self.multiplicative}, additive={self.additive}, drawn={self.drawn!r}"
