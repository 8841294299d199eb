"""What a training lowers: of the logits, or of the network's output at each time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import one_key
from snnrobust.models import SpikingClassifier
from snnrobust.temporal import Temporal

__all__ = ["LOSSES", "Answer", "answer", "cross_entropy", "spike_count", "tet"]


class Answer(NamedTuple):
    """What a model gave: logits ``[B, K]``, and of a spiking one the outputs that they are read from, ``[T, B, K]``."""

    logits: Tensor
    outputs: Tensor | None


def answer(model: nn.Module, x: Tensor, network: Temporal | None = None) -> Answer:
    """``model(x)``; ``network`` may stand for the network of a spiking one."""
    if not isinstance(model, SpikingClassifier):
        return Answer(model(x), None)
    with one_key(model):
        outputs = model.outputs(x) if network is None else network(model.encoder(x))
        return Answer(model.readout(outputs), outputs)


def cross_entropy(given: Answer, y: Tensor) -> Tensor:
    r""":math:`-\log \operatorname{softmax}(z)_y` of the logits; with ``MeanOutput``, of the mean output over time."""
    _check(given, y)
    return F.cross_entropy(given.logits, y)


def tet(given: Answer, y: Tensor) -> Tensor:
    r"""Temporal efficient training: the cross-entropy of each step's output, :math:`\tfrac{1}{T} \sum_t \mathrm{CE}(o_t, y)`.

    The regulariser of the paper, a distance of each output to the threshold, is not in it, and the readout has no part in it:
    logits of all readouts here are sums of the outputs with weights that are not negative, so they are right where outputs are.

    Source: Deng et al. 2022, "Temporal efficient training of spiking neural network via gradient re-weighting".
    """
    outputs = _check(given, y, "tet")
    return F.cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)))


def spike_count(given: Answer, y: Tensor) -> Tensor:
    r"""Squared distance of the mean output over time to 1 for the class and 0 for the others, mean over classes and batch.

    .. math:: \tfrac{1}{K} \sum_k \big( \tfrac{1}{T} \sum_t s_{t,k} - [k = y] \big)^2

    For networks whose last layer spikes, with a readout that counts or averages. snnTorch's ``mse_count_loss()`` is T times this.
    """
    outputs = _check(given, y, "spike_count")
    rates = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).mean(0)
    return F.mse_loss(rates, F.one_hot(y, rates.shape[1]).to(rates.dtype))


LOSSES: dict[str, Callable[[Answer, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "spike_count": spike_count,
    "tet": tet,
}
"""Mean losses by name."""


def _check(given: Answer, y: Tensor, loss: str = "") -> Tensor:
    checks.labels("labels", y, len(given.logits), given.logits.shape[1] if given.logits.dim() == 2 else None)
    if loss and given.outputs is None:
        raise ValueError(
            f"loss {loss!r} is of the outputs over time, and this network has none: use loss='cross_entropy'"
        )
    return torch.empty(0) if given.outputs is None else given.outputs
