"""What the rules have in common that train a network piece by piece, each by an error of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from snnrobust.draws import draws, evaluating
from snnrobust.learning_rules.chain import Chain
from snnrobust.learning_rules.feedback import carries_feedback, feedback_weights, through
from snnrobust.learning_rules.gradients import InputFeedback
from snnrobust.learning_rules.losses import Answer
from snnrobust.models import SpikingClassifier

__all__ = ["block_ends", "check_loss", "input_layer", "logits_of", "pieces"]


def check_loss(loss: str, model: nn.Module) -> None:
    if loss != "cross_entropy" and not isinstance(model, SpikingClassifier):
        raise ValueError(f"loss {loss!r} is of outputs over time, and the model has none: use 'cross_entropy'")


def pieces(parts: Chain, x: Tensor) -> Iterator[Tensor]:
    """What each block gives, ``[T, B, *]``, or ``[B, *]`` of an ordinary network, with no gradient from one to the one before.

    The last is the network's output. With the first go the encoder and what stands before the first synaptic layer.
    """
    h = x if parts.encoder is None else parts.encoder(x)
    for index, block in enumerate(parts.blocks):
        h = parts.run((*parts.head, *block.modules) if index == 0 else block.modules, h)
        yield h
        h = h.detach()


def logits_of(parts: Chain, outputs: Tensor) -> Answer:
    return Answer(outputs, None) if parts.readout is None else Answer(parts.readout(outputs), outputs)


def block_ends(model: nn.Module, parts: Chain, example: Tensor) -> list[tuple[int, ...]]:
    """The shape of one sample at the end of each block, in one time step; ``example`` is ``[1, *]``."""
    axes = 2 if parts.spiking else 1
    with torch.no_grad(), evaluating(model), draws(model, 0):
        return [tuple(h.shape[axes:]) for h in pieces(parts, example)]


@contextmanager
def input_layer(parts: Chain, how: InputFeedback, seed: int) -> Iterator[None]:
    """Inside, the error goes to the input through the first layer as ``how`` says.

    Raises:
        TypeError: the first layer is of its own kind, and ``how`` is ``"random"``.
    """
    first = parts.blocks[0]
    if how == "random" and not carries_feedback(first.synapse):
        raise TypeError(
            f"{first.name} ({type(first.synapse).__name__}) is not a plain linear layer or convolution, so that it has no "
            'random feedback: use input_feedback="transpose"'
        )
    with (
        nullcontext()
        if how == "transpose"
        else through({first.synapse: lambda weight: feedback_weights(seed, first.name, weight)}, learning=False)
    ):
        yield
