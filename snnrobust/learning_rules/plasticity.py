"""What spike-timing-dependent plasticity is made of: traces, sums over pairs of spikes, competition, bounded weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnrobust.neurons.neuron import Reset

__all__ = ["bounded", "compete", "pair_sums", "traces"]


def traces(s: Tensor, tau: float) -> Tensor:
    r"""Traces of ``s`` ``[T, B, n]``: :math:`x_t = e^{-1 / \tau} x_{t-1} + s_t`, from zero; :math:`\tau` in steps."""
    decay, x, found = math.exp(-1 / tau), torch.zeros_like(s[0]), []
    for s_t in s.unbind(0):
        x = x * decay + s_t
        found.append(x)
    return torch.stack(found)


def pair_sums(pre: Tensor, post: Tensor, tau_plus: float, tau_minus: float) -> tuple[Tensor, Tensor]:
    r"""Sums over all pairs of an input spike and an output spike of the same sample.

    .. math:: P_{ji} = \sum_{t_i \le t_j} e^{-(t_j - t_i) / \tau_+}, \quad D_{ji} = \sum_{t_j < t_i} e^{-(t_i - t_j) / \tau_-}

    An input spike that makes the neuron fire in the same step counts as before it. Inputs that are not spikes count by value.

    Args:
        pre: Inputs, ``[T, B, n]``.
        post: Output spikes, ``[T, B, N]``.
        tau_plus, tau_minus: Time constants in steps.

    Returns:
        Potentiation P and depression D, ``[N, n]``, of the whole batch.

    Source: Song, Miller and Abbott 2000, "Competitive Hebbian learning through spike-timing-dependent synaptic plasticity".
    """
    before, after = traces(pre, tau_plus), traces(post, tau_minus) - post
    pre, post, before, after = (t.flatten(0, 1) for t in (pre, post, before, after))
    return post.T @ before, after.T @ pre


def compete(current: Tensor, decay: float | Tensor, threshold: Tensor, reset: Reset, inhibition: float) -> Tensor:
    r"""Neurons that inhibit each other, from rest: at most one fires in a step, that with the largest :math:`h_j / \theta_j`.

    .. math:: h_t = \beta v_{t-1} + I_t; \quad \text{where one fires, the others keep } v_t = (1 - \text{inhibition}) \, h_t

    Args:
        current: :math:`I`, ``[T, B, N]``.
        decay, threshold, reset: As those of :class:`~snnrobust.neurons.LIF`; ``threshold`` is ``[N]``.
        inhibition: The share of their potential that others lose to a spike, in [0, 1].

    Returns:
        Spikes, ``[T, B, N]``.
    """
    v, spikes = torch.zeros_like(current[0]), []
    for current_t in current.unbind(0):
        h = decay * v + current_t
        most, winner = (h / threshold).max(1, keepdim=True)
        fired = (most >= 1).to(h.dtype)
        s = torch.zeros_like(h).scatter_(1, winner, fired)
        own = torch.zeros_like(h) if reset == "hard" else h - threshold
        v = torch.where(s > 0, own, h * (1 - inhibition * fired))
        spikes.append(s)
    return torch.stack(spikes)


def bounded(weights: Tensor, mean: float) -> Tensor:
    """``weights`` ``[N, n]`` in [0, 1], with each row of mean ``mean``: a larger row is scaled, a smaller one moved towards 1."""
    weights = weights.clamp(0.0, 1.0)
    found = weights.mean(1, keepdim=True)
    scaled = weights * (mean / found.clamp(min=mean))
    return torch.where(found > mean, scaled, weights + (1 - weights) * (mean - found) / (1 - found).clamp(min=1 - mean))
