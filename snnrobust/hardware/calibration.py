"""Fit a chip's digital parts to it, from unlabelled inputs: statistics of normalisation, ranges of converters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, draws
from snnrobust.hardware.crossbar.array import ConvertedArray
from snnrobust.layers import BNTT, TEBN

__all__ = ["calibrate_adc", "recalibrate"]

Batches = Tensor | Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]
"""A batch; or several, of which those that are tuples have the inputs first, as data loaders give them."""

_NORMS = (nn.modules.batchnorm._BatchNorm, BNTT, TEBN)


def recalibrate(chip: nn.Module, batches: Batches, *, seed: int = 0) -> nn.Module:
    r"""A copy of ``chip`` whose batch normalisations have the statistics of what the chip computes; ``chip`` is untouched.

    .. math:: \mu = \sum_k n_k \mu_k / \sum_k n_k, \qquad
        \sigma^2 = \sum_k n_k \left( \sigma_k^2 + (\mu_k - \mu)^2 \right) / \sum_k n_k

    over batches of :math:`n_k` samples, with :math:`\mu_k, \sigma_k^2` (unbiased) those of ``nn.BatchNorm2d`` in train mode.
    As there, a layer sees the batch as the layers before normalise it: batches should not be small. All else is in eval
    mode; labels are not looked at, weights not changed.

    Args:
        chip: Spiking or ordinary, with ``nn.BatchNorm*``, BNTT, TDBN or TEBN layers. Steps of BNTT that the inputs do
            not reach keep their statistics.
        batches: Inputs of the model.
        seed: Of everything that is drawn meanwhile, noise and spikes.

    Raises:
        ValueError: the chip has no running statistics, ``batches`` is empty, or what the chip computes is not finite.
    """
    copy = deepcopy(checks.module("chip", chip)).eval()
    norms = [m for m in copy.modules() if isinstance(m, _NORMS) and isinstance(m.running_mean, Tensor)]
    if not norms:
        raise ValueError(
            "the chip has no batch normalisation with running statistics to fit: use Crossbar(output_gain='tile') or 'column'"
        )
    weight = 0.0
    means = [torch.zeros_like(_statistics(m)[0], dtype=torch.float64) for m in norms]
    squares = [torch.zeros_like(mean) for mean in means]
    with torch.no_grad(), _normalising_by_batch(norms):
        for n in _run(copy, batches, seed):
            weight += n
            for m, mean, square in zip(norms, means, squares, strict=True):
                mu, var = (s.double() for s in _statistics(m))
                mean += n * mu
                square += n * (var + mu**2)
        for m, mean, square in zip(norms, means, squares, strict=True):
            mean /= weight
            variance = (square / weight - mean**2).clamp_min_(0.0)
            if not (mean.isfinite().all() and variance.isfinite().all()):
                raise ValueError("what the chip computes is not finite: look for NaN in the inputs")
            for old, new in zip(_statistics(m), (mean, variance), strict=True):
                old.copy_(new)
    return copy


def calibrate_adc(chip: nn.Module, batches: Batches, *, seed: int = 0) -> nn.Module:
    """A copy of ``chip`` whose ADCs saturate at the largest partial sum that ``batches`` bring forth in each layer.

    It is taken relative to the input range, with all ADCs ideal meanwhile; a layer that gets no input keeps its range.

    Args:
        chip: With :class:`~snnrobust.hardware.Crossbar` layers that have ``adc_bits``.
        batches: Inputs of the model; labels are not looked at.
        seed: Of everything that is drawn meanwhile.

    Raises:
        ValueError: no layer of the chip has an ADC, or ``batches`` is empty.
    """
    copy = deepcopy(checks.module("chip", chip)).eval()
    arrays = [m for m in copy.modules() if isinstance(m, ConvertedArray)]
    if not arrays:
        raise ValueError("no layer of the chip has an ADC to calibrate: deploy it on a Crossbar(adc_bits=...)")
    with torch.no_grad():
        for array in arrays:
            array.observed = torch.zeros_like(array.top)
        for _ in _run(copy, batches, seed):
            pass
        for array in arrays:
            assert array.observed is not None
            if not array.observed.isfinite():
                raise ValueError("what the chip computes is not finite: look for NaN in the inputs")
            array.top.copy_(torch.where(array.observed > 0, array.observed, array.top))
            array.observed = None
    return copy


def _run(model: nn.Module, batches: Batches, seed: int) -> Iterator[int]:
    """A forward pass of each batch; yields its size."""
    checks.count("seed", seed, low=0)
    first, device = 0, next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    for k, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor) or x.dim() < 1 or len(x) == 0:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"batches must hold tensors of inputs, or tuples that begin with one, got {given}")
        with draws(model, derive(seed, "calibration", k), torch.arange(first, first + len(x))):
            model(x.to(device))
        first += len(x)
        yield len(x)
    if first == 0:
        raise ValueError("batches is empty: give some inputs, such as a few hundred of the training images")


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    return mean, var


@contextmanager
def _normalising_by_batch(norms: Sequence[Any]) -> Iterator[None]:
    """Inside, ``norms`` are in train mode and their running statistics are those of the newest batch."""
    momenta = [m.momentum for m in norms]
    counts = [c.clone() if isinstance(c := getattr(m, "num_batches_tracked", None), Tensor) else None for m in norms]
    try:
        for m in norms:
            m.momentum = 1.0
            m.training = True
        yield
    finally:
        for m, momentum, count in zip(norms, momenta, counts, strict=True):
            m.momentum, m.training = momentum, False
            if count is not None:
                m.num_batches_tracked.copy_(count)
