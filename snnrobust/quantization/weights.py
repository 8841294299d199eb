"""Quantized weights of a layer that is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnrobust import checks
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.straight import lsq, straight_through

__all__ = ["WeightQuantizer", "quantize_weight", "weight_quantizer"]


class WeightQuantizer(nn.Module):
    r"""A parametrization of a layer's ``weight``: what the layer multiplies with is quantized, what is learnt is not.

    .. math:: w = (1 - \theta) \, y + \theta \, q(y), \quad \partial w / \partial y := 1

    Unless the step is learned, it is taken from y at each call.

    Args:
        recipe: How; its gradient is the identity unless it says ``"clipped"``.
        weight: Where a learned step begins.

    Attributes:
        theta: :math:`\theta` in [0, 1]; 1 is quantized, less is relaxed.
    """

    theta: Tensor
    step: nn.Parameter | None

    def __init__(self, recipe: Quantizer, weight: Tensor) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("theta", torch.ones((), dtype=weight.dtype, device=weight.device))
        self.step = nn.Parameter(recipe.grid(weight)[0].clone()) if recipe.scale == "learned" else None

    def relax(self, theta: float) -> None:
        """Set ``theta``."""
        self.theta.fill_(checks.number("theta", theta, 0.0, 1.0))

    def grid(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step and the zero point for ``y`` as it is."""
        return self.recipe.grid(y) if self.step is None else (positive(self.step), None)

    def forward(self, y: Tensor) -> Tensor:
        if y.is_meta:
            return y  # a rehearsal of shapes
        if self.step is not None:
            q = lsq(y, positive(self.step), self.recipe.levels, lsq_scale(self.recipe, y.numel() // self.step.numel()))
        else:
            step, zero = self.recipe.grid(y)
            q = straight_through(y, step, zero, self.recipe.levels, self.recipe.gradient == "clipped")
        return q if self._hard() else y + self.theta * (q - y)

    def _hard(self) -> bool:
        return torch.compiler.is_compiling() or float(self.theta) == 1.0

    def extra_repr(self) -> str:
        return f"{self.recipe}, theta={'?' if self.theta.is_meta else f'{float(self.theta):g}'}"


def positive(step: Tensor) -> Tensor:
    """A learned step that training may have taken to 0 or below."""
    return step.abs().clamp(min=torch.finfo(step.dtype).tiny)


def lsq_scale(recipe: Quantizer, n: int) -> float:
    """What LSQ multiplies the gradient of a step of ``n`` numbers with."""
    return 1 / math.sqrt(max(n, 1) * recipe.levels.high)


def quantize_weight(layer: nn.Module, recipe: Quantizer) -> nn.Module:
    """Quantize the weight of ``layer``, in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    # Unsafe leaves out a call of the layer's forward, which would be for nothing; shapes and dtypes stay.
    return parametrize.register_parametrization(layer, "weight", WeightQuantizer(recipe, weight.detach()), unsafe=True)


def weight_quantizer(layer: nn.Module) -> WeightQuantizer | None:
    """That of ``layer``; None if its weight is not quantized."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    found = [p for p in layer.parametrizations["weight"] if isinstance(p, WeightQuantizer)]  # type: ignore[index]
    return found[-1] if found else None
