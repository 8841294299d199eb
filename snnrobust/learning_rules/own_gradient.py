"""The input gradient of a rule, which need not be that of the model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import BluntGradientWarning
from snnrobust.draws import evaluating, one_key
from snnrobust.learning_rules.gradients import InputFeedback

__all__ = ["OwnGradient"]


class OwnGradient:
    """What all rules that train by minibatches have in common when asked for it: a subclass implements ``_input_gradient``."""

    name: ClassVar[str]
    input_feedbacks: ClassVar[tuple[InputFeedback, ...]] = ()
    """How the rule's own input gradient may pass the first layer, where there is a choice."""
    input_feedback: ClassVar[InputFeedback | None] = None
    """The default of that choice; without one it has to be made."""

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        """Raise TypeError or ValueError if the rule cannot train ``model``, and say what to change."""

    def refuse_gradient(self, model: nn.Module, example: Tensor) -> None:
        """Raise TypeError or ValueError if :meth:`lend` cannot give the gradient of ``model`` as it is now."""
        self.refuse(model, example)

    @property
    def learns_beside(self) -> bool:
        """Whether ``history.learnt`` is needed for the rule's gradient."""
        return False

    def input_gradient(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        input_feedback: InputFeedback | None = None,
        learnt: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The rule's own gradient of each sample's loss by ``x``, like ``x``. It need not be that of the model.

        Args:
            model: Looked at in eval mode; it stays as it is. Its draws are those of a :func:`~snnrobust.draws.draws` around.
            x, y: Inputs ``[B, *]`` and labels ``[B]``.
            input_feedback: How the error passes the first layer, of rules with random feedback, whose training never asks: by
                ``"random"`` weights of its shape, or by the ``"transpose"`` of its own. FA and DFA have to be told; LE takes the
                transpose.
            learnt: ``history.learnt``, of a rule that learns something beside the model.

        Raises:
            TypeError, ValueError: the rule has none, or cannot train the model; bad inputs or labels; an argument that is missing
                or not of this rule; no differentiable path to ``x``.

        Warns:
            BluntGradientWarning: it is exactly zero for all samples.
        """
        checks.module("model", model)
        checks.pixels("x", x, bounds=(-math.inf, math.inf))
        checks.labels("y", y, len(x))
        if type(self)._input_gradient is OwnGradient._input_gradient:
            self._input_gradient(model, x, y, "transpose", None)  # which says why there is none
        feedback = self._chosen(input_feedback)
        if learnt and not self.learns_beside:
            raise ValueError(
                f"{self.name} as it is set learns nothing beside the model, but learnt has {', '.join(learnt)}: leave it out"
            )
        self.refuse_gradient(model, x[:1])
        with torch.enable_grad(), evaluating(model), one_key(model):
            found = self._input_gradient(model, x.detach().requires_grad_(), y, feedback, learnt)
        if found.shape != x.shape:
            raise RuntimeError(f"{self.name} gave a gradient of shape {tuple(found.shape)} for x of {tuple(x.shape)}")
        if not found.any():
            warnings.warn(
                f"{self.name}: the input gradient is exactly zero for all {len(x)} samples. Does an encoder or quantizer pass no "
                "gradient? See evaluation.diagnose",
                BluntGradientWarning,
                stacklevel=2,
            )
        return found

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """The gradient itself, of checked arguments; ``x`` requires its gradient."""
        raise TypeError(
            f"{self.name} has no input gradient of its own: use the model's true one, attacks.Backprop() or BPTT().input_gradient"
        )

    def _chosen(self, given: InputFeedback | None) -> InputFeedback:
        if not self.input_feedbacks:
            if given is not None:
                raise ValueError(f"{self.name} has no choice of input_feedback, got {given!r}: leave it out")
            return "transpose"
        if given is None and self.input_feedback is None:
            options = " or ".join(repr(option) for option in self.input_feedbacks)
            raise ValueError(
                f"{self.name} never sends an error through the first layer, so input_feedback has to be chosen: give {options}"
            )
        chosen = self.input_feedback if given is None else given
        checks.choice("input_feedback", chosen, self.input_feedbacks)  # type: ignore[arg-type]
        return chosen  # type: ignore[return-value]
