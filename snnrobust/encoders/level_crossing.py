"""Send-on-delta: spikes where a sequence leaves what has been sent of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnrobust.encoders.delta import Delta

__all__ = ["LevelCrossing"]


class LevelCrossing(Delta):
    r"""Level crossings:

    .. math:: d_t = x_t - r_{t-1}, \quad s_t = \mathrm{sign}(d_t) [|d_t| \ge \theta], \quad r_t = r_{t-1} + \theta s_t.

    :math:`r_t` is what a receiver that adds up the spikes knows. It follows by one level a step, so slow changes are not lost,
    as they are in :class:`Delta`, and fast ones arrive late. Step t replays the steps before it.

    The declared gradient is :class:`Delta`'s. It is the straight-through one: :math:`\partial s_t / \partial d_t = 1 / \theta`
    makes :math:`\partial r_t / \partial x_t = 1`, so that :math:`\partial s_t / \partial x_{t-1} = -1 / \theta` and nothing
    earlier counts.

    Args:
        time_steps: T, the frames of each sample, ``[B, T, *]``.
        threshold: :math:`\theta` > 0, the distance of two levels, in units of ``x``.
        before: :math:`r_{-1}`: ``"zero"``, or ``"first"``, the first frame.
        polarity: ``"signed"`` or ``"channels"``, as in :class:`Delta`.

    Raises:
        ValueError: a value that is not finite, or another number of frames.

    Source: send-on-delta, Miskowicz 2006; the step-forward encoding of Petro, Kasabov and Kiss 2020.
    """

    def _deviation(self, frames: Sequence[Tensor], start: int, steps: int, change: Tensor) -> Tensor:
        with torch.no_grad():
            reference, deviations = self._before(frames), []
            for x_t in frames[: start + steps]:
                d = x_t - reference
                reference = reference + self.threshold * ((d >= self.threshold).to(d) - (d <= -self.threshold).to(d))
                deviations.append(d)
            return torch.stack(deviations[start:])
