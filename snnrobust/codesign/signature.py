"""What a chip answers to a few images: the signature from which its accuracy and its knobs are told."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.codesign.knobs import sites
from snnrobust.draws import derive, device_of, draws, evaluating
from snnrobust.temporal import Temporal

__all__ = ["Values", "compact_images", "signature", "signatures"]

Values = NDArray[np.float64]


def signature(chip: nn.Module, images: Tensor, *, pooled: int = 64, key: int = 0) -> Values:
    r"""Outputs of all layers of neurons and of the last layer for a few images, in one vector, float64 ``[S]``.

    Of spiking layers it is the mean over time, of feature maps with more than ``pooled`` numbers the mean over height and width;
    what is larger still is averaged to ``pooled`` groups of neighbouring numbers.

    Args:
        chip: Any model with neurons that :func:`~snnrobust.codesign.knobs.sites` finds.
        images: ``[N, *]`` in [0, 1], the compact test.
        pooled: Most numbers of a layer and an image.
        key: Of the draws, where the chip draws any at inference.

    Source: "Learning assisted post-manufacture testing and tuning of RRAM-based DNNs for yield recovery" (DATE 2024); the pooling
    is ours.
    """
    checks.count("pooled", pooled)
    checks.pixels("images", images)
    seen = _Outputs(len(images))
    with ExitStack() as hooks, torch.no_grad(), evaluating(checks.module("chip", chip)):
        for name, site in sites(chip).items():
            hooks.callback(site.register_forward_hook(seen.hook(name)).remove)
        with draws(chip, key):
            logits = checks.call(chip, images.to(device_of(chip)), torch.zeros(len(images), dtype=torch.int64))
    blocks = [_pool(total / times, pooled) for total, times in seen.layers.values()] + [logits]
    vector = torch.cat([block.double().cpu().flatten() for block in blocks]).numpy()
    if not np.isfinite(vector).all():
        raise ValueError(
            "the chip puts out NaN or infinity for the test images: it is defect, sort it out before tuning"
        )
    return vector


class _Outputs:
    """Sums over time of what layers put out, by layer and shape: a module may be called more than once."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.layers: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}

    def hook(self, name: str) -> Any:
        def seen(module: nn.Module, args: object, output: Tensor) -> None:
            y = output
            if (
                not isinstance(module, Temporal) and output.shape[0] % self.batch == 0
            ):  # else [T, B, *], in a neuron's wrapper
                y = output.reshape(-1, self.batch, *output.shape[1:])
            key = (name, tuple(y.shape[1:]))
            total, times = self.layers.get(key, (torch.zeros(()), 0))
            self.layers[key] = (total.to(y.device) + y.sum(0), times + y.shape[0])

        return seen


def _pool(y: Tensor, most: int) -> Tensor:
    """``[N, *]`` to ``[N, F]`` with F at most ``most``."""
    if y[0].numel() > most and y.dim() > 2:
        y = y.flatten(2).mean(2)
    y = y.flatten(1)
    return F.adaptive_avg_pool1d(y[:, None], most)[:, 0] if y.shape[1] > most else y


def signatures(chips: Iterable[nn.Module], images: Tensor, *, pooled: int = 64, key: int = 0) -> Values:
    """A :func:`signature` a row, ``[n, S]``.

    Raises:
        ValueError: chips of different models.
    """
    rows = [signature(chip, images, pooled=pooled, key=key) for chip in chips]
    if not rows:
        raise ValueError("chips is empty: give at least one chip, such as deploy(model, backend, seed=1)")
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"chip {index} gives a signature of {len(row)} numbers, chip 0 one of {len(rows[0])}: they are not chips of one "
                "model"
            )
    return np.stack(rows)


Choice = Literal["variance", "random"]


def compact_images(
    chips: Iterable[nn.Module], pool: Tensor, n: int, *, choice: Choice = "variance", seed: int = 0
) -> Tensor:
    r"""``n`` images out of ``pool`` for :func:`signature`.

    ``"variance"``: those whose logits differ most from chip to chip, the largest :math:`\sum_k \operatorname{Var}_c z_{ck}`;
    ``"random"``: any, drawn by ``seed``; then no chip is looked at.

    Args:
        chips: On which the variance is measured, at least two; none of those that will be judged.
        pool: Candidates ``[N, *]`` in [0, 1].
    """
    checks.choice("choice", choice, get_args(Choice))
    checks.pixels("pool", pool)
    if checks.count("n", n) > len(pool):
        raise ValueError(f"n must be at most {len(pool)}, the images of pool, got {n}: give a larger pool")
    if choice == "random":
        order = np.random.default_rng(derive(seed, "compact images")).permutation(len(pool))
        return pool[torch.from_numpy(np.sort(order[:n]))]
    total = square = torch.zeros(())
    count = 0
    for chip in chips:
        with torch.no_grad(), evaluating(chip), draws(chip, derive(seed, "compact images", count)):
            y = checks.call(chip, pool.to(device_of(chip)), torch.zeros(len(pool), dtype=torch.int64)).double().cpu()
        total, square, count = total + y, square + y * y, count + 1
    if count < 2:
        raise ValueError(f"choice='variance' needs at least two chips, got {count}: give more, or choice='random'")
    variance = (square / count - (total / count) ** 2).sum(1)
    return pool[variance.argsort(descending=True, stable=True)[:n].sort().values]
