"""The bits of a value, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.encoders.encoder import Encoder
from snnrobust.encoders.straight_through import straight_through

__all__ = ["Phase"]

_MOST_BITS = 24  # of float32


class Phase(Encoder):
    r"""Weighted phase coding: step :math:`t` is bit :math:`k = t \bmod K` of :math:`x`, the most significant first,

    .. math:: s_t = w_k b_k, \quad \sum_k 2^{K-1-k} b_k = \min(\lfloor 2^K x \rfloor, 2^K - 1), \quad w_k = 2^{-(1+k)}.

    Pixels of 8 bits, n/255, become the bits of n. Steps that do not fill a period send its first bits only.

    The declared gradient is the slope of the least-squares line through :math:`b_k` over all :math:`2^K` values,
    :math:`\partial b_k / \partial x = w_k / \sum_j w_j^2`, times :math:`w_k` if weighted; over a period the weighted slopes add
    up to 1. (The true derivative is zero almost everywhere.)

    Args:
        time_steps: T.
        bits: K, 1 to 24.
        weighted: Spikes of height :math:`w_k`, or of height 1.

    Raises:
        ValueError: a value outside [0, 1].

    Source: Kim et al. 2018, "Deep neural networks with weighted spikes".
    """

    def __init__(self, time_steps: int, bits: int = 8, weighted: bool = True) -> None:
        super().__init__(time_steps)
        self.bits = checks.count("bits", bits)
        if bits > _MOST_BITS:
            raise ValueError(f"bits must be at most {_MOST_BITS}, got {bits}: float32 has no more")
        self.weighted = checks.boolean("weighted", weighted)

    @property
    def stochastic(self) -> bool:
        return False

    def _encode(self, x: Tensor, start: int, steps: int) -> Tensor:
        levels = 1 << self.bits
        wide = torch.promote_types(x.dtype, torch.float32)
        n = (x.detach().to(wide) * levels).to(torch.int64).clamp(max=levels - 1)
        phase = torch.arange(start, start + steps, device=x.device).remainder(self.bits).view(-1, *[1] * x.dim())
        bit = (n >> (self.bits - 1 - phase)) & 1
        weight = torch.exp2(-1.0 - phase.to(wide)).to(x.dtype)
        slope = weight * (3.0 / (1.0 - 4.0**-self.bits))  # the sum over j of 4^-(1+j) is (1 - 4^-K) / 3
        spikes = straight_through(slope * x, bit)
        return weight * spikes if self.weighted else spikes
