"""Backward pass differentiable approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.attacks.gradient import Around, Backprop, GradientSource, registered
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream

__all__ = ["BPDA", "identity"]


def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


@registered
@dataclass(frozen=True)
class BPDA(Around):
    r"""``source`` with one module :math:`h` differentiated as if it were another function :math:`\tilde h`: forward
    :math:`h(x)`, backward :math:`\partial \tilde h / \partial x`.

    For a module that cuts the gradient or falsifies it, such as an encoder or a quantizer.

    Args:
        target: The module, or its path in the model: ``"encoder"``, ``"network.0"``.
        approximation: :math:`\tilde h`, of the same arguments. Its value must broadcast to that of the module: what an encoder
            makes of ``[B, *]``, ``[T, B, *]``, may be approximated by the identity.
        source: What is called with it.

    Raises:
        ValueError: the model has no such module or does not call it, or the shapes do not fit.

    Source: Athalye, Carlini and Wagner 2018, "Obfuscated gradients give a false sense of security".
    """

    spiking: ClassVar[bool] = False

    target: str | nn.Module
    approximation: Callable[..., Tensor] = identity
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        if not isinstance(self.target, str | nn.Module):
            raise TypeError(f'target must be a module or its path, such as "encoder", got {self.target!r:.80}')
        checks.function("approximation", self.approximation)
        checks.function("source", self.source)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        with _approximated(self._module(model), self.approximation):
            return self.source(model, x, y, loss, stream)

    def _module(self, model: nn.Module) -> nn.Module:
        paths = {name: m for name, m in model.named_modules() if name}
        found = paths.get(self.target) if isinstance(self.target, str) else self.target
        if found is None or not any(m is found for m in paths.values()):
            shown = repr(self.target) if isinstance(self.target, str) else type(self.target).__name__
            raise ValueError(f"{type(model).__name__} holds no module {shown}{checks.nearest(self.target, paths)}")
        return found


_ABSENT = object()


@contextmanager
def _approximated(module: nn.Module, approximation: Callable[..., Tensor]) -> Iterator[None]:
    before, forward, called = module.__dict__.get("forward", _ABSENT), module.forward, [False]

    def instead(*inputs: Any) -> Tensor:
        called[0] = True
        with torch.no_grad():
            value = forward(*inputs)
        smooth = approximation(*inputs)
        if not _broadcasts(smooth.shape, value.shape):
            raise ValueError(
                f"the approximation gives {tuple(smooth.shape)}, which does not broadcast to {tuple(value.shape)}, what "
                f"{type(module).__name__} gives: pass BPDA another approximation"
            )
        return _Instead.apply(smooth, value)  # type: ignore[no-any-return, no-untyped-call]

    module.__dict__["forward"] = instead
    try:
        yield
        if not called[0]:
            raise ValueError(f"BPDA approximates {type(module).__name__}, but the model did not call its forward")
    finally:
        if before is _ABSENT:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in pairs)


class _Instead(torch.autograd.Function):
    """``value``, with the gradient of ``smooth``."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = smooth.shape, smooth.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.sum_to_size(ctx.shape).to(ctx.dtype), None
