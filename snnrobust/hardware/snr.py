"""The signal-to-noise ratio of a chip's products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log10

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import draws, evaluating
from snnrobust.hardware.backend import Array
from snnrobust.hardware.synapses import AfterNorm, DeployedLayer

__all__ = ["signal_to_noise"]


def signal_to_noise(chip: nn.Module, x: Tensor, *, key: int = 0) -> dict[str, float]:
    r"""How far the products of a chip are from those of the weights that it stores, in dB, by layer, in one pass of ``x``.

    .. math:: 10 \log_{10} \frac{\sum y^2}{\sum (\tilde y - y)^2}

    where :math:`\tilde y` is what the layer gives and y the product of the same input with its stored weights: noise of reads and
    products, and what converters do, are in it; faults and deviations of what is stored are not. After a normalisation
    (``at="after_norm"``) y is what that gives. Sums are over the batch, all steps and elements. It is infinite where nothing
    differs, and minus infinity where there is no signal.

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
            if isinstance(layer, AfterNorm):
                layer.backend.read = partial(_read, layer.backend.read, sums[name])  # type: ignore[method-assign]
            else:
                layer._run = partial(_product, layer, layer._run, sums[name])  # type: ignore[method-assign]
        with torch.no_grad(), evaluating(chip), draws(chip, key):
            chip(x)
    finally:
        for layer in layers.values():
            if isinstance(layer, AfterNorm):
                del layer.backend.read
            else:
                del layer._run
    return {name.removesuffix(".layer"): _decibel(*found) for name, found in sums.items()}


def _read(read: Callable[[Tensor, int], Tensor], sums: list[float], y: Tensor, start: int) -> Tensor:
    noisy = read(y, start)
    _add(sums, y, noisy)
    return noisy


def _product(
    layer: DeployedLayer, run: Callable[..., Tensor], sums: list[float], x: Tensor, start: int, whole: bool = False
) -> Tensor:
    noisy = run(x, start, whole)
    _add(sums, Array.product(layer.array, x, layer.bias, start), noisy)
    return noisy


def _add(sums: list[float], clean: Tensor, noisy: Tensor) -> None:
    sums[0] += float(clean.double().square().sum())
    sums[1] += float((noisy.double() - clean.double()).square().sum())


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf
