"""The same networks in snnrobust, SpikingJelly and snnTorch, with the same weights.

Images are shown at every time step, and logits are the mean output over time. Neurons: :mod:`benchmarks.peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import peers
from snnrobust import SpikingClassifier
from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput, Sequential

__all__ = ["SMALL", "VGG6", "Architecture", "batch", "in_bf16", "jelly", "ours", "snntorch"]


@dataclass(frozen=True)
class Architecture:
    """Convolutions of 3 x 3 with neurons, ``"P"`` for maximum pooling by 2, and a linear layer to 10 classes at the end."""

    name: str
    shape: tuple[int, int, int]
    widths: tuple[int | Literal["P"], ...]
    norm: bool
    gain: float
    """Of the weights of convolutions, so that all neurons fire."""
    batch: int
    time_steps: int = 8

    def tiny(self) -> Architecture:
        """Of the same kind, for tests."""
        widths = tuple(width if width == "P" else max(2, width // 16) for width in self.widths)
        return replace(self, shape=(self.shape[0], 8, 8), widths=widths, batch=2, time_steps=3)

    def groups(self) -> list[list[nn.Module]]:
        """What stands before, between and after the neurons; the same weights every time."""
        channels, height, width = self.shape
        groups: list[list[nn.Module]] = []
        pending: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            for features in self.widths:
                if features == "P":
                    pending.append(nn.MaxPool2d(2))
                    height, width = height // 2, width // 2
                    continue
                convolution = nn.Conv2d(channels, features, 3, padding=1, bias=not self.norm)
                convolution.weight.mul_(self.gain)
                groups.append([*pending, convolution, *([nn.BatchNorm2d(features)] if self.norm else [])])
                channels, pending = features, []
            last = nn.Linear(channels * height * width, 10)
        return [*groups, [*pending, nn.Flatten(), last]]


SMALL = Architecture("small conv SNN", (1, 28, 28), (32, "P", 64, "P"), norm=False, gain=3.0, batch=64)
VGG6 = Architecture(
    "VGG-6 with BN", (3, 32, 32), (64, 64, "P", 128, 128, "P", 256, 256, "P"), norm=True, gain=1.0, batch=16
)


def batch(architecture: Architecture, size: int) -> tuple[Tensor, Tensor]:
    """Random images in [0, 1] and labels, the same every time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, *architecture.shape, generator=generator)
    return x, torch.randint(0, 10, (size,), generator=generator)


def ours(architecture: Architecture) -> SpikingClassifier:
    *hidden, last = architecture.groups()
    layers = chain.from_iterable([*group, peers.our_lif()] for group in hidden)
    return SpikingClassifier(Direct(architecture.time_steps), Sequential(*layers, *last), MeanOutput())


def jelly(architecture: Architecture) -> nn.Module:
    return _Jelly(architecture)


def snntorch(architecture: Architecture) -> nn.Module:
    return _SNNTorch(architecture)


def in_bf16(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Its forward pass under autocast; logits in float32."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        return logits.float()

    return forward


class _Jelly(nn.Module):
    """Multi-step, with time folded into the batch around each group of ordinary layers."""

    def __init__(self, architecture: Architecture) -> None:
        from spikingjelly.activation_based import functional, layer

        super().__init__()
        *hidden, last = (layer.SeqToANNContainer(*group) for group in architecture.groups())
        self.network = nn.Sequential(*chain.from_iterable((group, peers.jelly_lif()) for group in hidden), last)
        self.reset: Callable[[nn.Module], None] = functional.reset_net
        self.time_steps = architecture.time_steps

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.network)
        y: Tensor = self.network(x.expand(self.time_steps, *x.shape))
        return y.mean(0)


class _SNNTorch(nn.Module):
    """A loop over time, as in snnTorch's tutorials."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        *hidden, last = (nn.Sequential(*group) for group in architecture.groups())
        self.hidden, self.last = nn.ModuleList(hidden), last
        self.neurons = nn.ModuleList(peers.snntorch_lif() for _ in hidden)
        self.time_steps = architecture.time_steps

    def forward(self, x: Tensor) -> Tensor:
        membranes = [lif.reset_mem() for lif in self.neurons]  # type: ignore[operator]
        outputs = []
        for _ in range(self.time_steps):
            y = x
            for i, (layers, lif) in enumerate(zip(self.hidden, self.neurons, strict=True)):
                y, membranes[i] = lif(layers(y), membranes[i])
            outputs.append(self.last(y))
        return torch.stack(outputs).mean(0)
