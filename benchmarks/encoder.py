"""Poisson encoding of a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import networks, peers
from benchmarks.harness import OURS, Case, DisagreementError
from benchmarks.networks import SMALL
from benchmarks.peers import JELLY, SNNTORCH
from benchmarks.targets import Target
from snnrobust.encoders import Poisson

__all__ = ["cases"]

LIMIT = "write limit"


def cases(tiny: bool = False) -> Iterator[Case]:
    time_steps, size = (4, 2) if tiny else (32, 256)
    x, _ = networks.batch(SMALL, size)
    spikes = torch.empty(time_steps, *x.shape)
    encoders: dict[str, Callable[[], Tensor] | None] = {
        OURS: partial(Poisson(time_steps), x),
        "torch.bernoulli": lambda: torch.bernoulli(x.expand_as(spikes)),
        JELLY: peers.optional(lambda: _jelly(x.expand_as(spikes))),
        SNNTORCH: peers.optional(lambda: _snntorch(x, time_steps)),
    }
    for name, encode in encoders.items():
        if encode is not None:
            _check(name, encode(), x, spikes.shape)
    yield Case(
        f"Poisson encoder {list(spikes.shape)}",
        {**encoders, LIMIT: partial(spikes.fill_, 1.0)},
        reference=JELLY,
        limits=(LIMIT,),
        targets=(Target("Poisson encoder", OURS, SNNTORCH, 20.0), Target("Poisson encoder", OURS, JELLY, 6.0)),
        unit="ns a draw",
        scale=1e9 / spikes.numel(),
        remarks=(
            f"{OURS}: Philox; a draw depends on key, sample and step only.",
            "The others draw from torch's generator, so their draws depend on the batch.",
            "Write limit: fill a buffer that exists already.",
        ),
        figure="speed",
    )


def _jelly(x: Tensor) -> Callable[[], Tensor]:
    from spikingjelly.activation_based.encoding import PoissonEncoder

    return partial(PoissonEncoder(step_mode="m"), x)


def _snntorch(x: Tensor, time_steps: int) -> Callable[[], Tensor]:
    from snntorch.spikegen import rate

    return partial(rate, x, num_steps=time_steps)


def _check(name: str, spikes: Tensor, x: Tensor, shape: torch.Size) -> None:
    """Spikes of the right shape, at the right rate (to 6 standard deviations of their sum)."""
    binary = bool(((spikes == 0) | (spikes == 1)).all())
    expected, deviation = shape[0] * x.sum(), (shape[0] * (x * (1 - x)).sum()).sqrt()
    if spikes.shape != shape or not binary or (spikes.sum() - expected).abs() > 6 * deviation:
        raise DisagreementError(f"{name} does not fire as a Poisson encoder should")
