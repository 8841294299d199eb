"""Devices are not what they were programmed to: variation from cell to cell, and cells that are stuck."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["stick", "vary"]


def vary(g: Tensor, variation: float, distribution: str, z: Tensor) -> Tensor:
    r"""Conductances of real devices, of mean ``g`` and standard deviation ``variation * g``.

    .. math:: \text{lognormal: } G \, e^{s z - s^2 / 2}, \; s^2 = \ln(1 + v^2); \qquad \text{gaussian: } \max(G (1 + v z), 0)

    The clamp of the Gaussian one moves its mean only where v is large (by less than 1e-4 of G for v <= 0.3).

    Args:
        g: Siemens, any shape.
        variation: v >= 0.
        distribution: ``"lognormal"`` or ``"gaussian"``.
        z: Standard normal, shape of ``g``.
    """
    z = z.to(g.dtype)
    if distribution == "lognormal":
        s2 = math.log1p(variation**2)
        return g * torch.exp(math.sqrt(s2) * z - s2 / 2)
    return (g * (1 + variation * z)).clamp_min(0.0)


def stick(g: Tensor, stuck_on: float, stuck_off: float, low: float, high: float, u: Tensor) -> Tensor:
    """Cells where ``u < stuck_on`` are stuck at ``high``, those where ``u >= 1 - stuck_off`` at ``low``; u in [0, 1)."""
    g = torch.where(u < stuck_on, high, g)
    return torch.where(u >= 1 - stuck_off, low, g)
