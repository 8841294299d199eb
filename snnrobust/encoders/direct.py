"""Direct encoding: the image itself at every step."""

from __future__ import annotations

from torch import Tensor

from snnrobust.encoders.encoder import Encoder, repeat

__all__ = ["Direct"]


class Direct(Encoder):
    """The analog input at every time step; the first spiking layer does the encoding. Its gradient is exact.

    Source: Rueckauer et al. 2017 (constant input current).
    """

    @property
    def stochastic(self) -> bool:
        return False

    def image(self, x: Tensor) -> Tensor:
        """What every step shows, ``[B, *]``: ``x``, checked."""
        return self._checked(x)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return repeat(x, steps)
