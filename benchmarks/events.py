"""A convolution whose input is spikes, without gradients: event-driven beside dense, over the spike rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import snnrobust.layers
from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.targets import Target

__all__ = ["cases"]

DENSE, LAST, BF16 = "torch, float32", "torch, float32, channels_last", "torch, bf16, channels_last"
SHAPES = ((64, 128, 16), (128, 256, 8))
"""Channels before and after, height and width."""
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
WANTED_AT = 0.05


def _event_driven(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor] | str:
    """``convolution`` on the events only, whatever the rate."""
    made = getattr(snnrobust.layers, "EventConv2d", None)
    if made is None:
        return "snnrobust.layers has no EventConv2d"
    layer: Callable[[Tensor], Tensor] = made(convolution, break_even=1.0)
    return layer


def cases(tiny: bool = False) -> Iterator[Case]:
    for shape in ((4, 8, 4),) if tiny else SHAPES:
        for rate in (WANTED_AT,) if tiny or shape != SHAPES[0] else RATES:
            yield _case(*shape, rate, 2 if tiny else 64)


def _case(channels: int, features: int, size: int, rate: float, batch: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(channels, features, 3, padding=1)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.uniform_(-0.05, 0.05, generator=generator)
    x = (torch.rand(batch, channels, size, size, generator=generator) < rate).float()
    x_last = x.contiguous(memory_format=torch.channels_last)
    layer = _event_driven(convolution)
    dense_last = nn.Conv2d(channels, features, 3, padding=1)
    dense_last.load_state_dict(convolution.state_dict())
    dense_last = dense_last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = nn.Conv2d(channels, features, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half.load_state_dict(convolution.state_dict())
    calls: dict[str, Run | str | None] = {
        OURS: layer if isinstance(layer, str) else _inference(layer, x_last),
        DENSE: _inference(convolution, x),
        LAST: _inference(dense_last, x_last),
        BF16: _inference(half, x_last.bfloat16()),
    }
    for name, call in calls.items():
        if callable(call):
            _check(name, call, calls[DENSE])
    row = f"convolution {channels} to {features}, {size} x {size}, {100 * rate:.3g} % spikes"
    return Case(
        f"Inference, {row}, batch of {batch}",
        calls,
        reference=DENSE,
        targets=(Target(row, OURS, (DENSE, LAST), 4.0),) if rate == WANTED_AT else (),
        remarks=(
            "3 x 3, spikes independent of each other; equal outputs to rounding (checked).",
            f"{OURS} and bf16 have their input in channels_last.",
        ),
        figure="rates" if (channels, features, size) == SHAPES[0] else "",
        at=dict.fromkeys(calls, rate),
    )


def _inference(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return layer(x)

    return run


def _check(name: str, call: Run, dense: Run | str | None) -> None:
    assert callable(dense)
    got, expected = call(), dense()
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    bound = 0.05 if got.dtype == torch.bfloat16 else 1e-4
    worst = float((got.float() - expected).abs().max())
    if worst > bound * float(expected.abs().max()):
        raise DisagreementError(f"{name} and the dense convolution differ by {worst:.2g}")
