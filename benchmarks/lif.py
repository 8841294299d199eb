"""LIF neurons over a sequence, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import OURS, Case, DisagreementError
from benchmarks.peers import DECAY, JELLY, SLOPE, SNNTORCH, THRESHOLD

__all__ = ["cases", "naive"]

SHAPES = ((8, 64, 128), (8, 64, 4096), (16, 64, 4096))
NAIVE, LIMIT = "naive loop", "memory limit"

Neurons = Callable[[Tensor], Tensor]


def cases(tiny: bool = False) -> Iterator[Case]:
    for shape in ((3, 2, 8),) if tiny else SHAPES:
        yield _case(shape)


def _case(shape: tuple[int, ...]) -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape).uniform_(-0.5, 1.2, generator=generator).requires_grad_()
    grad = torch.randn(shape, generator=generator)
    neurons = {
        OURS: peers.our_lif(),
        JELLY: peers.optional(_jelly),
        SNNTORCH: peers.optional(_snntorch),
        NAIVE: naive,
    }
    for name in (OURS, JELLY):
        _check(name, neurons[name], x, grad)
    return Case(
        f"LIF {list(shape)}, forward and backward",
        {
            **{name: None if f is None else _forward_backward(f, x, grad) for name, f in neurons.items()},
            LIMIT: _limit(x.detach(), grad),
        },
        reference=JELLY,
        limit=LIMIT,
        remarks=(
            f"{OURS}, {JELLY} and the naive loop: equal spikes and gradients (checked).",
            f"{SNNTORCH}: its default, which resets one step later.",
            "Memory limit: copy x to s, then g + x to gx, on buffers that exist already.",
        ),
    )


def _forward_backward(neurons: Neurons, x: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(neurons(x), x, grad)


def _limit(x: Tensor, grad: Tensor) -> Callable[[], object]:
    s, grad_x = torch.empty_like(x), torch.empty_like(x)

    def move() -> None:
        s.copy_(x)
        torch.add(grad, x, alpha=0.5, out=grad_x)

    return move


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


def _jelly() -> Neurons:
    node = peers.jelly_lif()

    def neurons(x: Tensor) -> Tensor:
        node.reset()
        return node(x)  # type: ignore[no-any-return]

    return neurons


def _snntorch() -> Neurons:
    node = peers.snntorch_lif()

    def neurons(x: Tensor) -> Tensor:
        membrane, spikes = node.reset_mem(), []
        for x_t in x.unbind(0):
            s, membrane = node(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    return neurons
