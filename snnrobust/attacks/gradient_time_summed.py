"""The gradient of Sharmin et al.: summed over time before the first layer, the encoder left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import frozen, registered, usable
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream, draws
from snnrobust.hardware.synapses import DeployedLayer

__all__ = ["TimeSummed"]

_SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, DeployedLayer)


@registered
@dataclass(frozen=True)
class TimeSummed:
    r"""The error at the first layer, summed over time and sent back through that layer; what is before it passes it unchanged.

    .. math:: g = W_1^\top \sum_t \frac{\partial L}{\partial (W_1 s_t)}

    For a convolution :math:`W_1^\top` is the convolution with the kernel turned by 180 degrees. :math:`\partial L / \partial (W_1
    s_t)` goes back in time through the membranes. The encoder is skipped, whatever gradient it declares, and so is all else
    that stands before the first layer, a normalisation of the input for instance.

    Raises:
        ValueError: no linear layer or convolution, or one whose input has another size than a sample: there is no encoder that
            could be skipped, or it changes the shape, or something between them does.

    Source: Sharmin et al. 2020, "Inherent adversarial robustness of deep spiking neural networks: effects of discrete input
    encoding and non-linear activations" (ECCV).
    """

    spiking: ClassVar[bool] = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        x = x.detach()
        with torch.enable_grad(), frozen(model), _watched(model) as first, draws(model, stream.key, stream.sample_ids):
            logits = checks.call(model, x, y)
            inputs = first()
            if not inputs:
                raise ValueError(
                    f"{type(model).__name__} calls no linear layer or convolution, so that TimeSummed has no first layer: use "
                    "Backprop"
                )
            total = loss(logits, y).sum()
            found = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else [None]
            if all(error is None for error in found):
                raise ValueError(
                    "the logits do not depend on x through any differentiable path from the first layer on: a neuron or a "
                    "quantizer cuts it"
                )
        gradient = torch.zeros_like(x)
        for given, error in zip(inputs, found, strict=True):
            if not any(prod(given.shape[axis:]) == x[0].numel() for axis in range(1, given.dim())):
                raise ValueError(
                    f"the first layer takes {tuple(given.shape)}, which is no sequence of inputs {tuple(x.shape)}: TimeSummed is "
                    'for encoders that keep the shape of an image; use BPDA("encoder", ...)'
                )
            if error is not None:
                gradient += error.reshape(-1, *x.shape).sum(0).to(x.dtype)
        return usable(gradient), logits.detach()


@contextmanager
def _watched(model: nn.Module) -> Iterator[Any]:
    """Inside, the inputs of first layers are leaves: of those that no other comes before. Yields what gives the leaves."""
    taken: list[tuple[nn.Module, Tensor]] = []
    behind: set[nn.Module] = set()

    def cut(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[
            0
        ].requires_grad:  # so another layer came before; of a recurrent one at the first step there is none to see
            behind.add(layer)
            return args
        leaf = args[0].detach().requires_grad_()
        taken.append((layer, leaf))
        return (leaf, *args[1:])

    handles = [m.register_forward_pre_hook(cut) for m in model.modules() if isinstance(m, _SYNAPTIC)]
    try:
        yield lambda: [leaf for layer, leaf in taken if layer not in behind]
    finally:
        for handle in handles:
            handle.remove()
