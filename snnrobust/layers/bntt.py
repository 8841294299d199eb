"""Batch normalisation through time."""

from __future__ import annotations

from copy import deepcopy
from typing import Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers.batch_norm import batch_norm, check_features, check_steps
from snnrobust.temporal import Temporal

__all__ = ["BNTT"]


class BNTT(Temporal):
    r"""Batch normalisation through time: one :math:`\gamma` and one set of statistics per time step, no :math:`\beta`.

    .. math:: y_t = \gamma_t \, (x_t - \mu_t) / \sqrt{\sigma_t^2 + \epsilon}

    Statistics are those of the batch while training and running means in eval mode, as in ``nn.BatchNorm2d``.

    Args:
        features: Channels ``C`` of the input ``[T, B, C, *]``.
        time_steps: T, the longest sequence that the layer can normalise.
        eps: Added to the variance; 1e-4 in the authors' code (1e-5 in most other libraries).
        momentum: Weight of the newest batch in the running statistics.

    Raises:
        ValueError: more than ``time_steps`` steps, or other than ``features`` channels.

    Source: Kim and Panda 2021, "Revisiting batch normalization for training low-latency deep SNNs from scratch".
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, time_steps: int, eps: float = 1e-4, momentum: float = 0.1) -> None:
        super().__init__()
        self.features = checks.count("features", features)
        self.time_steps = checks.count("time_steps", time_steps)
        self.eps = checks.number("eps", eps, 0.0, exclusive_low=True)
        self.momentum = checks.number("momentum", momentum, 0.0, 1.0)
        self.weight = nn.Parameter(torch.ones(time_steps, features))
        self.register_buffer("running_mean", torch.zeros(time_steps, features))
        self.register_buffer("running_var", torch.ones(time_steps, features))

    def forward(self, x: Tensor) -> Tensor:
        if checks.sequence("x", x).shape[0] > self.time_steps:  # before any statistics are touched
            raise ValueError(f"BNTT was made for {self.time_steps} time steps and got a sequence of {x.shape[0]}")
        return super().forward(x)

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        t = state
        if t >= self.time_steps:
            raise ValueError(f"BNTT was made for {self.time_steps} time steps and is asked for step {t + 1}")
        check_features("BNTT", x_t, self.features)
        mean, var = self.running_mean[t], self.running_var[t]
        y = batch_norm(x_t, mean, var, self.weight[t], None, self.training, self.momentum, self.eps)
        return y, t + 1

    def truncate(self, steps: int) -> Self:
        """A copy for the first ``steps`` time steps, with parameters and statistics of its own.

        Raises:
            ValueError: ``steps`` outside 1..time_steps.
        """
        check_steps("BNTT", steps, self.time_steps)
        short = deepcopy(self)
        short.time_steps = steps
        short.weight = nn.Parameter(short.weight.detach()[:steps].clone(), self.weight.requires_grad)
        short.running_mean, short.running_var = short.running_mean[:steps].clone(), short.running_var[:steps].clone()
        return short

    def extra_repr(self) -> str:
        return f"{self.features}, time_steps={self.time_steps}, eps={self.eps}, momentum={self.momentum}"
