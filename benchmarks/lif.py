"""LIF neurons over a sequence, forward and backward: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks import limits, memory, peers
from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.limits import LIMITS
from benchmarks.peers import DECAY, JELLY, SLOPE, SNNTORCH, THRESHOLD
from benchmarks.targets import Target
from snnrobust.kernels import saving

__all__ = ["cases", "naive", "peaks", "peaks_of"]

NAIVE, KEPT, TENSOR = "naive loop", f"{OURS}, potentials kept", "the tensor x"

SHAPES = {
    (8, 64, 128): (12.0, None, None),
    (8, 64, 4096): (5.0, 8.0, 0.5),
    (16, 64, 4096): (5.0, 8.0, 0.5),
    (32, 64, 4096): (5.0, 8.0, 0.5),
    (8, 64, 64, 16, 16): (10.0, None, 0.5),
    (16, 64, 64, 16, 16): (10.0, None, 0.5),
}
"""Shape to what is wanted: times SpikingJelly's speed, the same as aim, share of the memory limit."""

PEAK = (16, 64, 64, 16, 16)

Neurons = Callable[[Tensor], Tensor]


def cases(tiny: bool = False) -> Iterator[Case]:
    for shape in ((3, 2, 8),) if tiny else SHAPES:
        yield _case(shape)


def _case(shape: tuple[int, ...]) -> Case:
    x, grad = _input(shape)
    neurons = {name: peers.optional(make) for name, make in _NEURONS.items()}
    for name in (OURS, KEPT, JELLY):
        _check(name, neurons[name], x, grad)
    row = f"LIF {list(shape)}"
    wanted, aim, share = SHAPES.get(shape, (1.0, None, 0.5))
    targets = [Target(row, OURS, JELLY, wanted, aim)]
    if share is not None:
        targets.append(Target(row, OURS, LIMITS, share, 0.8))
    return Case(
        f"{row}, forward and backward",
        {
            **{name: None if f is None else _forward_backward(f, x, grad) for name, f in neurons.items()},
            **limits.copy_and_add(x.detach(), grad),
        },
        reference=JELLY,
        limits=LIMITS,
        targets=tuple(targets),
        remarks=(
            f"{OURS}, {JELLY} and the naive loop: equal spikes and gradients (checked).",
            f"{OURS} keeps x alone for the backward pass, where x is small the potentials; "
            f"{SNNTORCH}: its default, which resets one step later.",
            "Memory limit: copy x to s, then grad + x / 2 to the gradient of x, in buffers that exist already, on huge pages.",
        ),
        figure="lif",
    )


def peaks(tiny: bool = False) -> Iterator[Case]:
    shape = (3, 2, 8) if tiny else PEAK
    contenders = {name: memory.measured(peaks_of, name, *shape) for name in (OURS, KEPT, NAIVE)}
    theirs = {name: peers.optional(partial(_there, name, shape)) for name in (JELLY, SNNTORCH)}
    yield Case(
        f"LIF {list(shape)}, forward and backward: peak memory",
        {TENSOR: lambda: 4 * prod(shape), **contenders, **theirs},
        reference=TENSOR,
        targets=(Target(f"LIF {list(shape)}, peak memory", OURS, TENSOR, 2.2, most=True),),
        unit="MiB",
        scale=2.0**-20,
        clock="peak",
        remarks=(
            "By how much resident memory grows above x and the gradient that comes in, in a new process for each.",
            "What comes out, the spikes and the gradient of x, is 2 times the tensor.",
        ),
        figure="lif memory",
    )


def _there(name: str, shape: tuple[int, ...]) -> Run | str:
    _NEURONS[name]()  # raises where the peer is missing
    return memory.measured(peaks_of, name, *shape)


def peaks_of(name: str, *shape: int) -> Run:
    """Forward and backward pass; the same on a few elements came before, so that what is loaded once is there."""
    neurons = _NEURONS[name]()
    _forward_backward(neurons, *_input((3, 2, 8)))()
    return _forward_backward(neurons, *_input(shape))


def _input(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape).uniform_(-0.5, 1.2, generator=generator).requires_grad_()
    return x, torch.randn(shape, generator=generator)


def _forward_backward(neurons: Neurons, x: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(neurons(x), x, grad)


def _check(name: str, neurons: Neurons | None, x: Tensor, grad: Tensor) -> None:
    if neurons is None:
        return
    spikes, expected = neurons(x), naive(x)
    if not torch.equal(spikes, expected):
        raise DisagreementError(f"{name} and the naive loop differ in {int((spikes != expected).sum())} spikes")
    gradients = [torch.autograd.grad(s, x, grad)[0] for s in (spikes, expected)]
    if not torch.allclose(gradients[0], gradients[1], rtol=1e-6, atol=1e-6):
        worst = float((gradients[0] - gradients[1]).abs().max())
        raise DisagreementError(f"{name} and the naive loop have gradients that differ by {worst:.2g}")


def naive(x: Tensor) -> Tensor:
    """As one would write it without a library, and without the mistake of indexing ``x[t]``."""
    v = torch.zeros_like(x[0])
    spikes = []
    for x_t in x.unbind(0):
        h = DECAY * v + x_t
        s = _Spike.apply(h - THRESHOLD)  # type: ignore[no-untyped-call]
        v = h - THRESHOLD * s.detach()
        spikes.append(s)
    return torch.stack(spikes)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (SLOPE / 2) / (1 + (torch.pi / 2 * SLOPE * u) ** 2)  # type: ignore[no-any-return]


def _keeping(neurons: Neurons, x: Tensor) -> Tensor:
    with saving("potential"):
        return neurons(x)


_NEURONS: dict[str, Callable[[], Neurons]] = {
    OURS: peers.our_lif,
    KEPT: lambda: partial(_keeping, peers.our_lif()),
    JELLY: peers.sequence_of_jelly,
    SNNTORCH: peers.sequence_of_snntorch,
    NAIVE: lambda: naive,
}
