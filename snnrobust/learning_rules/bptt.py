"""Backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers import Chunked
from snnrobust.learning_rules.gradients import InputFeedback, gradient_of
from snnrobust.learning_rules.losses import LOSSES, answer
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import surrogate as surrogates
from snnrobust.temporal import Temporal

__all__ = ["BPTT"]


@dataclass(frozen=True, kw_only=True)
class BPTT(Supervised):
    r"""Backpropagation through time with surrogate gradients. For a network without time it is ordinary backpropagation.

    Args:
        loss: ``"cross_entropy"`` of the logits, ``"tet"`` (of each step's output) or ``"spike_count"``; see
            :mod:`snnrobust.learning_rules.losses`.
        surrogate: Trains in place of the neurons' own, which they have again afterwards.
        truncate: Truncated BPTT: the gradient does not pass from one piece of so many steps to the one before. The pieces are
            computed again in the backward pass, so of hidden activations one piece is kept at a time; what goes into the network,
            what comes out, and one state a piece grow with T.

    Source: Neftci, Mostafa and Zenke 2019.
    """

    name: ClassVar[str] = "BPTT"

    loss: str = "cross_entropy"
    surrogate: surrogates.Surrogate | None = None
    truncate: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("loss", self.loss, LOSSES)
        if self.surrogate is not None and not isinstance(self.surrogate, surrogates.Surrogate):
            raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {self.surrogate!r}")
        if self.truncate is not None:
            checks.count("truncate", self.truncate)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        spiking = isinstance(model, SpikingClassifier)
        if not spiking and self.loss != "cross_entropy":
            raise ValueError(f"loss {self.loss!r} is of outputs over time, and the model has none: use 'cross_entropy'")
        if self.truncate is None:
            return
        if not isinstance(model, SpikingClassifier):
            raise ValueError("truncate cuts the gradient in time, and the model has none: leave it out")
        if self.truncate < model.time_steps:
            try:
                Chunked(model.network, self.truncate, truncated=True).refuse(True)
            except RuntimeError as error:
                raise ValueError(f"truncate={self.truncate} does not fit the model: {error}") from error

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        criterion, network = LOSSES[self.loss], self._network(model)

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            given = answer(model, x, network)
            loss = criterion(given, y)
            kind = x.device.type  # backwards, types are those of the forward pass
            with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
                (loss * scale).backward()
            return loss.detach(), given.logits.detach()

        with nullcontext() if self.surrogate is None else surrogates.override(model, self.surrogate):
            yield Lent(backward)

    def _network(self, model: nn.Module) -> Temporal | None:
        """What stands for the network of ``model`` while it trains."""
        if self.truncate is None:
            return None
        assert isinstance(model, SpikingClassifier)  # as refuse() demands
        return Chunked(model.network, self.truncate, truncated=True)

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Through the surrogate that trains; not truncated."""
        with nullcontext() if self.surrogate is None else surrogates.override(model, self.surrogate):
            return gradient_of(LOSSES[self.loss](answer(model, x), y) * len(x), x)


RULES[BPTT.name] = BPTT
