"""Eligibility propagation (e-prop)."""

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
from snnrobust.kernels.lif import state_dtype
from snnrobust.layers import Dropout
from snnrobust.learning_rules.activity import Activity
from snnrobust.learning_rules.online import Layer, Online, Output, Unit, online
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES
from snnrobust.neurons import ALIF, IF, LIF, Recurrent

__all__ = ["EProp"]

Feedback = Literal["random", "symmetric"]
_ELEMENTWISE = (nn.Flatten, nn.Identity, nn.Dropout, Dropout)


@dataclass(frozen=True, kw_only=True)
class EProp(Supervised):
    r"""Eligibility traces at the synapses, gated by an error that the output broadcasts.

    .. math:: \nabla_{W_{ji}} = \tfrac{1}{T} \sum_t L^t_j \, \bar e^t_{ji}, \quad L^t_j = \sum_k B_{jk} (\pi^t_k - [k = y]),
        \quad e^t_{ji} = \sigma'(h^t_j) \, \hat a^t_i, \quad \bar e^t = \kappa \bar e^{t-1} + e^t

    :math:`\pi^t` is the softmax of the readout's potential :math:`o_t`, :math:`\kappa` its decay,
    :math:`\hat a^t_i = \beta \hat a^{t-1}_i + s^t_i` the trace of a synapse's input (at recurrent synapses of the spikes of the
    step before). The loss is :math:`\tfrac{1}{T} \sum_t \mathrm{CE}(o_t, y)`. With
    :class:`~snnrobust.neurons.ALIF` the trace has a second part, of the threshold: see ``_PerSynapse``.

    With symmetric feedback it neglects, of the gradient for the layer before the output, only the paths through the reset and
    through recurrent spikes. Layers below it have feedback of their own, drawn at random. The regularisation of firing rates that
    the paper adds is not in it.

    Args:
        feedback: ``"random"``: a fixed B for each layer, normal with a standard deviation of :math:`1 / \sqrt{F}`, F the
            values that the layer passes on; ``"symmetric"``: the layer before the output gets the output weights instead.

    Source: Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking neurons".
    """

    name: ClassVar[str] = "EProp"
    needs: ClassVar[Mapping[str, Any]] = {"norm": "none", "readout": {"type": "MeanOutput"}}

    lr: float = 1e-2
    feedback: Feedback = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("feedback", self.feedback, get_args(Feedback))

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        net = self._online(model)
        if net.units[-1].neuron is not None:
            kind = type(net.units[-1].neuron).__name__
            raise TypeError(
                f"EProp takes its error from outputs that do not spike: end the network in nn.Linear, not {kind}"
            )
        for unit in net.units[:-1]:
            if not _per_synapse(net, unit):
                continue
            adaptive = isinstance(_neuron(unit), ALIF)
            because = "the threshold of ALIF" if adaptive else f"a leaky readout (decay {net.decay})"
            remedy = "LIF()" if adaptive else "the readout MeanOutput()"
            if not isinstance(unit.synapse, nn.Linear):
                kind = type(unit.synapse).__name__
                raise TypeError(
                    f"EProp needs a trace for each synapse to follow {because}, and those of {unit.name} ({kind}) stand at many "
                    f"places: use {remedy}, or linear layers"
                )
            odd = [part for part in unit.before + unit.after if type(part) not in _ELEMENTWISE]
            if odd:
                kind = type(odd[0]).__name__
                raise TypeError(
                    f"EProp needs a trace for each synapse to follow {because}, and {kind} behind {unit.name} is not a matter of "
                    f"each neuron: leave it out, or use {remedy}"
                )

    def _online(self, model: nn.Module) -> Online:
        return online(model, self.name, kinds=(LIF, IF, ALIF), recurrent=True)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        net, activity = self._online(model), Activity(model)
        matrices: dict[str, Tensor] = {}

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            hidden = [
                (_PerSynapse(unit, net.decay, activity) if _per_synapse(net, unit) else _Factored(unit, activity))
                for unit in net.units[:-1]
            ]
            last, output, total = Layer(net.units[-1]), Output(net), torch.zeros(())
            for s in net.frames(x):
                for layer in hidden:
                    s = layer.step(s)
                s = s.detach().requires_grad_(self.feedback == "symmetric" and bool(hidden))
                read = output.read(last.step(s))
                checks.labels("labels", y, len(read), read.shape[1])
                loss = F.cross_entropy(read, y) / net.time_steps
                if loss.requires_grad:
                    (loss * scale).backward()
                total = total.to(loss) + loss.detach()
                error = torch.softmax(read.detach(), 1) - F.one_hot(y, read.shape[1])
                error = error * (scale / (len(y) * net.time_steps))
                for layer in hidden:
                    layer.learn(
                        s.grad if layer is hidden[-1] and s.grad is not None else self._signal(layer, error, matrices)
                    )
            return total, output.logits

        yield Lent(backward, activity=activity, online=True)

    def _signal(self, layer: _Factored | _PerSynapse, error: Tensor, matrices: dict[str, Tensor]) -> Tensor:
        """What the error says to a layer, ``[B, *]`` like what the layer passes on; ``matrices`` remembers what is drawn."""
        name, shape = layer.unit.name, layer.given.shape
        if name not in matrices:
            matrices[name] = self._feedback(name, error.shape[1], math.prod(shape[1:])).to(error)
        return (error @ matrices[name]).view(shape)

    def _feedback(self, name: str, classes: int, features: int) -> Tensor:
        """B, ``[K, F]``, decided by the seed and the layer's name."""
        with keyed(derive(self.seed, "feedback", name)):
            return torch.randn(classes, features, dtype=torch.float64) / math.sqrt(features)


