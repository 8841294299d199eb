"""Gaussian noise on every product."""

from __future__ import annotations

from math import log10
from typing import get_args

from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import At, Backend, Drawn
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
        at: ``"product"``; or ``"after_norm"``, where :math:`y` is what the normalisation makes of the product. A layer that no
            normalisation follows has its noise at the product.
        snr_db: In place of ``multiplicative``: :math:`\sigma_m = 10^{-\mathrm{snr} / 20}`. Additive noise has a ratio only
            with a signal: :func:`~snnrobust.hardware.signal_to_noise` measures it.

    Source: Qin and Vucinic 2018, "Noisy computations during inference: harmful or helpful?" (arXiv:1811.10649), where noise
    comes after the normalisation in convolutional networks, and at the product in others.
    """

    def __init__(
        self,
        multiplicative: float = 0.0,
        additive: float = 0.0,
        drawn: Drawn = "step",
        at: At = "product",
        snr_db: float | None = None,
    ) -> None:
        super().__init__()
        self.multiplicative = checks.number("multiplicative", multiplicative, 0.0)
        self.snr_db = None if snr_db is None else checks.number("snr_db", snr_db, -100.0, 100.0)
        if self.snr_db is not None and self.multiplicative:
            raise ValueError(
                f"give multiplicative or snr_db, not both: {self.snr_db} dB is {10 ** (-self.snr_db / 20)}"
            )
        self.additive = checks.number("additive", additive, 0.0)
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]
        self.at: At = checks.choice("at", at, get_args(At))  # type: ignore[assignment]

    @property
    def sigma(self) -> float:
        r""":math:`\sigma_m`, however it was given."""
        return self.multiplicative if self.snr_db is None else 10.0 ** (-self.snr_db / 20)

    @property
    def stochastic(self) -> bool:
        return self.drawn != "chip" and (self.sigma > 0 or self.additive > 0)

    def read(self, y: Tensor, start: int) -> Tensor:
        if self.sigma == 0 and self.additive == 0:
            return y
        return gaussian_noise(y, *self.source(y, start, self.drawn), self.sigma, self.additive)

    def extra_repr(self) -> str:
        ratio = f" ({-20 * log10(self.sigma):.1f} dB)" if self.sigma > 0 else ""
        where = "" if self.at == "product" else f", at={self.at!r}"
        return f"multiplicative={self.sigma:.4g}{ratio}, additive={self.additive}, drawn={self.drawn!r}{where}"
