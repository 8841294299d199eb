"""An image, read row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from snnrobust.encoders.encoder import Encoder

__all__ = ["Rows"]


class Rows(Encoder):
    """Step t is row t of the image with all its channels, ``[B, C, H, W] -> [H, B, C * W]``. Its gradient is exact.

    Args:
        time_steps: T = H, the height of the images.

    Raises:
        ValueError: a value outside [0, 1], or images of another height.

    Source: the sequential image tasks of Le, Jaitly and Hinton 2015, a row instead of a pixel at a time.
    """

    truncatable = False

    @property
    def stochastic(self) -> bool:
        return False

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[1] != self.time_steps:
            raise ValueError(
                f"time_steps is {self.time_steps}, but a sample has the shape {tuple(shape)}: "
                f"it must be an image [C, H, W] of height H = {self.time_steps}"
            )
        return (shape[0] * shape[2],)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return x[:, :, start : start + steps].permute(2, 0, 1, 3).flatten(2)

    def _stream(self, x: Tensor) -> Iterator[Tensor]:
        return (row.flatten(1) for row in x.unbind(2))
