"""The signal-to-noise ratio of a chip's products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log10

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import draws, evaluating
from snnrobust.hardware.synapses import AfterNorm, DeployedLayer

__all__ = ["signal_to_noise"]


def signal_to_noise(chip: nn.Module, x: Tensor, *, key: int = 0) -> dict[str, float]:
    r"""What the reads of a chip do to its signals, in dB, by layer, in one forward pass of ``x``.

    .. math:: 10 \log_{10} \frac{\sum y^2}{\sum (\mathrm{read}(y) - y)^2}

    ``y`` is what is read: the product, or for ``at="after_norm"`` the normalised product; sums are over the batch, all steps and
    elements. It is infinite where nothing is changed, and minus infinity where there is noise and no signal. Faults of what is
    stored are no part of it.

    Args:
        chip: From :func:`~snnrobust.hardware.deploy`.
        x: Inputs of the chip.
        key: Of the draws.

    Raises:
        ValueError: the model is on no chip.
    """
    checks.module("chip", chip)
    layers = {n: m for n, m in chip.named_modules() if isinstance(m, DeployedLayer | AfterNorm)}
    if not layers:
        raise ValueError("the model is on no chip: use hardware.deploy(model, backend, seed=...)")
    sums = {name: [0.0, 0.0] for name in layers}
    try:
        for name, layer in layers.items():
            layer.backend.read = partial(_measured, layer.backend.read, sums[name])  # type: ignore[method-assign]
        with torch.no_grad(), evaluating(chip), draws(chip, key):
            chip(x)
    finally:
        for layer in layers.values():
            del layer.backend.read
    return {name.removesuffix(".layer"): _decibel(*found) for name, found in sums.items()}


def _measured(read: Callable[[Tensor, int], Tensor], sums: list[float], y: Tensor, start: int) -> Tensor:
    noisy = read(y, start)
    sums[0] += float(y.double().square().sum())
    sums[1] += float((noisy.double() - y.double()).square().sum())
    return noisy


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf
