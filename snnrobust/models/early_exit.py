"""Input-adaptive early exit: each sample stops as soon as its running output is confident."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import evaluating
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.models.truncation import check_classifier

__all__ = ["EarlyExit", "confident", "exit_steps"]


class EarlyExit(nn.Module):
    r"""The running logits of ``model`` at the first time step at which they are confident, ``[B, *]`` to ``[B, K]``:

    .. math:: z = z_\tau, \quad \tau = \min \{ t : \max_k \operatorname{softmax}(z_t)_k \ge c \ \text{or}\ t = T \}.

    Each sample has its own :math:`\tau`; the model stops once all of the batch have exited. Gradients are those of
    :math:`z_\tau`; :math:`\tau` is not differentiated, so an attack on accuracy works, but none on the number of steps.

    What ``confidence`` means depends on the scale of the readout: ``MeanOutput`` averages, ``MeanMembrane`` grows with t until
    the leak balances it, ``SpikeCount`` grows with t, so it is ever surer without knowing more. Choose it from
    :func:`~snnrobust.models.exit_curve` of the same model, on data that you do not report.

    Args:
        model: In eval mode, which this module takes over.
        confidence: c in [0, 1]; 0 exits at the first step.

    Raises:
        RuntimeError: called in training mode.
        ValueError: NaN or infinity in running logits.
    """

    def __init__(self, model: SpikingClassifier, confidence: float) -> None:
        super().__init__()
        check_classifier(model)
        self.model = model
        self.confidence = checks.number("confidence", confidence, 0.0, 1.0)
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.model.training:
            raise RuntimeError("EarlyExit is for inference: train the model itself, and call eval() before this")
        stream = confident(self.model.stream(x))
        logits, sureness = next(stream)
        exited = sureness >= self.confidence
        while not exited.all() and (following := next(stream, None)) is not None:
            running, sureness = following
            logits = torch.where(exited[:, None], logits, running)
            exited = exited | (sureness >= self.confidence)
        return logits

    def extra_repr(self) -> str:
        return f"confidence={self.confidence}"


def exit_steps(model: SpikingClassifier, x: Tensor, confidence: float) -> Tensor:
    """The step, 1 to T, at which :class:`EarlyExit` stops for each sample, int64 ``[B]``; in eval mode, without gradient."""
    check_classifier(model)
    checks.number("confidence", confidence, 0.0, 1.0)
    with torch.no_grad(), evaluating(model):
        stream = confident(model.stream(x))
        _, sureness = next(stream)
        exited = sureness >= confidence
        steps = torch.ones_like(exited, dtype=torch.int64)
        while not exited.all() and (following := next(stream, None)) is not None:
            steps += ~exited
            exited = exited | (following[1] >= confidence)
    return steps


def confident(stream: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Running logits ``[B, K]``, each with :math:`\max_k \operatorname{softmax}(z)_k` ``[B]`` in float64, without gradient."""
    for t, logits in enumerate(stream, 1):
        if logits.dim() != 2:
            raise ValueError(f"the model must return logits [B, K], got shape {tuple(logits.shape)}")
        confidence = logits.detach().double().softmax(1).amax(1)
        if confidence.isnan().any():
            raise ValueError(f"the running logits have NaN or infinity at time step {t}: no confidence can be told")
        yield logits, confidence
