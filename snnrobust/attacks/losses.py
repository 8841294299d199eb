"""What an attacker raises: functions of logits and labels, one number a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss", "Targeted", "cross_entropy", "dlr", "dlr_targeted", "is_targeted", "margin", "targeted"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(logits [B, K], y [B]) -> loss [B]``, which an attacker raises."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`-\log \operatorname{softmax}(z)_y`, per sample."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`\max_{j \ne y} z_j - z_y`, per sample: positive where the prediction is wrong (Carlini and Wagner 2017)."""
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Difference of logits ratio: :math:`\big( \max_{j \ne y} z_j - z_y \big) / (z_{\pi_1} - z_{\pi_3})`, per sample.

    :math:`\pi` sorts the logits, largest first; scaling or shifting them changes nothing. Spike counts tie: where the first and
    the third are equal, the denominator is the smallest difference that there is between the first and another logit, and where
    all are equal 1. With two classes the second takes the place of the third, and the denominator is not differentiated: the
    ratio is constant.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks"; the rule for ties is ours.
    """
    return _ratio(margin(logits, y), logits, (2,))


def dlr_targeted(logits: Tensor, target: Tensor) -> Tensor:
    r""":math:`\big( z_t - \max_{j \ne t} z_j \big) / \big( z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2 \big)`, per sample.

    Ties as in :func:`dlr`. With fewer than four classes the last stands for those that are missing, and the denominator is not
    differentiated: with three the ratio would be constant for the third.
    The published loss has :math:`z_y` in place of the maximum: the same, as long as :math:`y` is predicted.
    """
    return _ratio(-margin(logits, target), logits, (2, 3))


def _ratio(difference: Tensor, logits: Tensor, ranks: tuple[int, ...]) -> Tensor:
    order = logits.sort(dim=1, descending=True).values
    last = logits.shape[1] - 1
    behind = sum((order[:, min(rank, last)] for rank in ranks), torch.zeros_like(order[:, 0])) / len(ranks)
    gaps = order[:, :1] - order  # to the best, the first of them 0
    smallest = torch.where(gaps > 0, gaps, torch.inf).amin(1)
    tied = torch.where(smallest.isinf(), 1.0, smallest)
    scale = torch.where(order[:, 0] > behind, order[:, 0] - behind, tied)
    return difference / (scale if last >= ranks[-1] else scale.detach())


@dataclass(frozen=True)
class Targeted:
    r""":math:`-L(z, t)`: what falls with ``loss`` at the target rises."""

    loss: Loss

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return -self.loss(logits, target)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
"""By name, as an experiment file writes them."""


def targeted(loss: Loss) -> Loss:
    """The loss of ``(logits, target)`` that an attack raises in order to be classified as the target."""
    return dlr_targeted if loss is dlr else Targeted(loss)


def is_targeted(loss: Loss) -> bool:
    """Whether ``loss`` rises towards the label that it is given, instead of away from it."""
    return loss is dlr_targeted or isinstance(loss, Targeted)