def _neuron(unit: Unit) -> nn.Module | None:
    return unit.neuron.neuron if isinstance(unit.neuron, Recurrent) else unit.neuron


def _per_synapse(net: Online, unit: Unit) -> bool:
    """Whether an eligibility trace is no product of one of the input and one of the neuron."""
    return net.decay > 0 or isinstance(_neuron(unit), ALIF)


class _Factored(Layer):
    """LIF neurons under a readout without memory: the trace is a product, and one of the inputs is enough."""

    def step(self, s: Tensor) -> Tensor:
        self.given = super().step(s.detach())
        return self.given.detach()

    def learn(self, signal: Tensor) -> None:
        if self.given.requires_grad:
            torch.autograd.backward(self.given, signal.to(self.given.dtype))


class _PerSynapse(Layer):
    r"""A trace for each synapse, ``[B, F, I]``, of LIF or ALIF neurons under a leaky readout.

    .. math:: \epsilon^t_h = \beta (\epsilon^{t-1}_h - s_{t-1} \kappa_a \epsilon^{t-1}_a) + z_t,
        \quad \epsilon^t_a = \rho \epsilon^{t-1}_a + e^{t-1}, \quad e^t = \sigma'_t (\epsilon^t_h - \kappa_a \epsilon^t_a)

    where z is the input. The term with s is there because our soft reset subtracts the raised threshold; the paper's
    subtracts the threshold at rest.
    """

    def __init__(self, unit: Unit, readout_decay: float, activity: Activity | None = None) -> None:
        super().__init__(unit, activity)
        self.readout_decay = readout_decay
        self.of_h = self.of_threshold = self.filtered = torch.zeros(())
        self.eligible: Tensor | None = None

    def step(self, s: Tensor) -> Tensor:
        assert isinstance(self.unit.synapse, nn.Linear)
        if s.dim() != 2:
            raise ValueError(
                f"EProp keeps a trace for each synapse of {self.unit.name}: its input must be [B, F], got {tuple(s.shape)}"
            )
        inputs = [s.detach()]
        with torch.no_grad():
            y = self.before(self.unit.synapse(s))
            if isinstance(self.unit.neuron, Recurrent):
                inputs.append(torch.zeros_like(y) if self.spikes is None else self.spikes)
                y = y + self.unit.neuron.recurrent(inputs[-1])
        if self.unit.synapse.bias is not None:
            inputs.append(torch.ones_like(y[:, :1]))
        before = self.spikes
        with torch.enable_grad():
            y = y.requires_grad_()
            spikes = self.fire(y)
            given = self.after(spikes)
            (passed,) = torch.autograd.grad(given.sum(), spikes, retain_graph=True)
            (slope,) = torch.autograd.grad(spikes.sum(), y)
        self.given = given.detach()
        self._remember(torch.cat([i.to(state_dtype(i.dtype)) for i in inputs], 1), before, slope, passed)
        return self.given

    def _remember(self, z: Tensor, before: Tensor | None, slope: Tensor, passed: Tensor) -> None:
        z = z[:, None]
        eligible = self.unit.decay * self.of_h + z
        through_threshold: Tensor | float = 0.0
        if isinstance(self.neuron, ALIF):
            kappa, rho = (_column(value, slope) for value in (self.neuron.adaptation, self.neuron.adaptation_decay))
            if before is not None and self.eligible is not None:
                eligible = eligible - self.unit.decay * before[:, :, None] * kappa * self.of_threshold
                self.of_threshold = rho * self.of_threshold + self.eligible
            through_threshold = kappa * self.of_threshold
        self.of_h = eligible
        self.eligible = slope[:, :, None] * (eligible - through_threshold)
        self.filtered = self.readout_decay * self.filtered + passed[:, :, None] * self.eligible

    def learn(self, signal: Tensor) -> None:
        found = torch.einsum("bj,bji->ji", signal.flatten(1).to(self.filtered.dtype), self.filtered)
        synapse = self.unit.synapse
        parameters: list[tuple[Tensor, int]] = [(synapse.weight, synapse.weight.shape[1])]
        if isinstance(self.unit.neuron, Recurrent):
            parameters.append((self.unit.neuron.recurrent.weight, self.unit.neuron.features))
        if synapse.bias is not None:
            parameters.append((synapse.bias, 1))
        for (parameter, _), part in zip(parameters, found.split([n for _, n in parameters], 1), strict=True):
            if parameter.requires_grad:
                part = part.reshape(parameter.shape).to(parameter.dtype)
                parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part


def _column(value: float | Tensor, like: Tensor) -> float | Tensor:
    return value.to(like)[:, None] if isinstance(value, Tensor) else value


RULES[EProp.name] = EProp
