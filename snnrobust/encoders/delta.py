"""Spikes where a sequence changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import FINITE, Encoder
from snnrobust.encoders.frames import frame_shape
from snnrobust.encoders.straight_through import straight_through

__all__ = ["Delta"]

Before = Literal["zero", "first"]
Polarity = Literal["signed", "channels"]


class Delta(Encoder):
    r"""Changes from frame to frame: :math:`s_t = \mathrm{sign}(d_t) [|d_t| \ge \theta]` with :math:`d_t = x_t - x_{t-1}`.

    The declared gradient is straight-through, that of :math:`d_t / \theta`: :math:`\partial s_t / \partial x_t = 1 / \theta`,
    :math:`\partial s_t / \partial x_{t-1} = -1 / \theta`. Of two channels, ON has it where :math:`d_t > 0`, OFF with the opposite
    sign where :math:`d_t < 0`, and each has half of it where :math:`d_t = 0`.

    Args:
        time_steps: T, the frames of each sample, ``[B, T, *]``.
        threshold: :math:`\theta` > 0, in units of ``x``.
        before: :math:`x_{-1}`: ``"zero"``, so that the first frame itself is sent, or ``"first"``, the first frame, so that only
            what changes is.
        polarity: ``"signed"``: -1, 0 or 1, ``[T, B, *]``. ``"channels"``: 0 or 1, and twice the channels,
            ``[T, B, C, *] -> [T, B, 2 C, *]``, first all ON, then all OFF.

    Raises:
        ValueError: a value that is not finite, or another number of frames.

    Source: the temporal contrast of event cameras (Lichtsteiner, Posch and Delbruck 2008) on frames, as in snnTorch.
    """

    bounds = FINITE
    truncatable = False

    def __init__(
        self, time_steps: int, threshold: float = 0.1, before: Before = "zero", polarity: Polarity = "signed"
    ) -> None:
        super().__init__(time_steps)
        self.threshold = checks.number("threshold", threshold, 0.0, exclusive_low=True)
        self.before = checks.choice("before", before, get_args(Before))
        self.polarity = checks.choice("polarity", polarity, get_args(Polarity))

    @property
    def stochastic(self) -> bool:
        return False

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        frame = frame_shape(shape, self.time_steps)
        if self.polarity == "signed":
            return frame
        if not frame:
            raise ValueError(f"polarity='channels' needs samples [T, C, ...], got the shape {tuple(shape)}")
        return (2 * frame[0], *frame[1:])

    def encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        frames = x.unbind(1)
        past = (self._before(frames), *frames)
        change = torch.stack(frames[start : start + steps]) - torch.stack(past[start : start + steps])
        d = self._deviation(frames, start, steps, change)
        value, on, off = change / self.threshold, d >= self.threshold, d <= -self.threshold
        if self.polarity == "signed":
            return straight_through(value, on.to(torch.int8) - off.to(torch.int8))
        rising = (d.sign() + 1.0) / 2.0
        return straight_through(torch.cat([value * rising, value * (rising - 1.0)], 2), torch.cat([on, off], 2))

    def _before(self, frames: Sequence[Tensor]) -> Tensor:
        return frames[0] if self.before == "first" else torch.zeros_like(frames[0])

    def _deviation(self, frames: Sequence[Tensor], start: int, steps: int, change: Tensor) -> Tensor:
        """What is compared with the threshold, ``[steps, B, *]``, without gradient."""
        return change.detach()
