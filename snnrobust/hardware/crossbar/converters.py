r"""Digital-to-analog and analog-to-digital converters: uniform, symmetric, saturating.

.. math:: Q_b(x; r) = \Delta \operatorname{round}(\operatorname{clip}(x, -r, r) / \Delta), \quad \Delta = r / (2^{b-1} - 1)

:math:`2^b - 1` levels, zero among them; ties round to even. The gradient is straight-through, that of the clip:

.. math:: \partial Q_b / \partial x := [\, |x| \le r \,]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["convert"]


class _Convert(torch.autograd.Function):
    """Keeps a byte an element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, largest: Tensor) -> Tensor:
        levels = 2 ** (bits - 1) - 1
        ctx.save_for_backward(x.abs() <= largest)
        # the range itself is a level, to the bit: divide by the levels first
        share = torch.where(largest > 0, x / torch.where(largest > 0, largest, 1.0), 0.0)
        codes: Tensor = share.clamp_(-1.0, 1.0).mul_(levels).round_()
        return codes.div_(levels).mul_(largest)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def convert(x: Tensor, bits: int, largest: Tensor) -> Tensor:
    """:math:`Q_b(x; r)` with the gradient of the clip. ``largest`` is r >= 0, broadcast over ``x``; r = 0 gives zeros.

    NaN stays NaN.
    """
    return _Convert.apply(x, bits, largest.to(x.dtype))  # type: ignore[no-any-return,no-untyped-call]
