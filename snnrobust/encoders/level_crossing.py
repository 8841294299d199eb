"""Send-on-delta: spikes where a sequence leaves what has been sent of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from snnrobust.encoders.delta import Delta

__all__ = ["LevelCrossing"]


class LevelCrossing(Delta):
    r"""Level crossings:

    .. math:: d_t = x_t - r_{t-1}, \quad s_t = \mathrm{sign}(d_t) [|d_t| \ge \theta], \quad r_t = r_{t-1} + \theta s_t.

    :math:`r_t` is what a receiver that adds up the spikes knows. It follows by one level a step, so slow changes are not lost,
    as they are in :class:`Delta`, and fast ones arrive late. Step t replays the steps before it.

    The declared :math:`\partial s_t / \partial d_t` is :class:`Delta`'s; spikes in :math:`r` count as constants.

    Args:
        time_steps: T, the frames of each sample, ``[B, T, *]``.
        threshold: :math:`\theta` > 0, the distance of two levels, in units of ``x``.
        before: :math:`r_{-1}`: ``"zero"``, or ``"first"``, the first frame.
        polarity: ``"signed"`` or ``"channels"``, as in :class:`Delta`.

    Raises:
        ValueError: a value that is not finite, or another number of frames.

    Source: send-on-delta, Miskowicz 2006; the step-forward encoding of Petro, Kasabov and Kiss 2020.
    """

    def _deviations(self, x: Tensor) -> Iterator[Tensor]:
        frames = x.unbind(1)
        reference = self._before(frames[0])
        for x_t in frames:
            d = x_t - reference
            yield d
            reference = reference + self.threshold * ((d >= self.threshold).to(d) - (d <= -self.threshold).to(d))
