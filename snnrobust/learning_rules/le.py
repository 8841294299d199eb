"""Local errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, one_key
from snnrobust.learning_rules.chain import Chain, chain
from snnrobust.learning_rules.feedback import initial_weights
from snnrobust.learning_rules.gradients import InputFeedback, gradient_of
from snnrobust.learning_rules.local import block_ends, input_layer, logits_of, pieces
from snnrobust.learning_rules.losses import Answer, cross_entropy
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES

__all__ = ["LE"]

Auxiliary = Literal["random", "learnt"]


@dataclass(frozen=True, kw_only=True)
class LE(Supervised):
    r"""Local errors: each hidden block learns to be classified by a linear readout of its own.

    .. math:: L_l = \mathrm{CE}\big( \tfrac{1}{T} \sum_t R_l h^l_t, y \big)

    :math:`h^l` is the end of block l: all from one synaptic layer up to the next, with its neurons, normalisation and pooling.
    The last block has the network's own output, readout and cross-entropy. Within a block the gradient is the true one, through
    the membranes of all time steps; none goes from a block to the one before. Memory is that of the largest block.

    Args:
        readout: :math:`R_l`, ``[K, features]``, is drawn from the seed as an untrained ``nn.Linear`` without bias and stays
            (``"random"``), or is trained on, beside the model (``"learnt"``; see ``History.learnt``).

    Source: Mostafa, Ramesh and Cauwenberghs 2018, "Deep supervised learning using local errors" (fixed random readouts).
    """

    name: ClassVar[str] = "LE"
    input_feedbacks: ClassVar[tuple[InputFeedback, ...]] = get_args(InputFeedback)
    input_feedback: ClassVar[InputFeedback | None] = "transpose"

    readout: Auxiliary = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("readout", self.readout, get_args(Auxiliary))

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        chain(model, self.name)

    def readouts(self, model: nn.Module, example: Tensor) -> nn.ModuleDict:
        """The readouts of the hidden blocks as they begin, by the name of the synaptic layer with / for the dot."""
        parts, made = chain(model, self.name), nn.ModuleDict()
        *hidden, (classes,) = block_ends(model, parts, example)
        for block, shape in zip(parts.blocks, hidden, strict=False):
            weight, key = block.synapse.weight, derive(self.seed, "readout", block.name)
            linear = nn.Linear(prod(shape), classes, bias=False, device="meta")
            linear.weight = nn.Parameter(
                initial_weights(key, (classes, prod(shape)), weight), requires_grad=self.readout == "learnt"
            )
            made[block.name.replace(".", "/")] = linear
        return made

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        parts, readouts = chain(model, self.name), self.readouts(model, example)

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            with one_key(model):
                for index, h in enumerate(pieces(parts, x)):
                    given = _answer(parts, readouts, index, h)
                    loss = cross_entropy(given, y)
                    if loss.requires_grad:  # else all of the block is frozen
                        (loss * scale).backward()
            return loss.detach(), given.logits.detach()

        yield Lent(backward, learnt=readouts if self.learns_beside else nn.Module())

    @property
    def learns_beside(self) -> bool:
        return self.readout == "learnt"

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Of the local loss of the first block."""
        parts, readouts = chain(model, self.name), self.readouts(model, x[:1]).requires_grad_(False)
        if self.learns_beside:
            _load(readouts, learnt)
        with input_layer(parts, input_feedback, self.seed):
            first = next(pieces(parts, x))
            return gradient_of(cross_entropy(_answer(parts, readouts, 0, first), y) * len(x), x)


def _answer(parts: Chain, readouts: nn.ModuleDict, index: int, h: Tensor) -> Answer:
    """What the readout of a block makes of its end; of the last block, the network's own."""
    if index == len(readouts):
        return logits_of(parts, h)
    mean = (h.mean(0) if parts.spiking else h).flatten(1)
    return Answer(list(readouts.values())[index](mean), None)


def _load(readouts: nn.ModuleDict, learnt: Mapping[str, Tensor] | None) -> None:
    if learnt is None:
        raise ValueError(
            "the readouts of this rule are learnt, and only the training knows them: pass learnt=history.learnt"
        )
    try:
        readouts.load_state_dict(dict(learnt))
    except RuntimeError as error:
        raise ValueError(f"learnt does not hold the readouts of this model: {error}") from error


RULES[LE.name] = LE
