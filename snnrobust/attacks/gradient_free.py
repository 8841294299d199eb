"""Gradients estimated from losses alone: for models that differentiate badly, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import registered, usable
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, _words, draws, normal, uniform

__all__ = ["SPSA", "EvolutionStrategies"]


@registered
@dataclass(frozen=True)
class EvolutionStrategies:
    r"""The gradient of the loss smoothed by a Gaussian, from antithetic pairs.

    .. math:: g = \frac{1}{n} \sum_{i=1}^n \frac{L(x + \sigma v_i) - L(x - \sigma v_i)}{2 \sigma} v_i, \quad v_i \sim N(0, I)

    It is unbiased for :math:`\nabla E_v L(x + \sigma v)`, but for what ``bounds`` clips: a pixel at their edge moves to one
    side only, and its gradient is half. All queries of a call share the model's draws, so differences are not those of noise.

    Args:
        queries: 2 n, losses per sample and call; one more forward pass gives the logits at ``x``.
        sigma: :math:`\sigma` > 0 in units of ``x``. A spiking model is piecewise constant: a width near the budget sees most.
        bounds: The box that queries stay in, or None for a model that takes any value.
        batch_size: Inputs of one forward pass (at least one pair of the whole batch).

    Source: Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning".
    """

    spiking: ClassVar[bool] = False

    queries: int = 200
    sigma: float | str = 0.05
    bounds: tuple[float, float] | None = (0.0, 1.0)
    batch_size: int = 1024

    def __post_init__(self) -> None:
        _check(self, "sigma", self.sigma)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        def directions(first: int, pairs: int) -> Tensor:
            return normal(*_keyed(x, stream), (pairs, *x.shape), first).to(x.dtype)

        return _estimate(self, float(self.sigma), directions, model, x, y, loss, stream)


@registered
@dataclass(frozen=True)
class SPSA:
    r"""Simultaneous perturbation: :class:`EvolutionStrategies` with random signs in place of the Gaussian.

    .. math:: g = \frac{1}{n} \sum_{i=1}^n \frac{L(x + \delta v_i) - L(x - \delta v_i)}{2 \delta} v_i, \quad v_i \in \{-1, 1\}^d

    Args:
        queries, bounds, batch_size: As there.
        delta: :math:`\delta` > 0 in units of ``x``.

    Source: Spall 1992, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation".
    """

    spiking: ClassVar[bool] = False

    queries: int = 200
    delta: float | str = 0.05
    bounds: tuple[float, float] | None = (0.0, 1.0)
    batch_size: int = 1024

    def __post_init__(self) -> None:
        _check(self, "delta", self.delta)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        def directions(first: int, pairs: int) -> Tensor:
            return 2.0 * (uniform(*_keyed(x, stream), (pairs, *x.shape), first) < 0.5).to(x.dtype) - 1.0

        return _estimate(self, float(self.delta), directions, model, x, y, loss, stream)


class _Directions(Protocol):
    def __call__(self, first: int, pairs: int) -> Tensor: ...  # [pairs, B, *], the same for the same numbers


def _estimate(
    source: EvolutionStrategies | SPSA, width: float, directions: _Directions, model: nn.Module, x: Tensor, y: Tensor,
    loss: Loss, stream: Stream,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, pairs = x.detach(), source.queries // 2
    at_once = max(source.batch_size // (2 * len(x)), 1)
    gradient = torch.zeros_like(x)
    with torch.no_grad():
        logits = _logits(model, x, y, stream)
        for first in range(0, pairs, at_once):
            v = directions(first, min(at_once, pairs - first))
            asked = torch.cat([x + width * v, x - width * v])  # [2 pairs, B, *]
            asked = asked if source.bounds is None else asked.clamp(*source.bounds)
            labels, copies = y.repeat(len(asked)), Stream(stream.key, stream.sample_ids.repeat(len(asked)))
            losses = loss(_logits(model, asked.flatten(0, 1), labels, copies), labels).view(2, len(v), len(x))
            slope = (losses[0] - losses[1]) / (2 * width)
            gradient += (slope.to(v.dtype).view(*slope.shape, *[1] * (x.dim() - 1)) * v).sum(0)
    return usable(gradient / pairs), logits


def _logits(model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> Tensor:
    with draws(model, stream.key, stream.sample_ids):
        return checks.call(model, x, y)


def _keyed(x: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
    return _words(stream.fork("directions").key).to(x.device), stream.sample_ids.to(x.device)


def _check(source: EvolutionStrategies | SPSA, name: str, width: float | str) -> None:
    if checks.count("queries", source.queries, low=2) % 2:
        raise ValueError(f"queries must be even, as they come in pairs, got {source.queries}")
    value = checks.fraction(name, width)
    if value == 0.0:
        raise ValueError(f"{name} must be above 0, got {width}")
    object.__setattr__(source, name, value)
    checks.count("batch_size", source.batch_size)
    if source.bounds is not None:
        if not isinstance(source.bounds, tuple) or len(source.bounds) != 2:
            raise TypeError(f"bounds must be a pair (low, high) or None, got {source.bounds!r}")
        low, high = (checks.number("bounds", edge) for edge in source.bounds)
        if low >= high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {source.bounds}")
        object.__setattr__(source, "bounds", (low, high))
