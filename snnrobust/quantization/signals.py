"""Quantized signals: inputs of layers, and potentials of neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust.neurons import Neuron, Recurrent
from snnrobust.neurons.neuron import potentials
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.straight import lsq, straight_through
from snnrobust.quantization.weights import lsq_scale, positive
from snnrobust.temporal import State, Temporal

__all__ = ["QuantizedMembrane", "SignalQuantizer"]

_MOMENTUM = 0.1


class SignalQuantizer(nn.Module):
    r"""Quantizes what passes, ``[*] -> [*]``, by a range that was observed before: no sample depends on those beside it.

    In train mode the range follows the batches, :math:`r \leftarrow 0.9 \, r + 0.1 \, r_{batch}`; ``calibrate`` takes the
    extremes of all its batches. A learned step is a parameter that the first batch initialises.

    Args:
        recipe: How; without ``axis``, and with no ``"least-squares"``.

    Raises:
        RuntimeError: it is used in eval mode before it has seen anything.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, recipe: Quantizer) -> None:
        super().__init__()
        if recipe.axis is not None:
            raise ValueError(f"axis is for weights: signals have one scale a layer, got axis = {recipe.axis}")
        if recipe.scale == "least-squares":
            raise ValueError("scale of a signal must be minmax, percentile, constant or learned, got least-squares")
        self.recipe = recipe
        low, high = recipe.limits or (0.0, 0.0)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.register_buffer("seen", torch.tensor(recipe.scale == "constant"))
        self.step = nn.Parameter(torch.ones(())) if recipe.scale == "learned" else None
        self.observing = False
        self.batches = 0  # that a learned step was observed on

    def grid(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """The step and the zero point."""
        if self.step is not None:
            return positive(self.step).to(dtype), None
        return self.recipe.of_range(self.low.to(dtype), self.high.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        if (self.training or self.observing) and self.recipe.scale != "constant":
            self._observe(x.detach())
        elif not (torch.compiler.is_compiling() or self.seen.is_meta) and not bool(self.seen):
            raise RuntimeError(
                "the range of a quantized signal is not known yet: call quantization.calibrate(model, x) with some of the "
                "training data first"
            )
        step, zero = self.grid(x.dtype)
        if self.step is not None:
            return lsq(x, step, self.recipe.levels, lsq_scale(self.recipe, x[0].numel() if x.dim() > 1 else x.numel()))
        return straight_through(x, step, zero, self.recipe.levels, self.recipe.gradient != "identity")

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if self.step is not None:
            if (self.observing or not bool(self.seen) or bool(self.step == 0)) and bool(x.any()):
                # the mean over the batches of a calibration; one batch is enough for a training
                self.batches = self.batches + 1 if self.observing else 1
                mean = self.recipe.grid(x)[0]
                self.step.copy_(mean if self.batches == 1 else self.step.lerp(mean, 1 / self.batches))
            elif not bool(self.seen):
                self.step.zero_()  # silent so far: the first batch that is not initialises it
            self.seen.fill_(True)
            return
        if not bool(x.isfinite().all()):
            raise ValueError("a signal that is to be quantized contains NaN or infinity")
        low, high = (end.to(self.low) for end in self.recipe.ends(x))
        silent = bool(self.low == 0) and bool(self.high == 0)
        if not bool(self.seen) or (silent and not self.observing):
            self.low.copy_(low)
            self.high.copy_(high)
        elif self.observing:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        else:
            self.low.lerp_(low, _MOMENTUM)
            self.high.lerp_(high, _MOMENTUM)
        self.seen.fill_(True)

    def extra_repr(self) -> str:
        return repr(self.recipe)


class QuantizedMembrane(Temporal):
    r"""Spiking neurons whose potential is stored quantized: :math:`v_t \leftarrow q(v_t)` after each step's reset.

    Runs step by step: the fused kernel of the neuron keeps potentials in float32.

    Args:
        neuron: Any whose state has a potential ``v``.
        quantizer: Of the potential. With limits it is a memory of fixed range, as chips have it.
    """

    def __init__(self, neuron: nn.Module, quantizer: nn.Module) -> None:
        super().__init__()
        if (
            isinstance(neuron, Recurrent)
            or not isinstance(neuron, Neuron)
            or not isinstance(quantizer, SignalQuantizer)
        ):
            raise TypeError(
                f"needs a spiking neuron of ours and a SignalQuantizer, got {type(neuron).__name__} and "
                f"{type(quantizer).__name__}"
            )
        self.neuron, self.quantizer = neuron, quantizer

    def initial_state(self, x_t: Tensor) -> State:
        state = self.neuron.initial_state(x_t)
        if _stored(state, lambda v: v) is None:
            raise TypeError(f"the state of {type(self.neuron).__name__} has no potential v to quantize")
        return state

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, State]:
        s, after = self.neuron.step(x_t, state)
        return s, _stored(after, self.quantizer)

    def potential(self, state: Any) -> Tensor:
        found: Tensor = self.neuron.potential(state)
        return found

    def membrane(self, x: Tensor) -> Tensor:
        """The stored potential after each step, ``[T, B, *]``, without gradient."""
        return potentials(self, self.potential, x)


def _stored(state: Any, quantize: Callable[[Tensor], Tensor]) -> Any:
    """``state`` with its potential quantized, also where a chip's effect has put the neuron's state into its own; None: no v."""
    if isinstance(getattr(state, "v", None), Tensor):
        return state._replace(v=quantize(state.v))
    for name in getattr(state, "_fields", ()):
        inner = _stored(getattr(state, name), quantize)
        if inner is not None:
            return state._replace(**{name: inner})
    return None
