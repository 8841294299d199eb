"""Deep continuous local learning (DECOLLE)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, keyed
from snnrobust.learning_rules.activity import Activity
from snnrobust.learning_rules.gradients import InputFeedback, sum_of_gradients
from snnrobust.learning_rules.online import Layer, Online, Output, online
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES

__all__ = ["DECOLLE"]

Loss = Literal["smooth_l1", "cross_entropy"]


@dataclass(frozen=True, kw_only=True)
class DECOLLE(Supervised):
    r"""Each layer learns at each step from a fixed random readout of its own spikes; no gradient passes between layers.

    .. math:: L = \tfrac{1}{T} \sum_t \Big[ \mathrm{CE}(o_t, y) + \sum_l L^l\big(G^l s^l_t + g^l, y\big) \Big],
        \quad \nabla_{W^l} = \tfrac{1}{T} \sum_t \frac{\partial L^l_t}{\partial s^l_t} \sigma'(h^l_t) \, \hat a^{l-1}_t

    with traces :math:`\hat a_t = \beta \hat a_{t-1} + s_t`. :math:`s^l` is what the layer passes on (pooled, dropped), flat. The
    last layer is the network's own classifier: its loss is of the readout's potential :math:`o_t` and reaches its weights alone.

    The path through the reset is neglected. The paper's neurons have a synaptic current too and another reset; ours are the
    model's. Its regularisation of firing rates is not in it.

    Args:
        loss: :math:`L^l` of a hidden layer: ``"cross_entropy"``, or ``"smooth_l1"``, the smoothed absolute distance to one-hot
            targets that the authors' programs take.
        amplitude: G and g are uniform within plus and minus amplitude :math:`/ \sqrt{F}`, F the values that the layer
            passes on. The authors' programs have 0.5, with which the small networks of the documentation learn less.

    Source: Kaiser, Mostafa and Neftci 2020, "Synaptic plasticity dynamics for deep continuous local learning (DECOLLE)".
    """

    name: ClassVar[str] = "DECOLLE"
    needs: ClassVar[Mapping[str, Any]] = {"norm": "none"}

    lr: float = 5e-3
    loss: Loss = "smooth_l1"
    amplitude: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("loss", self.loss, get_args(Loss))
        checks.number("amplitude", self.amplitude, 0.0, exclusive_low=True)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        online(model, self.name)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        net, activity = online(model, self.name), Activity(model)
        readouts: dict[str, tuple[Tensor, Tensor]] = {}

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            layers, output, total = [Layer(unit, activity) for unit in net.units], Output(net), torch.zeros(())
            for s in net.frames(x):
                given: list[Tensor] = []
                for layer in layers:
                    s = layer.step(s)
                    given.append(s)
                    s = s.detach()
                given[-1] = output.read(given[-1])
                for loss in self._losses(net, given, y, readouts):
                    if loss.requires_grad:
                        (loss * (scale / net.time_steps)).backward()
                    total = total.to(loss) + loss.detach() / net.time_steps
            return total, output.logits

        yield Lent(backward, activity=activity, online=True)

    def _losses(
        self, net: Online, given: list[Tensor], y: Tensor, readouts: dict[str, tuple[Tensor, Tensor]]
    ) -> Iterator[Tensor]:
        """Of each hidden layer, and of the classifier; ``readouts`` remembers what is drawn."""
        classes = given[-1].shape[1]
        checks.labels("labels", y, len(given[-1]), classes)
        for unit, s in zip(net.units[:-1], given[:-1], strict=True):
            features = s.flatten(1)
            if unit.name not in readouts:
                readouts[unit.name] = self._readout(unit.name, features, classes)
            yield self._local(F.linear(features, *readouts[unit.name]), y)
        yield F.cross_entropy(given[-1], y)

    def _local(self, output: Tensor, y: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return F.cross_entropy(output, y)
        return F.smooth_l1_loss(output, F.one_hot(y, output.shape[1]).to(output.dtype))

    def _readout(self, name: str, features: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """G ``[K, F]`` and g ``[K]``, decided by the seed and the layer's name."""
        count = features.shape[1]
        with keyed(derive(self.seed, "feedback", name)):
            drawn = torch.rand(classes, count + 1, dtype=torch.float64) * 2 - 1
        drawn = (drawn * (self.amplitude / math.sqrt(count))).to(features)
        return drawn[:, :-1], drawn[:, -1]

    def _input_gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, input_feedback: InputFeedback, learnt: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Of the loss at the first layer, the only one that reaches it; each step by itself, as the rule learns."""
        net = online(model, self.name)
        layer, output, classes = Layer(net.units[0]), Output(net), _classes(net)

        def losses() -> Iterator[Tensor]:
            readout: tuple[Tensor, Tensor] | None = None
            for frame in net.frames(x):
                s = layer.step(frame)
                if len(net.units) == 1:
                    loss = F.cross_entropy(output.read(s), y)
                else:
                    readout = self._readout(net.units[0].name, s.flatten(1), classes) if readout is None else readout
                    loss = self._local(F.linear(s.flatten(1), *readout), y)
                yield loss * (len(x) / net.time_steps)

        checks.labels("y", y, len(x), classes)
        return sum_of_gradients(losses(), x)


def _classes(net: Online) -> int:
    """How many the network tells apart."""
    last = net.units[-1].synapse
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


RULES[DECOLLE.name] = DECOLLE
