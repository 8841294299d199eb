"""Dropout whose masks have keys: they depend on no batch, and in a spiking network they stay for the whole sequence."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from snnrobust import checks
from snnrobust.draws import Stochastic
from snnrobust.temporal import Temporal

__all__ = ["Dropout", "OrdinaryDropout"]

Drawn = Literal["sequence", "step"]


class _Mask(Stochastic):
    """Keeps a value with probability ``1 - p`` and scales it by ``1 / (1 - p)``, while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = checks.number("p", p, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        return self.training and self.p > 0

    def mask(self, x: Tensor, start: int) -> Tensor:
        """``[T, B, *]``, of the time steps from ``start`` on."""
        kept = (self.uniform(x.shape, start, x.device) >= self.p).to(x.dtype)
        return kept / (1.0 - self.p) if self.p < 1 else kept


class Dropout(Temporal):
    r"""Dropout over a sequence ``[T, B, *]`` while training.

    .. math:: y_t = m \odot x_t / (1 - p), \quad m \sim \mathrm{Bernoulli}(1 - p)

    Args:
        p: Probability of being dropped.
        drawn: ``"sequence"``: one mask for all time steps of a sample, so that a neuron is there or is not; ``"step"``: a fresh
            one at each, as ``nn.Dropout`` has in a spiking network.

    Source: Srivastava et al. 2014; one mask a sequence: Rathi et al. 2020 (STDB).
    """

    def __init__(self, p: float = 0.5, drawn: Drawn = "sequence") -> None:
        super().__init__()
        self._mask = _Mask(p)
        self.p = self._mask.p
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self._drop(checks.sequence("x", x), 0)

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        return self._drop(x_t[None], state)[0], state + 1

    def advance(self, x: Tensor, state: int) -> tuple[Tensor, int]:
        return self._drop(x, state), state + len(x)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        return self._drop(x.expand(steps, *x.shape), 0)

    def _drop(self, x: Tensor, start: int) -> Tensor:
        if not self._mask.stochastic:
            return x
        if self.drawn == "step":
            return x * self._mask.mask(x, start)
        return x * self._mask.mask(x[:1], 0)

    def extra_repr(self) -> str:
        return f"p={self.p}, drawn={self.drawn!r}"


class OrdinaryDropout(_Mask):
    """:class:`Dropout` where there is no time axis: in an ordinary network, ``[B, *] -> [B, *]``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x[None], 0)[0] if self.stochastic else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
