"""Synaptic layers whose error goes back through other weights than the ones that sent the signal forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from snnrobust.draws import derive, draws, evaluating, keyed
from snnrobust.layers import EventConv2d, EventLinear
from snnrobust.learning_rules.chain import SYNAPTIC

__all__ = ["carries_feedback", "feedback_weights", "first_synapses", "initial_weights", "through"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_FORWARDS = {kind.forward for kind in (*SYNAPTIC, EventConv2d, EventLinear)}
_HELPERS = {None, *(kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))}


def initial_weights(key: int, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    r"""Uniform in :math:`\pm 1/\sqrt{\text{fan-in}}` (that of ``shape[1:]``), as ``nn.Linear`` and ``nn.Conv`` begin.

    Drawn on the CPU in float32, so that all devices and dtypes have the same; then in the dtype and on the device of ``like``.
    """
    with keyed(key):
        weight = torch.empty(shape, dtype=torch.float32)
        bound = (weight.numel() / len(weight)) ** -0.5
        return weight.uniform_(-bound, bound).to(like)


def carries_feedback(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer or convolution and computes what such a layer does, nothing else."""
    kind = type(layer)
    own = kind.forward in _FORWARDS and getattr(kind, "_conv_forward", None) in _HELPERS
    return isinstance(layer, SYNAPTIC) and own and "forward" not in vars(layer)


def first_synapses(model: nn.Module, example: Tensor) -> set[str]:
    """The synaptic layers that no other comes before: those with the input. The model is run once on ``example`` ``[1, *]``."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SYNAPTIC)}
    behind: dict[str, bool] = {}

    def look(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        behind[name] = behind.get(name, False) or args[0].requires_grad
        return output.detach().requires_grad_()  # the mark of what stands behind a synapse

    handles = [m.register_forward_hook(partial(look, name)) for name, m in layers.items()]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    try:
        with torch.enable_grad(), evaluating(model), draws(model, 0):
            functional_call(model, weights, (example.detach(),))
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, later in behind.items() if not later}


@contextmanager
def through(feedback: Mapping[nn.Module, Callable[[Tensor], Tensor]], learning: bool = True) -> Iterator[None]:
    r"""Inside, the error passes each layer by :math:`\delta_x = B^\top \delta_y`: convolutions by their transpose of kernel B.

    The forward pass and the gradients of weight and bias stay what they are.

    Args:
        feedback: From a layer's weight to B, of the weight's shape.
        learning: False where only the gradient of the input is asked for.
    """
    before = [(layer, vars(layer).get("forward")) for layer in feedback]
    try:
        for layer, weights in feedback.items():
            vars(layer)["forward"] = partial(_forward, layer, weights, learning)
        yield
    finally:
        for layer, own in before:
            vars(layer).pop("forward")
            if own is not None:
                vars(layer)["forward"] = own


def _forward(layer: Any, feedback: Callable[[Tensor], Tensor], learning: bool, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    back = feedback(weight.detach())
    if not learning:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    if isinstance(layer, nn.Linear):
        return _Linear.apply(x, weight, bias, back)  # type: ignore[no-any-return, no-untyped-call]
    padding = layer.padding
    if layer.padding_mode != "zeros" or padding == "same":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode), "valid"
    if padding == "valid":
        padding = (0,) * len(layer.kernel_size)
    how = (layer.stride, padding, layer.dilation, layer.groups)
    return _Convolution.apply(x, weight, bias, back, how)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        ctx.save_for_backward(x.to(y.dtype), back.to(y.dtype))  # under autocast, the dtype of the error
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, back = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        rows = error.flatten(0, -2)
        return (
            error @ back if to_x else None,
            rows.T @ x.flatten(0, -2) if to_weight else None,
            rows.sum(0) if to_bias else None,
            None,
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor, how: Any) -> Tensor:
        y = _CONVOLUTIONS[weight.dim()](x, weight, bias, *how)
        ctx.save_for_backward(x.to(y.dtype), back.to(y.dtype))
        ctx.how = how
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, back = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        # the gradients of weight and bias do not depend on the weight, so this is the backward pass of a layer with weight B
        gradients = torch.ops.aten.convolution_backward(
            error, x, back, [len(back)], stride, padding, dilation, False, [0] * len(stride), groups,
            list(ctx.needs_input_grad[:3]),
        )  # fmt: skip
        return (*gradients, None, None)


def feedback_weights(seed: int, name: str, weight: Tensor) -> Tensor:
    """B of the layer ``name``: fixed by the seed, drawn as an untrained layer's weights are."""
    return initial_weights(derive(seed, "feedback", name.replace("_orig_mod.", "")), weight.shape, weight)
