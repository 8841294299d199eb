"""Several neurons for each value, each with a receptive field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import Encoder

__all__ = ["Population"]


class Population(Encoder):
    r"""Gaussian receptive fields: neuron :math:`j` of N spikes with the probability :math:`a_j = e^{-(x - c_j)^2 / 2 \sigma^2}`,

    .. math:: s_{t,j} = [u_{t,j} < a_j(x)], \quad c_j = j / (N - 1), \; j = 0 \dots N - 1.

    The declared gradient is exact through the receptive field and straight-through at the draw,
    :math:`\partial s_{t,j} / \partial x = a_j'(x)`: the gradient of the expectation.

    Args:
        time_steps: T.
        neurons: N, at least 2; the output has N channels for each of the input, ``[B, C, *] -> [T, B, C N, *]``, the neurons of
            a channel side by side.
        sigma: :math:`\sigma` > 0; default is the distance of the centres over 1.5.

    Raises:
        ValueError: a value outside [0, 1].

    Source: Bohte, Kok and La Poutre 2002 (receptive fields and the 1.5; their centres reach beyond the range, these do not, and
    their neurons spike once).
    """

    def __init__(self, time_steps: int, neurons: int = 8, sigma: float | None = None) -> None:
        super().__init__(time_steps)
        self.neurons = checks.count("neurons", neurons, 2)
        self.sigma = sigma if sigma is None else checks.number("sigma", sigma, 0.0, exclusive_low=True)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not shape:
            raise ValueError("Population needs samples [C, ...], got the shape (): give each value an axis, x[:, None]")
        return (shape[0] * self.neurons, *shape[1:])

    def _rates(self, x: Tensor) -> Tensor:
        """:math:`a`, ``[B, C, *] -> [B, C * N, *]``."""
        centres = torch.linspace(0.0, 1.0, self.neurons, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 2))
        sigma = 1.0 / (1.5 * (self.neurons - 1)) if self.sigma is None else self.sigma
        return ((x.unsqueeze(2) - centres) / sigma).square().mul(-0.5).exp().flatten(1, 2)

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        return self.bernoulli(self._rates(x), steps, start)
