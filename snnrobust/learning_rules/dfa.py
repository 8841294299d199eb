"""Direct feedback alignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, one_key
from snnrobust.learning_rules.chain import Chain, chain
from snnrobust.learning_rules.feedback import initial_weights
from snnrobust.learning_rules.gradients import InputFeedback, gradient_of
from snnrobust.learning_rules.local import block_ends, check_loss, input_layer, logits_of, pieces
from snnrobust.learning_rules.losses import LOSSES, Answer
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES

__all__ = ["DFA"]


@dataclass(frozen=True, kw_only=True)
class DFA(Supervised):
    r"""Direct feedback alignment through time: each block gets the error of the network's output by a fixed random matrix.

    .. math:: e_t = \partial L / \partial o_t, \quad \partial L / \partial h^l_t := B_l^\top e_t

    :math:`o_t` is the network's output at step t, ``[B, K]``, and :math:`h^l` the end of block l: all from one synaptic layer up
    to the next, with its neurons, normalisation and pooling. Within the block the gradient is the true one, through the
    membranes of all time steps; none goes from a block to the one before. The last block has :math:`e_t` itself.

    Args:
        loss: As of :class:`~snnrobust.learning_rules.BPTT`.

    Source: Nokland 2016, "Direct feedback alignment provides learning in deep neural networks".
    """

    name: ClassVar[str] = "DFA"
    input_feedbacks: ClassVar[tuple[InputFeedback, ...]] = get_args(InputFeedback)

    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("loss", self.loss, LOSSES)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        check_loss(self.loss, model)
        chain(model, self.name)

    def matrices(self, model: nn.Module, example: Tensor) -> dict[str, Tensor]:
        r"""B of each hidden block by the name of its synaptic layer, ``[K, *]`` with the shape of the block's end.

        Drawn from the seed, as the weights of an untrained linear classifier of that end: uniform in
        :math:`\pm 1/\sqrt{\text{features}}`. A subclass may give others.
        """
        parts = chain(model, self.name)
        *hidden, (classes,) = block_ends(model, parts, example)
        return {
            b.name: initial_weights(derive(self.seed, "direct", b.name), (classes, *shape), b.synapse.weight)
            for b, shape in zip(parts.blocks, hidden, strict=False)
        }

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        parts, matrices = chain(model, self.name), self.matrices(model, example)

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            with one_key(model):
                ends = list(pieces(parts, x))
            given, loss, error = self._error(parts, ends[-1], y, scale)
            for block in reversed(parts.blocks):  # each is freed before the error of the one before is made
                end = ends.pop()
                if end.requires_grad:  # else all of the block is frozen
                    torch.autograd.backward(end, _project(error, matrices.get(block.name), end))
            return loss, given.logits.detach()

        yield Lent(backward)

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Of the error that trains the first block."""
        parts, matrices = chain(model, self.name), self.matrices(model, x[:1])
        with input_layer(parts, input_feedback, self.seed):
            ends = list(pieces(parts, x))
            _, _, error = self._error(parts, ends[-1], y, len(x))
            return gradient_of(ends[0], x, _project(error, matrices.get(parts.blocks[0].name), ends[0]))

    def _error(self, parts: Chain, outputs: Tensor, y: Tensor, scale: float) -> tuple[Answer, Tensor, Tensor]:
        """The answer, its mean loss, and ``scale`` times the gradient of that by the network's output."""
        outputs = outputs.detach().requires_grad_()
        given = logits_of(parts, outputs)
        loss = LOSSES[self.loss](given, y)
        (error,) = torch.autograd.grad(loss * scale, outputs)
        return given, loss.detach(), error


def _project(error: Tensor, matrix: Tensor | None, end: Tensor) -> Tensor:
    """``[T, B, K]`` to the shape of a block's end; of the last block, without a matrix, as it is."""
    if matrix is None:
        return error
    return (error.to(matrix.dtype) @ matrix.flatten(1)).to(end.dtype).reshape(end.shape)


RULES[DFA.name] = DFA
