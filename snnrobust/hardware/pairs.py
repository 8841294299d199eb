"""A signed weight as the difference of two conductances, of which one is zero."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_pair", "weight_unit"]


def weight_unit(weight: Tensor, g_max: float) -> Tensor:
    r"""The weight that one microsiemens stands for, :math:`\max|w| / g_{max}`: float64, a number.

    Raises:
        ValueError: ``weight`` is empty, or contains NaN or infinity.
    """
    if weight.numel() == 0:
        raise ValueError("a layer without weights cannot be programmed")
    unit = weight.detach().double().abs().amax() / g_max
    if not torch.isfinite(unit):
        raise ValueError(
            "a weight is NaN or infinite, and no device can hold it: train again or load another checkpoint"
        )
    return unit


def to_pair(weight: Tensor, g_max: float) -> Tensor:
    r"""Target conductances of a differential pair, float64 ``[2, *weight.shape]`` in microsiemens.

    .. math:: G^+ = \max(w, 0) / u, \quad G^- = \max(-w, 0) / u, \quad u = \max|w| / g_{max}, \quad w = u (G^+ - G^-)
    """
    unit = weight_unit(weight, g_max)
    scaled = torch.where(unit > 0, weight.detach().double() / torch.where(unit > 0, unit, 1.0), 0.0)
    return torch.stack((scaled, -scaled)).clamp_(0.0, g_max)
