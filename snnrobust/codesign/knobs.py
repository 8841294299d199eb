"""Two numbers for each layer of neurons of a finished chip: the gain of their input, and an offset or a leak."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers import QCFS
from snnrobust.neurons import IF, LIF, Neuron, Recurrent, lif
from snnrobust.temporal import State, Temporal

__all__ = ["Second", "sites", "with_knobs"]

Second = Literal["leak", "offset"]
"""What the second knob of a spiking neuron is; of an activation without memory it is the offset."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardtanh, nn.Tanh, nn.Sigmoid, QCFS)


class TunedActivation(nn.Module):
    """An activation without memory, of ``gain * x + offset``."""

    gain: Tensor
    offset: Tensor

    def __init__(self, activation: nn.Module, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x * self.gain + self.offset)  # type: ignore[no-any-return]


class TunedNeuron(Temporal):
    """Spiking neurons that hear ``gain * x + offset``."""

    gain: Tensor
    offset: Tensor

    def __init__(self, neuron: Temporal, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.neuron = neuron
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)

    def initial_state(self, x_t: Tensor) -> State:
        return self.neuron.initial_state(x_t)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        return self.neuron.step(x_t * self.gain + self.offset, state)

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.neuron.advance(x * self.gain + self.offset, state)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        return self.neuron.shown(x * self.gain + self.offset, steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x * self.gain + self.offset)  # type: ignore[no-any-return]


class _Dial:
    """The knobs of one layer, read anew at every forward pass: an optimizer may have moved them."""

    def __init__(self, knobs: Tensor, index: int, unit: float) -> None:
        self.knobs, self.index, self.unit = knobs, index, unit

    @property
    def gain(self) -> Tensor:
        return self.knobs[self.index, 0].exp()

    @property
    def second(self) -> Tensor:
        return self.knobs[self.index, 1] * self.unit


class _LearningActivation(nn.Module):
    def __init__(self, activation: nn.Module, dial: _Dial) -> None:
        super().__init__()
        self.activation, self.dial = activation, dial

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x * self.dial.gain + self.dial.second)  # type: ignore[no-any-return]


class _LearningNeuron(Temporal):
    """Whole sequences only, as the next."""

    def __init__(self, neuron: Temporal, dial: _Dial) -> None:
        super().__init__()
        self.neuron, self.dial = neuron, dial

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x * self.dial.gain + self.dial.second)  # type: ignore[no-any-return]


class _LearningLIF(Temporal):
    def __init__(self, neuron: LIF, dial: _Dial) -> None:
        super().__init__()
        self.neuron, self.dial = neuron, dial

    def forward(self, x: Tensor) -> Tensor:
        n = self.neuron
        decay, threshold = (n.decay + self.dial.second).clamp(0.0, 1.0), n.threshold / self.dial.gain
        return lif(x, decay, threshold, n.reset, n.surrogate, n.detach_reset, n.refractory)


def sites(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of neurons of ``model`` that have knobs, in order of ``named_modules``: spiking neurons of snnrobust and
    activation modules, but for those inside :class:`~snnrobust.neurons.Recurrent`.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, nn.Module] = {}
    closed: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in closed):
            continue
        if isinstance(module, (Neuron, TunedActivation, TunedNeuron, *ACTIVATIONS)):
            found[name] = module
            closed.append(name)
        elif isinstance(module, Recurrent):
            closed.append(name)
    found.pop("", None)
    if not found:
        raise ValueError(
            "the model has no neurons to tune: modules of snnrobust.neurons, or activations that are modules such as nn.ReLU() "
            "(a call of torch.relu cannot be seen)"
        )
    return found


def limits(model: nn.Module, second: Second) -> tuple[Tensor, Tensor]:
    """Smallest and largest second knob of each site, ``[L]``: a leak keeps its decay within [0, 1]."""
    low, high = [], []
    for site in sites(model).values():
        decay = torch.as_tensor(site.decay).float() if has_leak(site, second) else None
        low.append(-math.inf if decay is None else -float(decay.max()))
        high.append(math.inf if decay is None else 1.0 - float(decay.min()))
    return torch.tensor(low), torch.tensor(high)


def has_leak(neuron: nn.Module, second: Second) -> bool:
    """Whether the second knob of ``neuron`` is its leak."""
    return second == "leak" and type(neuron) in (LIF, IF)


def with_knobs(chip: nn.Module, knobs: Tensor, second: Second = "leak", units: Tensor | None = None) -> nn.Module:
    r"""A copy of ``chip`` whose layers of neurons are set to ``knobs``; the chip stays as it is.

    .. math:: f(x) \to f(e^{k_1} x + k_2 u), \qquad
        \text{LIF: } \theta \to \theta e^{-k_1}, \quad \beta \to \operatorname{clip}(\beta + k_2, 0, 1)

    For a neuron without bias a lower threshold is the same as a higher gain of its input. Where ``knobs`` needs a gradient, the
    copy shares weights with the chip, reads ``knobs`` at each forward pass and is differentiable in them; otherwise it is a copy
    of its own, in which LIF neurons are LIF neurons again.

    Args:
        chip: As ``deploy`` makes it, or any model.
        knobs: :math:`(k_1, k_2)` of each of :func:`sites`, ``[L, 2]``; zeros change nothing.
        second: ``"leak"`` for LIF and IF neurons, or ``"offset"`` for all; other neurons have the offset.
        units: u of each layer ``[L]``, default 1; a leak has none.
    """
    checks.choice("second", second, get_args(Second))
    found = sites(checks.module("chip", chip))
    if knobs.shape != (len(found), 2):
        raise ValueError(
            f"knobs must be [{len(found)}, 2], two for each layer of neurons ({', '.join(found)}), got {tuple(knobs.shape)}"
        )
    learning = knobs.requires_grad
    shared = {id(t): t for t in chain(chip.parameters(), chip.buffers())} if learning else {}
    copy = deepcopy(chip, shared)
    scale = [1.0] * len(found) if units is None else units.tolist()
    for index, (site, unit) in enumerate(zip(sites(copy).values(), scale, strict=True)):
        dial = _Dial(knobs, index, 1.0 if has_leak(site, second) else unit)
        tuned = _learning(site, dial, second) if learning else _tuned(site, dial, second)
        for parent, child in _seats(copy, site):
            setattr(parent, child, tuned.train(site.training))
    return copy


def _learning(site: nn.Module, dial: _Dial, second: Second) -> nn.Module:
    if has_leak(site, second):
        return _LearningLIF(site, dial)  # type: ignore[arg-type]
    return _LearningNeuron(site, dial) if isinstance(site, Temporal) else _LearningActivation(site, dial)


def _tuned(site: nn.Module, dial: _Dial, second: Second) -> nn.Module:
    if has_leak(site, second):
        assert isinstance(site, LIF)
        decay, threshold = torch.as_tensor(site.decay), torch.as_tensor(site.threshold)
        decay = (decay + dial.second.to(decay)).clamp(0.0, 1.0)
        return LIF(
            decay, threshold / dial.gain.to(threshold), site.reset, site.surrogate, site.detach_reset, site.refractory
        )
    kind = TunedNeuron if isinstance(site, Temporal) else TunedActivation
    return kind(site, dial.gain, dial.second)  # type: ignore[arg-type]


def _seats(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Everywhere that ``module`` stands."""
    yield from [(m, name) for m in model.modules() for name, child in m._modules.items() if child is module]
