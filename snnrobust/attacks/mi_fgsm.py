"""FGSM with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.bim import BIM
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.projection import unit
from snnrobust.draws import Stream

__all__ = ["MIFGSM"]


@dataclass(frozen=True)
class MIFGSM(BIM):
    r"""Momentum iterative FGSM: :class:`BIM` along a sum of all gradients so far.

    .. math::

        g_{i+1} = \mu g_i + \frac{\nabla_x L(f(x_i), y)}{\|\nabla_x L(f(x_i), y)\|_1}, \quad
        x_{i+1} = \Pi \big( x_i + \alpha \operatorname{sign} g_{i+1} \big)

    Args:
        decay: :math:`\mu`.

    The other arguments are those of :class:`BIM`.

    Source: Dong et al. 2018, "Boosting adversarial attacks with momentum".
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("decay", self.decay, 0.0)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        total = torch.zeros_like(x)

        def accumulate(gradient: Tensor) -> Tensor:
            total.mul_(self.decay).add_(unit(gradient, 1))
            return total

        return self._walk(model, x, goal, stream, accumulate)
