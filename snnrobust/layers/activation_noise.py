"""Gaussian noise in proportion to the spread of what it is added to, as between the blocks of an EnResNet."""

from __future__ import annotations

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.draws import Stochastic
from snnrobust.temporal import Temporal

__all__ = ["ActivationNoise", "OrdinaryActivationNoise"]


class _Noise(Stochastic):
    """``amount`` while training, ``eval_amount`` in eval mode."""

    def __init__(self, amount: float, eval_amount: float | None) -> None:
        super().__init__()
        self.amount = checks.number("amount", amount, 0.0)
        self.eval_amount = None if eval_amount is None else checks.number("eval_amount", eval_amount, 0.0)

    @property
    def now(self) -> float:
        return self.amount if self.training or self.eval_amount is None else self.eval_amount

    @property
    def stochastic(self) -> bool:
        return self.now > 0

    def noisy(self, x: Tensor, start: int) -> Tensor:
        """``[T, B, *]``, of the time steps from ``start`` on."""
        if not self.stochastic:
            return x
        return x + self.now * spread(x) * self.normal(x.shape, start, x.device).to(x.dtype)


def spread(x: Tensor) -> Tensor:
    """Standard deviation of each sample at each step, ``[T, B, *] -> [T, B, 1, ...]``; its gradient is 0 where it is 0."""
    dims = tuple(range(2, x.dim()))
    if not dims:
        raise ValueError(
            f"x must have at least one dimension besides time and batch, got {tuple(x.shape)}: it has no spread"
        )
    variance = x.var(dims, correction=0, keepdim=True)
    positive = variance > 0  # the root has no gradient at 0, where spiking layers are silent
    return torch.where(positive, variance, 1.0).sqrt() * positive


class ActivationNoise(Temporal):
    r"""Noise on a sequence ``[T, B, *]``, drawn anew at each step.

    .. math:: y_t = x_t + a \, \sigma(x_t) \, \xi_t, \quad \xi_t \sim N(0, 1)

    :math:`\sigma` is the standard deviation (over n, not n - 1) of one sample's :math:`x_t`. Published networks take it over the
    whole batch: there the noise of a sample depends on the others around it, here it does not. The gradient is exact, through
    :math:`\sigma` too.

    Args:
        amount: :math:`a`, 0 or more, while training.
        eval_amount: In eval mode; None is ``amount``, 0 no noise.

    Source: Wang et al. 2019, "ResNets ensemble via the Feynman-Kac formalism to improve natural and robust accuracies".
    """

    def __init__(self, amount: float = 0.1, eval_amount: float | None = None) -> None:
        super().__init__()
        self._noise = _Noise(amount, eval_amount)
        self.amount, self.eval_amount = self._noise.amount, self._noise.eval_amount

    def forward(self, x: Tensor) -> Tensor:
        return self._noise.noisy(checks.sequence("x", x), 0)

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        return self._noise.noisy(x_t[None], state)[0], state + 1

    def advance(self, x: Tensor, state: int) -> tuple[Tensor, int]:
        return self._noise.noisy(x, state), state + len(x)

    def extra_repr(self) -> str:
        return f"amount={self.amount}, eval_amount={self.eval_amount}"


class OrdinaryActivationNoise(_Noise):
    """:class:`ActivationNoise` where there is no time axis: in an ordinary network, ``[B, *] -> [B, *]``."""

    def __init__(self, amount: float = 0.1, eval_amount: float | None = None) -> None:
        super().__init__(amount, eval_amount)

    def forward(self, x: Tensor) -> Tensor:
        return self.noisy(x[None], 0)[0]

    def extra_repr(self) -> str:
        return f"amount={self.amount}, eval_amount={self.eval_amount}"
