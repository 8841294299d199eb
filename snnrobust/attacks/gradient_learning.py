"""Gradient sources for victims of any learning rule: the signal that trained them, and the true gradient in spite of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import Around, Backprop, GradientSource, Surrogate, registered, usable
from snnrobust.attacks.losses import Loss, is_targeted
from snnrobust.draws import Stream, draws
from snnrobust.neurons import surrogate as surrogates

__all__ = ["LearningSignal", "Rule", "TrueTranspose"]

_SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Rule(Protocol):
    """What a source needs of a learning rule: all of ``learning_rules`` that train by minibatches have it."""

    def input_gradient(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        input_feedback: Any = ...,
        learnt: Mapping[str, Tensor] | None = ...,
    ) -> Tensor: ...


@registered
@dataclass(frozen=True)
class LearningSignal:
    r"""The victim's own learning signal, carried on to the input: what an attacker gets who differentiates as the rule learns.

    .. math:: g = \pm \tilde\nabla_x L_\text{rule}(x, y), \quad + \text{ away from a label}, - \text{ towards a target}

    :math:`L_\text{rule}` is the loss of the rule, at its own place (the first block's local loss, of LE), whatever the attack
    raises: the attack's loss decides the sign alone. Robustness against this gradient is none: where the rule sends errors by
    other weights than those of the network, it is not the network's gradient. Ask for :class:`TrueTranspose` beside it.

    Args:
        rule: That trained the victim, with the same seed, since the seed decides its random weights.
        input_feedback: How the error passes the first layer, which no rule with random feedback ever asks in training: by
            ``"random"`` weights, or by the ``"transpose"`` of the layer's own. FA and DFA have to be told.
        learnt: ``history.learnt``, of a rule that learns something beside the model.

    Raises:
        TypeError, ValueError: the rule has no gradient by the input, or cannot train the model; see its ``input_gradient``.
    """

    spiking: ClassVar[bool] = False

    rule: Rule
    input_feedback: str | None = None
    learnt: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not callable(getattr(self.rule, "input_gradient", None)) or isinstance(self.rule, type):
            raise TypeError(
                f"rule must be a learning rule with input_gradient, such as DFA(seed=0), got {self.rule!r:.80}"
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with draws(model, stream.key, stream.sample_ids):
            gradient = self.rule.input_gradient(model, x, y, input_feedback=self.input_feedback, learnt=self.learnt)
        with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
            logits = checks.call(model, x, y)
        return usable(-gradient if is_targeted(loss) else gradient), logits


@registered
@dataclass(frozen=True)
class TrueTranspose(Around):
    r"""The victim's own weights and their true transposes, whatever rule trained it: :math:`\delta_x = W^\top \delta_y`.

    A trained model keeps nothing of its rule, so this is ``source``, and it refuses a model that has other weights on the way
    back. An attacker who knows the weights is not bound by the backward pass of the training.

    Args:
        surrogate: Of all neurons; default their own, that of the training.
        source: What is called.

    Raises:
        ValueError: a linear layer or convolution has been lent another forward pass, as feedback alignment does while it trains.
    """

    spiking: ClassVar[bool] = False

    surrogate: surrogates.Surrogate | None = None
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        if self.surrogate is not None and not isinstance(self.surrogate, surrogates.Surrogate):
            raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {self.surrogate!r}")
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        for name, m in model.named_modules():
            if isinstance(m, _SYNAPTIC) and "forward" in vars(m):
                raise ValueError(
                    f"{name or 'the model'} ({type(m).__name__}) has a forward pass lent to it, so its error may go back through "
                    "other weights than its own: attack the model outside of the context of a learning rule"
                )
        source = self.source if self.surrogate is None else Surrogate(self.surrogate, self.source)
        return source(model, x, y, loss, stream)
