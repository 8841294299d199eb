"""Feedback alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.learning_rules.chain import SYNAPTIC, holds_matrix
from snnrobust.learning_rules.feedback import carries_feedback, feedback_weights, first_synapses, through
from snnrobust.learning_rules.gradients import InputFeedback, gradient_of
from snnrobust.learning_rules.local import check_loss
from snnrobust.learning_rules.losses import LOSSES, answer
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES

__all__ = ["FA"]

Feedback = Literal["random", "sign", "transpose"]


@dataclass(frozen=True, kw_only=True)
class FA(Supervised):
    r"""Feedback alignment through time: backpropagation whose error passes synaptic layers by fixed random weights.

    .. math:: \delta_x = B^\top \delta_y \text{ instead of } W^\top \delta_y, \quad \nabla W = \sum_t \delta_{y,t} x_t^\top

    A convolution sends the error through the transposed convolution with the kernel B. Neurons, normalisation and pooling have
    their true derivative, so the error also goes back in time. The weights of recurrent spiking layers have a B too. The first
    layer needs none, but to give a gradient by the input; parameters before it are trained through its own weight.

    Args:
        loss: As of :class:`~snnrobust.learning_rules.BPTT`.
        feedback: ``"random"``: B is drawn from the seed as weights of an untrained layer are, uniform in
            :math:`\pm 1/\sqrt{\text{fan-in}}`; ``"sign"``: with those magnitudes and the signs of the weights as they are now;
            ``"transpose"``: B = W, which is BPTT.

    Source: Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning"; with
    ``"sign"``, Liao, Leibo and Poggio 2016, "How important is weight transport in backpropagation?"
    """

    name: ClassVar[str] = "FA"
    input_feedbacks: ClassVar[tuple[InputFeedback, ...]] = get_args(InputFeedback)

    loss: str = "cross_entropy"
    feedback: Feedback = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("loss", self.loss, LOSSES)
        checks.choice("feedback", self.feedback, get_args(Feedback))

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        check_loss(self.loss, model)
        synapses = 0
        for name, m in model.named_modules():
            if carries_feedback(m):
                synapses += 1
            elif isinstance(m, SYNAPTIC) or holds_matrix(m):
                raise TypeError(
                    f"FA has feedback for nn.Linear and nn.Conv1d, 2d and 3d, and {name or 'the model'} ({type(m).__name__}) "
                    "holds weights of another kind: use a network without it, such as a recurrent spiking one (not LSTM), or "
                    "train this one by BPTT"
                )
        if not synapses:
            raise TypeError("FA found no nn.Linear or nn.Conv layer to train")

    def matrices(self, model: nn.Module) -> dict[str, Tensor]:
        """The random B of each synaptic layer by its name, in the shape of its weight."""
        return {
            n: feedback_weights(self.seed, n, m.weight) for n, m in model.named_modules() if isinstance(m, SYNAPTIC)
        }

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            given = answer(model, x)
            loss = LOSSES[self.loss](given, y)
            (loss * scale).backward()
            return loss.detach(), given.logits.detach()

        with self._through(model, example):
            yield Lent(backward)

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        with self._through(model, x[:1], input_feedback):
            return gradient_of(LOSSES[self.loss](answer(model, x), y) * len(x), x)

    def _through(
        self, model: nn.Module, example: Tensor, at_input: InputFeedback | None = None
    ) -> AbstractContextManager[None]:
        """``at_input`` is that of the first layer, for a gradient by the input."""
        feedback: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        first, random = first_synapses(model, example), self.matrices(model)
        for name, m in model.named_modules():
            if name in random and not (name in first and at_input != "random"):
                feedback[m] = partial(_BACK["random" if name in first else self.feedback], random[name])
        return through(feedback, learning=at_input is None)


_BACK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "random": lambda random, weight: random,
    "sign": lambda random, weight: random.abs() * weight.sign(),
    "transpose": lambda random, weight: weight,
}


RULES[FA.name] = FA
