"""Gradient sources: what an attacker differentiates. They compose: ``EOT(8, Surrogate(ATan(10.0)))``.

A source is a function of its arguments. One that learns from one iteration of an attack to the next has no state of its own
either: ``begin(source)`` gives the source for one run of an attack, which has, and which tells samples apart by their ids. An
attack of many steps begins each run (each restart) so; without it every call is the first of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snnrobust import checks
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, draws
from snnrobust.neurons import surrogate as surrogates

__all__ = [
    "EOT", "SOURCES", "Around", "Backprop", "GradientSource", "StraightThrough", "Surrogate", "again", "begin", "registered",
    "usable",
]  # fmt: skip

Precision = Literal["float32", "bfloat16"]


class GradientSource(Protocol):
    """``(gradient like x, logits [B, K])`` of ``loss`` at ``x``, with all of the model's draws from ``stream``."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]: ...


SOURCES: dict[str, type[Any]] = {}
"""By name: frozen dataclasses that are gradient sources."""

Kind = TypeVar("Kind", bound=type[Any])


def registered(kind: Kind) -> Kind:
    """Enters a class into ``SOURCES``. Its ``spiking`` says whether it needs spiking neurons."""
    checks.free_name(SOURCES, kind)
    SOURCES[kind.__name__] = kind
    return kind


def begin(source: GradientSource) -> GradientSource:
    """``source`` for one run of an attack: what it learns about samples at one call it uses at the next."""
    start: Callable[[], GradientSource] | None = getattr(source, "begin", None)
    return source if start is None else start()


def again(source: GradientSource) -> GradientSource:
    """``source`` for one more draw at the same inputs, which teaches it nothing."""
    repeat: Callable[[], GradientSource] | None = getattr(source, "again", None)
    return source if repeat is None else repeat()


class Around:
    """A frozen dataclass with a field ``source``, which it calls: it begins where that does."""

    def begin(self) -> Self:
        return replace(self, source=begin(self.source))  # type: ignore[type-var, attr-defined]

    def again(self) -> Self:
        return replace(self, source=again(self.source))  # type: ignore[type-var, attr-defined]


@registered
@dataclass(frozen=True)
class Backprop:
    """The model's own backward pass: every encoder's declared gradient and every neuron's training surrogate.

    Args:
        precision: ``"bfloat16"`` runs the layers that gain from it in 16 bits (``torch.autocast``): faster where the processor
            has it, and another attack, whose rounding turns spikes; judge it as any other.

    Raises:
        ValueError: no gradient path from the logits to ``x``, or NaN in logits or gradient.
    """

    spiking: ClassVar[bool] = False

    precision: Precision = "float32"

    def __post_init__(self) -> None:
        checks.choice("precision", self.precision, get_args(Precision))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "gradients cannot be taken under torch.inference_mode(): use torch.no_grad() around the attack"
            )
        x = x.detach().requires_grad_()
        with torch.enable_grad(), frozen(model), draws(model, stream.key, stream.sample_ids):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = checks.call(model, x, y).float() if self.precision == "bfloat16" else checks.call(model, x, y)
            total = loss(logits, y).sum()
            gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            raise ValueError(
                "the logits do not depend on x through any differentiable path (an encoder or a quantizer cuts it), so a "
                'gradient attack would do nothing: use an encoder with gradient="straight_through"'
            )
        return usable(gradient), logits.detach()


def usable(gradient: Tensor) -> Tensor:
    """``gradient`` ``[B, *]`` if it has no NaN."""
    if gradient.isnan().any():
        count = int(gradient.isnan().flatten(1).any(1).sum())
        raise ValueError(f"the gradient of {count} of {len(gradient)} samples has NaN")
    return gradient


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for its gradient: autograd leaves out those of torch's layers by itself, and no others."""
    learnt = [p for p in model.parameters() if p.requires_grad and not is_lazy(p)]
    try:
        for p in learnt:
            p.requires_grad_(False)
        yield
    finally:
        for p in learnt:
            p.requires_grad_(True)


@registered
@dataclass(frozen=True)
class Surrogate(Around):
    """``source`` through another surrogate than the one that trained the model.

    Raises:
        ValueError: the model has no surrogate.
    """

    spiking: ClassVar[bool] = True

    surrogate: surrogates.Surrogate
    source: GradientSource = field(default_factory=Backprop)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with surrogates.override(model, self.surrogate):
            return self.source(model, x, y, loss, stream)


@registered
@dataclass(frozen=True)
class StraightThrough(Around):
    r""":math:`\partial s / \partial u = 1` in all neurons (Bengio, Leonard and Courville 2013)."""

    spiking: ClassVar[bool] = True

    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        return Surrogate(surrogates.StraightThrough(), self.source)(model, x, y, loss, stream)


@registered
@dataclass(frozen=True)
class EOT(Around):
    r"""Expectation over transformation: the mean gradient and logits over ``samples`` independent draws.

    .. math:: g = \frac{1}{n} \sum_{i=1}^n \nabla_x L(f(x; w_i), y)

    Source: Athalye, Carlini and Wagner 2018. The loss gradients are averaged, not the logits.
    """

    spiking: ClassVar[bool] = False

    samples: int
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.count("samples", self.samples)
        inner: object = self.source
        while inner is not None:
            if getattr(inner, "freezes", False):
                raise ValueError("EOT averages fresh draws, which a Frozen source does not take: write Frozen(EOT(n))")
            inner = getattr(inner, "source", None)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        gradient, logits = self.source(model, x, y, loss, stream.fork("eot", 0))
        source = again(self.source)
        for i in range(1, self.samples):
            g, z = source(model, x, y, loss, stream.fork("eot", i))
            gradient, logits = gradient + g, logits + z
        return gradient / self.samples, logits / self.samples
