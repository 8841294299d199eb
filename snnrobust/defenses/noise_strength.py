"""How strong the noise is at each batch of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from snnrobust import checks
from snnrobust.draws import derive, normal, uniform

__all__ = ["NoiseStrength"]

Distribution = Literal["normal", "uniform"]


@dataclass(frozen=True)
class NoiseStrength:
    r"""A factor on the noise of a training for each batch: it varies around 1, and may be ramped up to there.

    .. math:: f_i = r_i \max(0, 1 + s \, \xi_i), \quad r_i = f_0 + (1 - f_0) \min(i / n, 1)

    with :math:`\xi_i` of mean 0 and variance 1, and i the number of batches learnt before. So a batch meets noise of
    :math:`f_i \sigma`: the network learns for a chip whose noise is not always that which it was trained for. A pure function
    of key and i; one factor for all layers of a batch.

    Args:
        spread: s, the standard deviation of the strength over its mean. From 1/3 on (normal) some strengths are cut off at 0,
            which raises the mean.
        distribution: Of :math:`\xi`: ``"normal"``, or ``"uniform"`` within :math:`\pm \sqrt 3`.
        start: :math:`f_0`, the factor at the first batch.
        ramp: n, batches until the mean is 1; 0 is from the start.

    Source: the idea of a strength that varies during training is that of Variance-Aware Noisy Training (arXiv:2503.16183). Its
    schedule could **not be read**: distribution, spread and ramp here are ours.
    """

    spread: float = 0.0
    distribution: Distribution = "normal"
    start: float = 1.0
    ramp: int = 0

    def __post_init__(self) -> None:
        checks.number("spread", self.spread, 0.0, 10.0)
        checks.choice("distribution", self.distribution, get_args(Distribution))
        checks.number("start", self.start, 0.0)
        checks.count("ramp", self.ramp, low=0)
        if self.ramp == 0 and self.start != 1.0:
            raise ValueError(
                f"start={self.start} needs ramp, the number of batches until the strength is whole: give ramp, or leave start out"
            )

    def factor(self, key: int, batch: int) -> float:
        """:math:`f_i` of the batch i (from 0) under its key."""
        checks.count("batch", batch, low=0)
        mean = 1.0 if batch >= self.ramp else self.start + (1.0 - self.start) * batch / self.ramp
        if self.spread == 0:
            return mean
        own = derive(checks.integer("key", key), "noise strength")
        words, first = torch.tensor([own & 0xFFFFFFFF, own >> 32]), torch.zeros(1, dtype=torch.int64)
        if self.distribution == "normal":
            xi = float(normal(words, first, (1, 1, 1)))
        else:
            xi = (2.0 * float(uniform(words, first, (1, 1, 1))) - 1.0) * 3.0**0.5
        return mean * max(0.0, 1.0 + self.spread * xi)
