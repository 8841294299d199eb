"""Uniform integer quantization."""

from __future__ import annotations

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import Array, Backend

__all__ = ["Uniform", "uniform"]


def uniform(w: Tensor, bits: int) -> Tensor:
    r"""Symmetric k-bit quantization of a tensor, scaled to its largest magnitude.

    .. math:: q = \operatorname{round}(w / \Delta) \, \Delta, \quad \Delta = \max|w| \,/\, (2^{k-1} - 1)

    Ties round to even. The :math:`2^k - 1` levels contain zero; ``|q - w|`` is at most :math:`\Delta / 2`.

    Args:
        w: Any shape, finite.
        bits: k, 2 to 16.
    """
    if not 2 <= checks.count("bits", bits) <= 16:
        raise ValueError(f"bits must be in 2..16, got {bits}: one sign bit and at least one more")
    if not isinstance(w, Tensor) or not w.is_floating_point() or w.numel() == 0:
        raise TypeError("w must be a floating tensor with at least one element")
    exact = w.double()  # a step that underflows in float32 would make NaN of 0 / 0
    largest = exact.abs().amax()
    if not torch.isfinite(largest):
        raise ValueError("w contains NaN or infinity: it cannot be quantized")
    levels = 2 ** (bits - 1) - 1
    scale = largest / levels
    if scale == 0:
        return w.clone()
    codes: Tensor = (exact / scale).round_().clamp_(-levels, levels)
    return codes.div_(levels).mul_(largest).to(w.dtype)  # the largest weight stays as it is, to the bit


class Uniform(Backend):
    """Weights stored as symmetric integers of ``bits`` bits, one scale a layer; see :func:`uniform`.

    Biases and activations keep their precision. The gradient with respect to the input is exact for the stored weights.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        uniform(torch.zeros(1), bits)
        self.bits = bits

    def program(self, array: Array) -> Array:
        return array.change(uniform(array.weight, self.bits), self)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
