"""Batch normalisation through time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
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
        if x_t.dim() < 2 or x_t.shape[1] != self.features:
            raise ValueError(f"BNTT expects {self.features} channels in [B, C, ...], got shape {tuple(x_t.shape)}")
        if self.training:
            mean, var = self.running_mean[t], self.running_var[t]
            y = F.batch_norm(x_t, mean, var, self.weight[t], None, True, self.momentum, self.eps)
        else:  # the same two roundings for any batch size and layout
            shape = (1, -1) + (1,) * (x_t.dim() - 2)
            scale = self.weight[t] * (self.running_var[t] + self.eps).rsqrt()
            y = (x_t - self.running_mean[t].view(shape)) * scale.view(shape)
        return y, t + 1

    def extra_repr(self) -> str:
        return f"{self.features}, time_steps={self.time_steps}, eps={self.eps}, momentum={self.momentum}"
