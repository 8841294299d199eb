"""Gradient sources: what an attacker differentiates. They compose: ``EOT(8, Surrogate(ATan(10.0)))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snnrobust import checks
from snnrobust.draws import Stream, draws
from snnrobust.neurons import surrogate as surrogates

__all__ = ["EOT", "Backprop", "GradientSource", "Loss", "Surrogate", "cross_entropy", "margin"]

Precision = Literal["float32", "bfloat16"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(logits [B, K], y [B]) -> loss [B]``, which an attacker raises."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`-\log \operatorname{softmax}(z)_y`, per sample."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`\max_{j \ne y} z_j - z_y`, per sample: positive where the prediction is wrong (Carlini and Wagner 2017)."""
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


class GradientSource(Protocol):
    """``(gradient like x, logits [B, K])`` of ``loss`` at ``x``, with all of the model's draws from ``stream``."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Backprop:
    """The model's own backward pass: every encoder's declared gradient and every neuron's training surrogate.

    Args:
        precision: ``"bfloat16"`` runs the layers that gain from it in 16 bits (``torch.autocast``): faster where the processor
            has it, and another attack, whose rounding turns spikes; judge it as any other.

    Raises:
        ValueError: no gradient path from the logits to ``x``, or NaN in logits or gradient.
    """

    precision: Precision = "float32"

    def __post_init__(self) -> None:
        checks.choice("precision", self.precision, get_args(Precision))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "gradients cannot be taken under torch.inference_mode(): use torch.no_grad() around the attack"
            )
        x = x.detach().requires_grad_()
        with torch.enable_grad(), _frozen(model), draws(model, stream.key, stream.sample_ids):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = checks.call(model, x, y).float() if self.precision == "bfloat16" else checks.call(model, x, y)
            total = loss(logits, y).sum()
            gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            raise ValueError(
                "the logits do not depend on x through any differentiable path (an encoder or a quantizer cuts it), so a "
                'gradient attack would do nothing: use an encoder with gradient="straight_through"'
            )
        if gradient.isnan().any():
            raise ValueError(
                f"the gradient of {int(gradient.isnan().flatten(1).any(1).sum())} of {len(x)} samples has NaN"
            )
        return gradient, logits.detach()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for its gradient: autograd leaves out those of torch's layers by itself, and no others."""
    learnt = [p for p in model.parameters() if p.requires_grad and not is_lazy(p)]
    try:
        for p in learnt:
            p.requires_grad_(False)
        yield
    finally:
        for p in learnt:
            p.requires_grad_(True)


@dataclass(frozen=True)
class Surrogate:
    """``source`` through another surrogate than the one that trained the model.

    Raises:
        ValueError: the model has no surrogate.
    """

    surrogate: surrogates.Surrogate
    source: GradientSource = field(default_factory=Backprop)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with surrogates.override(model, self.surrogate):
            return self.source(model, x, y, loss, stream)


@dataclass(frozen=True)
class EOT:
    r"""Expectation over transformation: the mean gradient and logits over ``samples`` independent draws.

    .. math:: g = \frac{1}{n} \sum_{i=1}^n \nabla_x L(f(x; w_i), y)

    Source: Athalye, Carlini and Wagner 2018. The loss gradients are averaged, not the logits.
    """

    samples: int
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.count("samples", self.samples)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        gradient, logits = self.source(model, x, y, loss, stream.fork("eot", 0))
        for i in range(1, self.samples):
            g, z = self.source(model, x, y, loss, stream.fork("eot", i))
            gradient, logits = gradient + g, logits + z
        return gradient / self.samples, logits / self.samples
