"""How a :class:`~snnrobust.layers.Sequential` runs its parts: what is alike at all steps is computed once, time is folded into
the batch around layers without memory, convolutions keep channels last, and normalisation and neurons run as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnrobust import temporal
from snnrobust.kernels.layout import for_convolution
from snnrobust.kernels.lif import watched
from snnrobust.kernels.pooling import avg_pool2d, max_pool2d
from snnrobust.layers.event_driven import EventConv2d, EventLinear
from snnrobust.layers.fused import fuses, hooked, lif_constants, run_fused
from snnrobust.layers.normalise import Normalise
from snnrobust.neurons.lif import lif_from
from snnrobust.temporal import State, Temporal

__all__ = ["advance", "run"]

_ALIKE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU, nn.LayerNorm,
    nn.GroupNorm, Normalise, EventConv2d, EventLinear,
)  # fmt: skip
_OWN_FORWARDS = {kind.forward for kind in _ALIKE}
"""Of layers that give each sample the same, whatever else is in the batch, and draw nothing."""
_OWN_HELPERS = {None, *(kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))}


def run(parts: Sequence[nn.Module], x: Tensor, steps: int = 0) -> Tensor:
    """The parts in order over a sequence ``[T, B, *]``; or over ``x`` ``[B, *]``, the same at each of ``steps``."""
    flow = _Flow(x, steps)
    index = 0
    while index < len(parts):
        module = parts[index]
        following = parts[index + 1] if index + 1 < len(parts) else None
        index += 1 + flow.take(module, following)
    return flow.sequence()


def advance(
    parts: Sequence[nn.Module], x: Tensor, states: dict[int, State], steps: int = 0
) -> tuple[Tensor, dict[int, State]]:
    """:func:`run` on from states by index, and the states after it; without any, from the zero state."""
    flow, after = _Flow(x, steps), {}
    for index, module in enumerate(parts):
        if isinstance(module, Temporal | nn.RNNBase):
            after[index] = flow.go_on(module, states.get(index), fresh=not states)
        else:
            flow.take(module, None)
    return flow.sequence(), after


class _Flow:
    """What flows from part to part: ``[T, B, *]``, folded ``[T * B, *]``, or ``[B, *]`` that is alike at all steps."""

    def __init__(self, x: Tensor, steps: int) -> None:
        self.watched, self.folded = watched(), False  # whoever watches is shown each step
        if not steps and x.shape[0] > 1 and x.stride(0) == 0 and x.numel() > 0 and not x.requires_grad:
            x, steps = x[0], x.shape[0]  # with a gradient of its own, x has another at each step
        self.x, self.steps, self.alike = x, steps or x.shape[0], steps > 0
        if self.watched:
            self.sequence()

    def sequence(self) -> Tensor:
        """``[T, B, *]``."""
        if self.alike:
            self.x, self.alike = self.x.expand(self.steps, *self.x.shape), False
        elif self.folded:
            self.x, self.folded = self.x.unflatten(0, (self.steps, -1)), False
        return self.x

    def batch(self) -> Tensor:
        """``[T * B, *]``."""
        if not self.folded:
            self.x, self.folded = self.sequence().flatten(0, 1), True
        return self.x

    def _traced(self) -> bool:
        return (
            self.watched or torch.compiler.is_compiling()
        )  # after a break in the graph, parts are compiled one by one

    def take(self, module: nn.Module, following: nn.Module | None) -> bool:
        """Go through ``module``; whether ``following`` was gone through too."""
        if not self._traced() and following is not None and self._fuse(module, following):
            return True
        if isinstance(module, Temporal | nn.RNNBase):
            self._temporal(module)
        elif self.alike and _samplewise(module) and not hooked(module):
            self.x = self._plain(module, self.x)
        else:
            self.x = self._plain(module, self.batch())
        return False

    def _temporal(self, module: Temporal | nn.RNNBase) -> None:
        if self.alike and isinstance(module, Temporal) and not hooked(module):
            self.x, self.alike = temporal.shown(module, self.x, self.steps), False
            return
        x = self.sequence()
        self.x = module(x) if isinstance(module, Temporal) else module(x)[0]

    def go_on(self, module: Temporal | nn.RNNBase, state: State, fresh: bool) -> State:
        """Go through ``module`` from ``state``, or from its zero state where all is ``fresh``; its state afterwards."""
        if isinstance(module, nn.RNNBase):
            self.x, state = module(self.sequence(), state)
            return state
        constants = lif_constants(module)
        if self.alike and constants is not None and not hooked(module):
            state = module.initial_state(self.x) if fresh else state
            rule = module.reset, module.surrogate, module.detach_reset, module.refractory
            self.x, state = lif_from(self.x, state, *constants, *rule, steps=self.steps)  # type: ignore[arg-type]
            self.alike = False
            return state
        x = self.sequence()
        self.x, state = temporal.advance(module, x, module.initial_state(x[0]) if fresh else state)
        return state

    def _fuse(self, module: nn.Module, following: nn.Module) -> bool:
        x = self.x if self.alike or not self.folded else self.x.unflatten(0, (self.steps, -1))
        steps = self.steps if self.alike else 0
        if not fuses(module, following, x, steps):
            return False
        self.x, self.alike, self.folded = run_fused(module, following, x, steps), False, False
        return True

    def _plain(self, module: nn.Module, x: Tensor) -> Tensor:
        if self._traced():
            return module(x)  # type: ignore[no-any-return]
        if isinstance(module, nn.Conv2d):
            x = for_convolution(x)
        elif type(module) is nn.MaxPool2d and not hooked(module):
            if not module.return_indices and module.dilation in (1, (1, 1)):
                return max_pool2d(x, module.kernel_size, module.stride, module.padding, module.ceil_mode)
        elif type(module) is nn.AvgPool2d and not hooked(module) and module.divisor_override is None:
            window = module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad
            return avg_pool2d(x, *window)
        return module(x)  # type: ignore[no-any-return]


def _samplewise(module: nn.Module) -> bool:
    kind = type(module)
    if getattr(module, "inplace", False):  # what is alike at all steps may be the caller's own tensor
        return False
    return kind.forward in _OWN_FORWARDS and getattr(kind, "_conv_forward", None) in _OWN_HELPERS
