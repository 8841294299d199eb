"""The same neuron in snnrobust, SpikingJelly and snnTorch; the last two may be missing.

snnTorch's neuron is its default, which subtracts the threshold one step later than the others do; its ``reset_delay=False`` has
their spikes, but computes more, and differentiates the reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan

__all__ = [
    "DECAY", "JELLY", "PACKAGES", "SLOPE", "SNNTORCH", "THRESHOLD", "jelly_lif", "optional", "our_lif", "sequence_of_jelly",
    "sequence_of_snntorch", "snntorch_lif",
]  # fmt: skip

PACKAGES = ("spikingjelly", "snntorch", "torchattacks")
JELLY, SNNTORCH = "SpikingJelly", "snnTorch"
DECAY, THRESHOLD, SLOPE = 0.5, 1.0, 2.0

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


def sequence_of_jelly() -> Callable[[Tensor], Tensor]:
    """Multi-step neurons from the zero state."""
    node = jelly_lif()

    def neurons(x: Tensor) -> Tensor:
        node.reset()
        return node(x)  # type: ignore[no-any-return]

    return neurons


def sequence_of_snntorch() -> Callable[[Tensor], Tensor]:
    """A loop over time, as in snnTorch's tutorials."""
    node = snntorch_lif()

    def neurons(x: Tensor) -> Tensor:
        membrane, spikes = node.reset_mem(), []
        for x_t in x.unbind(0):
            s, membrane = node(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    return neurons
