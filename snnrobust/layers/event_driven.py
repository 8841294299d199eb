"""Layers that do the work of their nonzero inputs only, and the choice of the layers for which this is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import draws, evaluating
from snnrobust.kernels import native
from snnrobust.kernels.events import PACKING, event_conv2d, event_linear

__all__ = ["BREAK_EVEN", "EventConv2d", "EventLinear", "EventReport", "LayerChoice", "event_driven"]

BREAK_EVEN = 0.35
"""Share of nonzero inputs at which both products took the same time in float32, where it was measured; half in bfloat16."""
_NEVER_ALWAYS = 0.99  # an estimate never says that a layer need not look at its rate


class EventConv2d(nn.Conv2d):
    r"""``nn.Conv2d`` whose products are those of its nonzero inputs, with the parameters of ``conv`` itself.

    The function and its gradients are those of ``conv``, to the rounding of sums. Each call counts its nonzero inputs and is
    dense where their share is above ``break_even``. Dense are also other devices than the CPU, dtypes but float32 and bfloat16,
    autocast, an installation without kernels, and weights that are not finite.

    Args:
        conv: An ``nn.Conv2d`` with ``groups=1``, ``padding_mode="zeros"`` and padding in numbers.
        break_even: In [0, 1]; 1 is event-driven at any rate.
    """

    def __init__(self, conv: nn.Conv2d, break_even: float = BREAK_EVEN) -> None:
        reason = _unfit(conv)
        if reason or not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be a plain nn.Conv2d, got {type(conv).__name__}{reason and ': ' + reason}")
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None, device="meta",
        )  # fmt: skip
        self.break_even = checks.number("break_even", break_even, 0.0, 1.0)
        _adopt(self, conv)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            return super().forward(x)
        assert not isinstance(self.padding, str)
        return event_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.break_even)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, break_even={self.break_even:.3g}"  # type: ignore[no-untyped-call]


class EventLinear(nn.Linear):
    r"""``nn.Linear`` whose products are those of its nonzero inputs, with the parameters of ``linear`` itself.

    See :class:`EventConv2d`.
    """

    def __init__(self, linear: nn.Linear, break_even: float = BREAK_EVEN) -> None:
        reason = _unfit(linear)
        if reason or not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a plain nn.Linear, got {type(linear).__name__}{reason and ': ' + reason}")
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.break_even = checks.number("break_even", break_even, 0.0, 1.0)
        _adopt(self, linear)

    def forward(self, x: Tensor) -> Tensor:
        return event_linear(x, self.weight, self.bias, self.break_even)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, break_even={self.break_even:.3g}"


def _adopt(layer: nn.Conv2d | nn.Linear, plain: nn.Conv2d | nn.Linear) -> None:
    layer.weight, layer.bias = plain.weight, plain.bias
    layer.training = plain.training


def _unfit(layer: nn.Module) -> str:
    """Why a layer stays dense; empty if it need not."""
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"there is no event-driven {type(layer).__name__}"
    if any(getattr(layer, hooks) for hooks in vars(layer) if hooks.endswith("_hooks") and "state_dict" not in hooks):
        return "it has hooks, which would be lost"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            return f"groups={layer.groups}"
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}"
    return ""


@dataclass(frozen=True)
class LayerChoice:
    """What was measured of a layer and chosen. ``rate`` is the share of nonzero inputs; times are of its densest call."""

    name: str
    kind: str
    rate: float | None
    dense_ms: float | None
    event_ms: float | None
    break_even: float | None
    event_driven: bool
    note: str = ""


@dataclass(frozen=True)
class EventReport:
    """The choice of :func:`event_driven` for each layer, and how it was made."""

    layers: tuple[LayerChoice, ...]
    by: str

    def table(self) -> str:
        """One row a layer."""
        rows = [("layer", "kind", "rate", "dense ms", "event ms", "break-even", "chosen")]
        for c in self.layers:
            chosen = "event-driven" if c.event_driven else f"dense ({c.note})" if c.note else "dense"
            numbers = (
                _text(c.rate, ".1%"),
                _text(c.dense_ms, ".3f"),
                _text(c.event_ms, ".3f"),
                _text(c.break_even, ".1%"),
            )
            rows.append((c.name or "(the model)", c.kind, *numbers, chosen))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, f"chosen by {self.by}"])


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def event_driven(
    model: nn.Module, x: Tensor, *, by: str = "time", break_even: float = BREAK_EVEN, repeats: int = 5
) -> tuple[nn.Module, EventReport]:
    """A deep copy of ``model`` whose layers are event-driven where that is faster on ``x``, and what was measured.

    The copy computes what ``model`` does, to the rounding of sums, has the same parameters by name, and can be trained, attacked,
    counted and deployed; it is not saved as it is: save ``model``, or the copy's ``state_dict``. Layers with hooks, groups,
    subclasses, and layers that did not run stay dense, and the report says so.

    Args:
        model: Spiking or ordinary. A copy runs once on ``x``, in eval mode, under draws of its own.
        x: A batch like those to come: rates and times are those of this batch.
        by: ``"time"`` runs both products of each layer on what it saw and takes the faster: the choice may differ between
            machines and runs. ``"rate"``, which does not, takes the event-driven one where the rate is at most ``break_even``.
        break_even: For ``"rate"``, and then of the chosen layers. By ``"time"`` it is estimated for each layer from times at its
            rate and at one half.
        repeats: Timings of each product, of which the median counts. Times are CPU time.

    Raises:
        ValueError: the model has no convolution or linear layer.
    """
    checks.module("model", model)
    checks.choice("by", by, ("time", "rate"))
    checks.number("break_even", break_even, 0.0, 1.0)
    checks.count("repeats", repeats)
    copy = deepcopy(model)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = {name: m for name, m in copy.named_modules() if isinstance(m, kinds)}
    if not found:
        raise ValueError("the model has no nn.Linear or nn.Conv layer that could be event-driven")
    seen: dict[str, _Seen] = {name: _Seen() for name in found}
    unfit = {name: _unfit(layer) for name, layer in found.items()}
    handles = [layer.register_forward_pre_hook(partial(_see, seen[name])) for name, layer in found.items()]
    try:
        with torch.no_grad(), evaluating(copy), draws(copy, 0):
            copy(x)
    finally:
        for handle in handles:
            handle.remove()
    choices: list[LayerChoice] = []
    new: dict[nn.Module, EventConv2d | EventLinear] = {}
    for name, layer in found.items():
        choice = _choose(name, layer, unfit[name], seen[name], by, break_even, repeats)
        choices.append(choice)
        if choice.event_driven:
            assert choice.break_even is not None
            new[layer] = _event_layer(layer, choice.break_even)
    return _replace(copy, new), EventReport(tuple(choices), by)


class _Seen:
    """The inputs of a layer: how many there were, and the densest batch of them."""

    def __init__(self) -> None:
        self.inputs = self.nonzero = 0
        self.densest, self.densest_rate = torch.empty(0), -1.0

    def add(self, x: Tensor) -> None:
        nonzero = int(torch.count_nonzero(x))
        self.inputs += x.numel()
        self.nonzero += nonzero
        if x.numel() and nonzero / x.numel() > self.densest_rate:
            self.densest, self.densest_rate = x.detach(), nonzero / x.numel()


def _see(seen: _Seen, _: nn.Module, args: tuple[Any, ...]) -> None:
    if args:
        seen.add(args[0])


def _choose(
    name: str, layer: nn.Module, unfit: str, seen: _Seen, by: str, break_even: float, repeats: int
) -> LayerChoice:
    choice = partial(LayerChoice, name, type(layer).__name__)
    if not seen.inputs:
        return choice(None, None, None, None, False, "it did not run")
    rate = seen.nonzero / seen.inputs
    if not unfit and not native.available():
        unfit = "no compiled kernels"
    if not unfit and (seen.densest.device.type != "cpu" or seen.densest.dtype not in (torch.float32, torch.bfloat16)):
        unfit = f"{seen.densest.dtype} on {seen.densest.device}"
    if unfit:
        return choice(rate, None, None, None, False, unfit)
    if by == "rate":
        return choice(rate, None, None, break_even, rate <= break_even)
    x = seen.densest
    half = _half(x)
    events = _event_layer(layer, 1.0)
    with torch.no_grad():
        outputs = events(x).numel() // len(events.weight)
        dense_ms, event_ms, half_ms = _times([partial(layer, x), partial(events, x), partial(events, half)], repeats)
    half_rate = float(torch.count_nonzero(half)) / half.numel()
    even = _crossing(dense_ms, event_ms, seen.densest_rate, half_ms, half_rate)
    share = 1 - PACKING / outputs  # the kernel will allow this much of it
    faster = event_ms < dense_ms and share > 0
    even = min(even / share, _NEVER_ALWAYS) if share > 0 else 0.0
    return choice(rate, dense_ms, event_ms, even, faster)


def _half(x: Tensor) -> Tensor:
    """Like ``x``, with events at half of the places, all of one value so that spikes stay ones."""
    largest = x.abs().amax()
    coin = torch.empty_like(x).uniform_(generator=torch.Generator().manual_seed(0))
    return torch.where(coin < 0.5, torch.where(largest > 0, largest, 1.0), 0.0).to(x.dtype)


def _crossing(dense: float, event: float, rate: float, other_event: float, other_rate: float) -> float:
    """The rate at which event-driven takes as long as dense, its time being affine in the rate."""
    slope = (other_event - event) / (other_rate - rate) if other_rate != rate else 0.0
    if slope <= 0:  # the noise of the measurement, or one rate only
        return 1.0 if event < dense else 0.0
    return min(max(rate + (dense - event) / slope, 0.0), 1.0)


def _times(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median CPU time of each in ms, taking turns. One call of each is not counted."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for mine, function in zip(times, functions, strict=True):
            begin = time.process_time()
            function()
            if repeat:
                mine.append(1e3 * (time.process_time() - begin))
    return [sorted(mine)[len(mine) // 2] for mine in times]


def _event_layer(layer: nn.Module, break_even: float) -> EventConv2d | EventLinear:
    if isinstance(layer, nn.Conv2d):
        return EventConv2d(layer, break_even)
    assert isinstance(layer, nn.Linear)
    return EventLinear(layer, break_even)


def _replace(model: nn.Module, new: dict[nn.Module, EventConv2d | EventLinear]) -> nn.Module:
    """In every place where a layer stands."""
    for parent in list(model.modules()):
        for child, layer in list(parent._modules.items()):  # named_children() leaves out repeated ones
            if layer in new:
                setattr(parent, child, new[layer])
    return new.get(model, model)
