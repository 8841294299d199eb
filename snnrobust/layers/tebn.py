"""Temporal effective batch normalisation."""

from __future__ import annotations

from copy import deepcopy
from typing import Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers.batch_norm import batch_norm, check_features, check_steps
from snnrobust.temporal import Temporal

__all__ = ["TEBN"]


class TEBN(Temporal):
    r"""Temporal effective batch normalisation: one batch normalisation, and a learnt factor for each time step.

    .. math:: y_t = p_t \left( \gamma \, (x_t - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta \right)

    Statistics are those of all time steps, samples and places while training and running means in eval mode. All
    :math:`p_t` start at 1.

    Args:
        features: Channels ``C`` of the input ``[T, B, C, *]``.
        time_steps: T, the longest sequence that the layer can normalise.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics.

    Raises:
        ValueError: more than ``time_steps`` steps, or other than ``features`` channels.
        RuntimeError: ``step`` while training.

    Source: Duan et al. 2022, "Temporal effective batch normalization in spiking neural networks".
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, time_steps: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.features = checks.count("features", features)
        self.time_steps = checks.count("time_steps", time_steps)
        self.eps = checks.number("eps", eps, 0.0, exclusive_low=True)
        self.momentum = checks.number("momentum", momentum, 0.0, 1.0)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.factors = nn.Parameter(torch.ones(time_steps))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        steps = checks.sequence("x", x).shape[0]
        if steps > self.time_steps:
            raise ValueError(f"TEBN was made for {self.time_steps} time steps and got a sequence of {steps}")
        y = self._normalised(x.flatten(0, 1)).view(x.shape)
        return (y * self.factors[:steps].view(-1, *(1,) * (x.dim() - 1))).to(x.dtype)

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        t = state
        if self.training:
            raise RuntimeError(
                "TEBN normalises over all time steps while training, so it cannot take them one by one: "
                "call the layer on the whole sequence, or eval() before streaming"
            )
        if t >= self.time_steps:
            raise ValueError(f"TEBN was made for {self.time_steps} time steps and is asked for step {t + 1}")
        return (self._normalised(x_t) * self.factors[t]).to(x_t.dtype), t + 1

    def _normalised(self, x: Tensor) -> Tensor:
        check_features("TEBN", x, self.features)
        mean, var = self.running_mean, self.running_var
        return batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)

    def truncate(self, steps: int) -> Self:
        """A copy for the first ``steps`` time steps, with parameters and statistics of its own.

        Raises:
            ValueError: ``steps`` outside 1..time_steps.
        """
        check_steps("TEBN", steps, self.time_steps)
        short = deepcopy(self)
        short.time_steps = steps
        short.factors = nn.Parameter(short.factors.detach()[:steps].clone(), self.factors.requires_grad)
        return short

    def extra_repr(self) -> str:
        return f"{self.features}, time_steps={self.time_steps}, eps={self.eps}, momentum={self.momentum}"
