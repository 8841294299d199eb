"""The same neuron and the same small network in snnrobust, SpikingJelly and snnTorch; the last two may be missing.

The network is conv 32 - LIF - pool - conv 64 - LIF - pool - linear on 28 x 28 images that are shown at every time step; its
logits are the mean output over time. snnTorch's neuron is its default, which subtracts the threshold one step later than the
others do; its ``reset_delay=False`` has their spikes, but computes more, and differentiates the reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snnrobust import SpikingClassifier
from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan

__all__ = [
    "DECAY", "JELLY", "PACKAGES", "SLOPE", "SNNTORCH", "THRESHOLD", "TIME_STEPS", "batch", "jelly_lif", "jelly_network",
    "optional", "our_lif", "our_network", "snntorch_lif", "snntorch_network",
]  # fmt: skip

PACKAGES = ("spikingjelly", "snntorch")
JELLY, SNNTORCH = "SpikingJelly", "snnTorch"
DECAY, THRESHOLD, SLOPE, TIME_STEPS = 0.5, 1.0, 2.0, 8

Made = TypeVar("Made")


def optional(make: Callable[[], Made]) -> Made | None:
    """What ``make`` makes, or None where the peer that it imports is not installed."""
    try:
        return make()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in PACKAGES:
            return None
        raise


def our_lif() -> nn.Module:
    return LIF(DECAY, THRESHOLD, "soft", ATan(SLOPE))


def jelly_lif() -> Any:
    """It keeps its state between calls: ``reset()`` before each sequence."""
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.LIFNode(
        tau=1 / (1 - DECAY),
        decay_input=False,
        v_threshold=THRESHOLD,
        v_reset=None,
        surrogate_function=surrogate.ATan(SLOPE),
        detach_reset=True,
        step_mode="m",
    )


def snntorch_lif() -> Any:
    from snntorch import Leaky, surrogate

    return Leaky(beta=DECAY, threshold=THRESHOLD, spike_grad=surrogate.atan(SLOPE))


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Random images in [0, 1] and labels, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 28, 28, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def our_network() -> nn.Module:
    first, second, last = _synapses()
    network = Sequential(*first, our_lif(), *second, our_lif(), *last)
    return SpikingClassifier(Direct(TIME_STEPS), network, MeanOutput())


def jelly_network() -> nn.Module:
    return _JellyNetwork()


def snntorch_network() -> nn.Module:
    return _SNNTorchNetwork()


def _synapses() -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """What stands before, between and after the neurons, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        last = nn.Linear(64 * 7 * 7, 10)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.mul_(3.0)  # so that both layers of neurons fire
    return [first], [nn.AvgPool2d(2), second], [nn.AvgPool2d(2), nn.Flatten(), last]


class _JellyNetwork(nn.Module):
    """Multi-step, with time folded into the batch around each group of ordinary layers."""

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional, layer

        super().__init__()
        first, second, last = (layer.SeqToANNContainer(*group) for group in _synapses())
        self.network = nn.Sequential(first, jelly_lif(), second, jelly_lif(), last)
        self.reset: Callable[[nn.Module], None] = functional.reset_net

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.network)
        y: Tensor = self.network(x.expand(TIME_STEPS, *x.shape))
        return y.mean(0)


class _SNNTorchNetwork(nn.Module):
    """A loop over time, as in snnTorch's tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Sequential(*group) for group in _synapses())
        self.lif1, self.lif2 = snntorch_lif(), snntorch_lif()

    def forward(self, x: Tensor) -> Tensor:
        membrane1, membrane2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        outputs = []
        for _ in range(TIME_STEPS):
            spikes, membrane1 = self.lif1(self.first(x), membrane1)
            spikes, membrane2 = self.lif2(self.second(spikes), membrane2)
            outputs.append(self.last(spikes))
        return torch.stack(outputs).mean(0)
