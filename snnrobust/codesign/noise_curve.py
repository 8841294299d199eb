"""Accuracy of a model on noisy chips, by the strength of the noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snnrobust import checks
from snnrobust.data import Data, batches, take
from snnrobust.draws import derive, device_of, draws
from snnrobust.hardware import Backend, GaussianNoise, deploy, deploy_each
from snnrobust.statistics import mean_interval

__all__ = ["NoiseCurve", "accuracy_over_noise", "additive"]

Noise = Callable[[float], Backend | Mapping[str, Backend]]


@dataclass(frozen=True, eq=False)
class NoiseCurve:
    """Which samples are right at which noise.

    Attributes:
        sigmas: Ascending, the first is 0: no noise.
        right: bool ``[S, chips, N]``.
        classes: K of the logits.
    """

    sigmas: tuple[float, ...]
    right: NDArray[np.bool_]
    classes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", _levels(self.sigmas))
        if self.sigmas[0] != 0:
            raise ValueError("sigmas must begin with 0, the model without noise")
        right = np.asarray(self.right)
        if right.dtype != bool or right.ndim != 3 or right.size == 0 or len(right) != len(self.sigmas):
            raise ValueError(
                f"right must be bool [sigmas, chips, samples] for {len(self.sigmas)} sigmas, got {right.dtype} {right.shape}"
            )
        checks.count("classes", self.classes, low=2)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Mean over chips and samples, ``[S]``."""
        return np.asarray(self.right.mean((1, 2), dtype=np.float64))

    @property
    def clean(self) -> float:
        """Accuracy without noise."""
        return float(self.accuracy[0])

    @property
    def chance(self) -> float:
        """1 / K."""
        return 1.0 / self.classes

    def intervals(self, confidence: float = 0.95) -> NDArray[np.float64]:
        """Of each accuracy, over samples, of the means over chips: ``[S, 2]``."""
        shares = self.right.mean(1, dtype=np.float64)
        return np.array([mean_interval(share, confidence) for share in shares])


def additive(sigma: float) -> GaussianNoise:
    """Noise of an absolute strength at the accumulator: on the product, before the normalisation, fresh at each time step."""
    return GaussianNoise(additive=sigma)


def accuracy_over_noise(
    model: nn.Module,
    data: Data,
    sigmas: Sequence[float],
    *,
    noise: Noise = additive,
    chips: int = 3,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> NoiseCurve:
    r"""Accuracy of ``model`` on chips whose accumulators have noise of an absolute :math:`\sigma`, one pass a chip.

    .. math:: \tilde y = Wx + b + \sigma \xi, \quad \xi \sim N(0, 1)

    in the units of the model's own products. The same chips, with the same :math:`\xi`, are met at each :math:`\sigma`:
    neighbouring points share their draws. Draws depend on the seed, the chip, the layer, the sample and the step only.

    Args:
        model: Inputs to logits ``[B, K]``, on no chip.
        data: Its first ``n`` samples; default all.
        sigmas: Strengths, at least 0, each once. 0 is added where it is missing.
        noise: From a strength to a backend, or to one for each layer by name as :func:`~snnrobust.hardware.deploy_each` takes
            them, for noise of a strength of its own in each layer. Not asked for at 0.
        chips: Chips for each strength.
        seed: Of chips and draws.
        batch_size: Changes no result.

    Raises:
        ValueError: bad ``sigmas``; TypeError, ValueError: as :func:`~snnrobust.hardware.deploy`.
    """
    checks.module("model", model)
    checks.function("noise", noise)
    checks.count("chips", chips)
    checks.count("seed", seed, low=0)
    levels = tuple(sorted({0.0, *_levels(tuple(sorted(sigmas)))}))
    x, y = take(data, n)
    device, classes, found = device_of(model), 0, []
    for sigma in levels:
        backend = noise(sigma) if sigma else GaussianNoise()
        rows = []
        for chip in range(chips):
            own, parts = derive(seed, "noise curve", chip), []
            made = (
                deploy_each(model, backend, seed=own)
                if isinstance(backend, Mapping)
                else deploy(model, backend, seed=own)
            )
            for batch in batches((x, y), batch_size):
                with torch.no_grad(), draws(made, own, batch.sample_ids):
                    logits = checks.call(made, batch.x.to(device), batch.y.to(device))
                classes = logits.shape[1]
                parts.append((logits.argmax(1).cpu() == batch.y).numpy())
            rows.append(np.concatenate(parts))
        found.append(rows)
    return NoiseCurve(levels, np.array(found), classes)


def _levels(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    made = tuple(checks.number("sigmas", float(s), 0.0) for s in sigmas)
    if not made or any(a >= b for a, b in pairwise(made)):
        raise ValueError(f"sigmas must be at least one strength, ascending, each once, got {made}")
    return made
