"""Sequences as they are, such as event frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from snnrobust.encoders.encoder import FINITE, Encoder

__all__ = ["Frames", "frame_shape"]


class Frames(Encoder):
    """Event frames or any other sequence, ``[B, T, *] -> [T, B, *]``, as they are; a view. Its gradient is exact.

    Args:
        time_steps: T, the frames of each sample.

    Raises:
        ValueError: a value that is not finite, or another number of frames.
    """

    bounds = FINITE
    truncatable = False

    @property
    def stochastic(self) -> bool:
        return False

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return frame_shape(shape, self.time_steps)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return x.movedim(1, 0)[start : start + steps]

    def _stream(self, x: Tensor) -> Iterator[Tensor]:
        return iter(x.unbind(1))


def frame_shape(shape: Sequence[int], time_steps: int) -> tuple[int, ...]:
    """The shape of one of the ``time_steps`` frames of a sample of ``shape``."""
    if not shape or shape[0] != time_steps:
        raise ValueError(
            f"time_steps is {time_steps}, but a sample has the shape {tuple(shape)}: "
            f"its first axis must be its {time_steps} frames"
        )
    return tuple(shape[1:])
