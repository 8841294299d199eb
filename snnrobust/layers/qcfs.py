"""QCFS: an activation of ordinary networks that is what spiking neurons will make of it in a few time steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks

__all__ = ["QCFS"]


class QCFS(nn.Module):
    r"""Quantization, clip, floor, shift: a ReLU with ``levels`` steps up to a threshold that is learnt.

    .. math:: y = \frac{\lambda}{L} \operatorname{clip}\big(\lfloor x L / \lambda + 1/2 \rfloor, 0, L\big)

    That is the rate, times :math:`\lambda`, of an integrate-and-fire neuron (soft reset, threshold :math:`\lambda`, charged to
    :math:`\lambda / 2` at the start) after L steps of a constant input x. The floor has the gradient 1.

    Args:
        levels: L.
        threshold: Where :math:`\lambda` starts, > 0. Its logarithm is what is learnt, so that it stays positive (the paper
            learns it directly).

    Source: Bu et al. 2022, "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks".
    """

    def __init__(self, levels: int = 8, threshold: float = 4.0) -> None:
        super().__init__()
        self.levels = checks.count("levels", levels)
        self.start = checks.number("threshold", threshold, 0.0, exclusive_low=True)
        self.log_threshold = nn.Parameter(torch.tensor(math.log(self.start)))

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that are no attributes: where the learnt value started."""
        return {"threshold": self.start}

    @property
    def threshold(self) -> Tensor:
        return self.log_threshold.exp()

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.threshold.to(x.dtype)
        scaled = x * (self.levels / threshold) + 0.5
        floored = scaled + (scaled.floor() - scaled).detach()
        return floored.clamp(0, self.levels) * (threshold / self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, threshold={self.start}"
