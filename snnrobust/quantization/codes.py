"""Weights as the integers that a memory stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.weights import weight_quantizer

__all__ = ["WeightCodes", "weight_codes"]


@dataclass(frozen=True, eq=False)
class WeightCodes:
    r"""A quantized weight: which of its levels each number is.

    .. math:: w = s \, (L_i - z)

    Args:
        recipe: Whose levels L are.
        index: i, int32, shape of the weight; 0 is the lowest level.
        step: s, floating; broadcasts over the weight.
        zero: z, an integer as a float, like ``step``; None for 0.
    """

    recipe: Quantizer
    index: Tensor
    step: Tensor
    zero: Tensor | None

    @classmethod
    def of(cls, recipe: Quantizer, w: Tensor, step: Tensor, zero: Tensor | None) -> Self:
        """Those of the levels nearest to ``w``, by the arithmetic of the quantizer."""
        u = w.detach() / step
        if zero is not None:
            u += zero
        values = recipe.levels.values().to(u)
        index = torch.searchsorted(values, recipe.levels.nearest(u).nan_to_num_(0.0)).clamp_(max=len(values) - 1)
        return cls(
            recipe, index.to(torch.int32), step.detach().clone(), None if zero is None else zero.detach().clone()
        )

    def values(self) -> Tensor:
        """The weight, in the dtype of ``step``; to the bit that of the quantizer, but for the sign of zeros."""
        q = self.recipe.levels.values().to(self.step)[self.index.long()]
        if self.zero is not None:
            q -= self.zero
        q *= self.step
        return torch.where(self.step > 0, q, torch.zeros_like(q))

    def integers(self) -> tuple[Tensor, Tensor] | None:
        r"""int8 codes c of the shape of the weight, and float32 scales with :math:`w = \text{scale} \cdot c`.

        None where the weight has no such codes: levels that are no multiples of the smallest, or codes beyond -128..127.
        """
        values = self.recipe.levels.values().to(self.index.device)
        unit = values.abs()[values != 0].min()
        multiples = values / unit
        if not bool((multiples == multiples.round()).all()):
            return None
        codes = multiples[self.index.long()]
        if self.zero is not None:
            codes = codes - self.zero / unit
        codes = torch.where(self.step > 0, codes, 0.0)
        if not bool(((codes >= -128) & (codes <= 127)).all()):
            return None
        return codes.to(torch.int8), (self.step.double() * unit).float()


@torch.no_grad()
def weight_codes(layer: nn.Module) -> WeightCodes:
    """The integers of a layer whose weight is quantized.

    Raises:
        TypeError: its weight is not quantized.
        ValueError: it is still relaxed (``theta`` below 1), so that it has no codes yet.
    """
    quantizer = weight_quantizer(checks.module("layer", layer))
    if quantizer is None:
        raise TypeError(
            f"{type(layer).__name__} has no quantized weight: use quantization.quantize(model, weights=...)"
        )
    theta = float(quantizer.theta)
    if theta != 1.0:
        raise ValueError(f"the weight is relaxed (theta = {theta:g}) and has no codes yet: relax(1.0) first")
    w = layer.parametrizations["weight"].original  # type: ignore[union-attr, index]
    return WeightCodes.of(quantizer.recipe, w, *quantizer.grid(w))
