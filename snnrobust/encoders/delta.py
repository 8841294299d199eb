"""Spikes where a sequence changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
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

    The declared gradient has the ``ATan(2)`` surrogate :math:`g(u) = 1 / (1 + (\pi u)^2)` at each threshold,

    .. math:: \partial s_t / \partial d_t = [g((d_t - \theta) / \theta) + g((d_t + \theta) / \theta)] / \theta,

    of which ON has the first term and OFF minus the second. (That of :math:`d_t / \theta` would add up to nothing over time
    wherever the gradient at the output is constant, and leave an attack with the last frame.)

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

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return self._spikes(torch.stack(list(islice(self._deviations(x), start, start + steps))))

    def _stream(self, x: Tensor) -> Iterator[Tensor]:
        for d in self._deviations(x):
            yield self._spikes(d[None])[0]

    def _deviations(self, x: Tensor) -> Iterator[Tensor]:
        """What is compared with the threshold, ``[B, *]`` for each step."""
        frames = x.unbind(1)
        for x_t, before in zip(frames, (self._before(frames[0]), *frames), strict=False):
            yield x_t - before

    def _before(self, first: Tensor) -> Tensor:
        return first if self.before == "first" else torch.zeros_like(first)

    def _spikes(self, d: Tensor) -> Tensor:
        on, off = d >= self.threshold, d <= -self.threshold
        up, down = (torch.atan((d / self.threshold + shift) * math.pi) / math.pi for shift in (-1.0, 1.0))
        if self.polarity == "signed":
            return straight_through(up + down, on.to(torch.int8) - off.to(torch.int8))
        return straight_through(torch.cat([up, -down], 2), torch.cat([on, off], 2))
