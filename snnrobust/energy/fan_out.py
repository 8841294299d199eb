"""How many synapses an input reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["fan_out"]

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(x, weight, bias) -> y`` for a batch, such as ``F.linear``; linear in ``x``."""


def fan_out(product: Product, weight: Tensor, shape: Sequence[int], *, zeros: bool = True) -> Tensor:
    r"""The weights that each input of one sample is multiplied by, int64 of ``shape``.

    .. math:: f = \partial \big( \textstyle\sum y \big) / \partial x, \quad y = \text{product}(x, 1)

    With all weights 1 each synapse adds 1 to the derivative of the sum of the outputs: a transposed convolution of ones, in
    which padding, stride, dilation and groups are the layer's own.

    Args:
        product: The layer's operation.
        weight: Only its shape counts, and where it is zero if they are left out.
        shape: Of one sample.
        zeros: Whether weights of zero are synapses.
    """
    ones = torch.ones_like(weight) if zeros else weight != 0
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(1, *shape, dtype=torch.float64, device=weight.device, requires_grad=True)
        y = product(x, ones.detach().double(), None)
        (synapses,) = torch.autograd.grad(y.sum(), x)
    return synapses[0].round().long()
