"""What a synaptic layer computes, apart from its weights: a product, and the same product as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Operation"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Operation:
    """``nn.Linear`` or ``nn.Conv1d/2d/3d`` without weights: ``operation(x, weight, bias)`` on a batch ``[N, *]``.

    Args:
        kernel: Sizes of the kernel; none for ``nn.Linear``.
        stride, dilation: As many.
        pads: What ``F.pad`` takes: two for each dimension, the last dimension first.
        groups: Of the channels.
        padding_mode: As ``nn.Conv2d`` names it.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, layer: nn.Module) -> Operation:
        """That of an ``nn.Linear`` or ``nn.Conv*``."""
        if not isinstance(layer, nn.modules.conv._ConvNd):
            return cls()
        pads = tuple(layer._reversed_padding_repeated_twice)
        return cls(layer.kernel_size, layer.stride, layer.dilation, pads, layer.groups, layer.padding_mode)

    @property
    def planar(self) -> bool:
        """Whether it is a convolution of images."""
        return len(self.kernel) == 2

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.kernel:
            return F.linear(x, weight, bias)
        before, after = self.pads[::-2], self.pads[-2::-2]
        inside: tuple[int, ...] = tuple(before)
        if self.padding_mode != "zeros" or before != after:
            x, inside = self._padded(x), (0,) * len(self.kernel)
        convolution = _CONVOLUTIONS[len(self.kernel)]
        return convolution(x, weight, bias, self.stride, inside, self.dilation, self.groups)

    def _padded(self, x: Tensor) -> Tensor:
        if not any(self.pads):
            return x
        return F.pad(x, self.pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as an array stores it, rows of inputs and columns of outputs: ``[groups, K, out / groups]``."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).mT

    def unmatrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`matrix`, for a weight of that shape."""
        return matrix.mT.reshape(shape)

    def patches(self, x: Tensor) -> Tensor:
        """What the K rows of each group get at each of L output positions: ``[N, *] -> [N, groups, L, K]``."""
        if not self.kernel:
            return x.reshape(x.shape[0], 1, -1, x.shape[-1])
        x, d = self._padded(x), len(self.kernel)
        for i, (k, s, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, gap * (k - 1) + 1, s)[..., ::gap]
        x = x.unflatten(1, (self.groups, -1))  # [N, groups, C, *positions, *kernel]
        x = x.permute(0, 1, *range(3, 3 + d), 2, *range(3 + d, 3 + 2 * d))
        return x.reshape(x.shape[0], self.groups, prod(x.shape[2 : 2 + d]), -1)

    def assemble(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's output for ``x`` ``[N, *]``, from the products of its patches ``[N, groups, L, out / groups]``."""
        if not self.kernel:
            return y.reshape(*x.shape[:-1], y.shape[-1])
        positions = []
        for i, (k, s, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            last = 2 * (len(self.kernel) - 1 - i)
            size = x.shape[2 + i] + self.pads[last] + self.pads[last + 1]
            positions.append((size - gap * (k - 1) - 1) // s + 1)
        return y.mT.reshape(y.shape[0], -1, *positions)
