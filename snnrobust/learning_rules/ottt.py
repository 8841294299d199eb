"""Online training through time (OTTT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.learning_rules.activity import Activity
from snnrobust.learning_rules.gradients import InputFeedback, sum_of_gradients
from snnrobust.learning_rules.online import Layer, Output, online
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES

__all__ = ["OTTT"]


@dataclass(frozen=True, kw_only=True)
class OTTT(Supervised):
    r"""Backpropagation through the layers at each time step alone, with traces in place of the past.

    .. math:: \nabla_{W^l} = \sum_t \frac{\partial L_t}{\partial h^l_t} \hat a^{l-1}_t,
        \quad \hat a^{l-1}_t = \beta \hat a^{l-1}_{t-1} + s^{l-1}_t,
        \quad L_t = \tfrac{1}{T} \big[ (1 - \lambda) \mathrm{CE}(o_t, y) + \lambda \mathrm{MSE}(o_t, [k = y]) \big]

    :math:`\partial L_t / \partial h^l_t` passes through the layers above at step t, through nothing earlier. :math:`o_t` is the
    potential of the readout at step t: the network's output with ``MeanOutput``, a leaky sum of outputs with ``MeanMembrane``.
    Gradients of all steps are summed and applied once a batch (:math:`\mathrm{OTTT_A}`).

    What is neglected of the gradient of :math:`\sum_t L_t`: the path through the reset, and every path on which a spike acts on a
    later step of the layers above. One spiking layer and ``MeanOutput`` have no such path: there it is exact.

    Args:
        mse: :math:`\lambda`, share of the squared distance to one-hot targets (mean over classes) in the loss.

    Source: Xiao et al. 2022, "Online training through time for spiking neural networks".
    """

    name: ClassVar[str] = "OTTT"
    needs: ClassVar[Mapping[str, Any]] = {"norm": "none"}

    lr: float = 5e-3
    mse: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("mse", self.mse, 0.0, 1.0)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        online(model, self.name)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        net, activity = online(model, self.name), Activity(model)

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            layers, output, total = [Layer(unit, activity) for unit in net.units], Output(net), torch.zeros(())
            for s in net.frames(x):
                for layer in layers:
                    s = layer.step(s)
                loss = self._loss(output.read(s), y) / net.time_steps
                if loss.requires_grad:
                    (loss * scale).backward()
                total = total.to(loss) + loss.detach()
            return total, output.logits

        yield Lent(backward, activity=activity, online=True)

    def _loss(self, output: Tensor, y: Tensor) -> Tensor:
        checks.labels("labels", y, len(output), output.shape[1])
        loss = F.cross_entropy(output, y)
        if self.mse == 0:
            return loss
        return (1 - self.mse) * loss + self.mse * F.mse_loss(output, F.one_hot(y, output.shape[1]).to(output.dtype))

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        r""":math:`\sum_t \partial L_t / \partial x`: each step is by itself, at the first layer too."""
        net = online(model, self.name)
        layers, output = [Layer(unit) for unit in net.units], Output(net)

        def losses() -> Iterator[Tensor]:
            for s in net.frames(x):
                for layer in layers:
                    s = layer.step(s)
                yield self._loss(output.read(s), y) * (len(x) / net.time_steps)

        return sum_of_gradients(losses(), x)


RULES[OTTT.name] = OTTT
