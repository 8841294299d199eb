"""A model of any library as a classifier: inputs batch first, logits out, no state between calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import one_key
from snnrobust.encoders import Encoder
from snnrobust.interop.examine import examine
from snnrobust.interop.state import Reset, fresh

__all__ = ["Wrapped", "wrap"]

Reduction = Literal["sum", "mean", "last", "max"]
Decode = Reduction | Callable[[Any], Tensor]
TimeAxis = Literal["step"] | int | None
Record = Literal["spikes", "membrane"]

_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda y: y.sum(0),
    "mean": lambda y: y.mean(0),
    "last": lambda y: y[-1],
    "max": lambda y: y.amax(0),
}
_OUTPUT: dict[str, int] = {"spikes": 0, "membrane": -1}


class Wrapped(nn.Module):
    """What :func:`wrap` returns: ``model`` from the zero state at every call, inputs ``[B, *]`` to logits ``[B, K]``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        time_axis: TimeAxis,
        time_steps: int | None,
        encoder: Encoder | None,
        decode: Decode | None,
        output: Record | int | None,
        reset: Reset | None,
    ) -> None:
        super().__init__()
        self.time_axis, self.time_steps = time_axis, time_steps
        self.decode, self.output, self.state_reset = decode, output, reset
        self.encoder, self.model = encoder, model
        self.training = model.training  # each module keeps its own mode
        self._time_out: int | None = time_axis if isinstance(time_axis, int) else None
        self._examined = False

    def forward(self, x: Tensor) -> Tensor:
        if not self._examined:
            self._time_out = examine(self, x)
            self._examined = True
        with one_key(self), fresh(self.model, self.state_reset):
            return self.decoded(self.outputs(x), len(x))

    def sequence(self, x: Tensor) -> Tensor:
        """What the model is shown, ``[T, B, *]``."""
        if self.encoder is not None:
            return self.encoder(x)  # type: ignore[no-any-return]
        assert self.time_steps is not None
        return x.expand(self.time_steps, *x.shape)

    def outputs(self, x: Tensor) -> Any:
        """What the model returns: one value, or with ``time_axis="step"`` all of them stacked, time first."""
        if self.time_axis is None:
            return self.chosen(self.model(x))
        shown = self.sequence(x)
        if self.time_axis == "step":
            return _stacked([self.chosen(self.model(x_t)) for x_t in shown.unbind(0)])
        return self.chosen(self.model(shown.movedim(0, self.time_axis).contiguous()))

    def chosen(self, value: Any) -> Any:
        """The output that counts, of a model that returns several."""
        if self.output is None:
            if isinstance(value, tuple | list) and not callable(self.decode):
                raise ValueError(
                    f"the model returns {len(value)} values ({', '.join(map(_shown, value))}): say which is decoded, "
                    'output="spikes" (the first), output="membrane" (the last) or a number'
                )
            return value
        if not isinstance(value, tuple | list):
            raise ValueError(
                f"output={self.output!r} chooses one of several values, but the model returns {_shown(value)}"
            )
        index = self.output if isinstance(self.output, int) else _OUTPUT[self.output]
        if not -len(value) <= index < len(value):
            raise ValueError(
                f"output must be below {len(value)}, the number of values that the model returns, got {index}"
            )
        return value[index]

    def decoded(self, value: Any, batch: int) -> Tensor:
        """Logits ``[B, K]`` of what :meth:`outputs` gave."""
        if callable(self.decode):
            return self.decode(value)
        if not isinstance(value, Tensor):
            raise ValueError(f"what is decoded must be a tensor, got {_shown(value)}: pass a function as decode")
        if self.decode is None:
            if value.dim() > 2:
                raise ValueError(
                    f"the model returns {_shown(value)}, which is not logits [B, K]: say how time is decoded, "
                    f"decode={' or '.join(map(repr, _REDUCE))} or a function"
                )
            return value
        if value.dim() != 3:
            raise ValueError(
                f"decode={self.decode!r} takes the time axis away from [T, B, K], but the model returns {_shown(value)}: "
                + ("leave decode out" if value.dim() == 2 else "pass a function as decode")
            )
        axis = 0 if self.time_axis == "step" or self._time_out is None else self._time_out
        if value.shape[1 - axis] != batch:
            layout = "[T, B, K]" if axis == 0 else "[B, T, K]"
            raise ValueError(
                f"the model must return {layout} for B = {batch}, got {_shown(value)}: pass a function as decode"
            )
        return _REDUCE[self.decode](value.movedim(axis, 0))

    def extra_repr(self) -> str:
        given = ("time_axis", "time_steps", "decode", "output", "state_reset")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in given if getattr(self, name) is not None)


def wrap(
    model: nn.Module,
    *,
    time_axis: TimeAxis,
    time_steps: int | None = None,
    encoder: Encoder | None = None,
    decode: Decode | None = None,
    output: Record | int | None = None,
    reset: Reset | None = None,
) -> Wrapped:
    """``model`` as attacks, ``evaluate`` and ``diagnose`` take it; its code, weights and modes are untouched.

    At every call all state starts afresh (SpikingJelly's memories, snnTorch's ``reset_mem``, any method ``reset``,
    ``reset_state`` or ``reset_states``), and afterwards it is what it was before. The first call also examines the model, on a
    few samples: see Raises.

    Args:
        model: Any module.
        time_axis: What ``model`` takes. ``"step"``: one time step ``[B, *]``; it is called T times. ``0`` or ``1``: the whole
            sequence, ``[T, B, *]`` or ``[B, T, *]``. ``None``: the input as it is; what happens over time is its own business.
        time_steps: T; the input is shown at each step. Event frames ``[B, T, *]`` need ``encoder=Frames(T)``.
        encoder: One of snnrobust in place of that, from ``[B, *]`` to ``[T, B, *]``; its draws are keyed.
        decode: From the outputs over time to logits: ``"sum"``, ``"mean"``, ``"last"`` or ``"max"``, or a function of what the
            model returned (with ``"step"`` stacked, time first). ``None`` where the model returns ``[B, K]``.
        output: Which of several returned values: ``"spikes"``, the first; ``"membrane"``, the last; or its number.
        reset: ``reset(model)`` resets what the model keeps in a way of its own.

    Raises:
        HiddenStateError: (at the first call) the logits of the same input differ at a second call, because state is left over.
        ValueError, TypeError: contradictions; (at the first call) neurons of single steps that are shown whole sequences, or a
            loop over time in a model that was said to take one step.
    """
    checks.module("model", model)
    _takes_one_input(model)
    if isinstance(time_axis, bool) or time_axis not in ("step", 0, 1, None):
        raise ValueError(
            f'time_axis must be "step" (the model takes one time step), 0 ([T, B, ...]), 1 ([B, T, ...]) or None (it takes the '
            f"input as it is), got {time_axis!r}"
        )
    if encoder is not None and not isinstance(encoder, Encoder):
        raise TypeError(f"encoder must be an encoder such as Poisson(8) or Frames(8), got {type(encoder).__name__}")
    if time_steps is not None:
        checks.count("time_steps", time_steps)
    if encoder is not None and time_steps not in (None, encoder.time_steps):
        raise ValueError(
            f"time_steps is {time_steps}, but the encoder gives {encoder.time_steps}: leave time_steps out"
        )
    if time_axis is None and encoder is not None:
        raise ValueError(
            'time_axis=None shows the model x itself, without encoder: say where time goes, "step", 0 or 1'
        )
    if time_axis is not None and encoder is None and time_steps is None:
        raise ValueError(
            "give time_steps=T to show an image at T steps, or an encoder: Poisson(T), Frames(T) for events"
        )
    if decode is not None and not callable(decode):
        checks.choice("decode", decode, get_args(Reduction))
    if decode is None and time_axis == "step":
        raise ValueError('time_axis="step" gives outputs [T, B, K]: say how they are decoded, such as decode="mean"')
    if output is not None and (isinstance(output, bool) or not isinstance(output, int)):
        checks.choice("output", str(output), get_args(Record))
    if reset is not None:
        checks.function("reset", reset)
    steps = time_steps if encoder is None else encoder.time_steps
    return Wrapped(
        model, time_axis=time_axis, time_steps=steps, encoder=encoder, decode=decode, output=output, reset=reset
    )


def _takes_one_input(model: nn.Module) -> None:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return  # compiled: it will say so itself
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise ValueError(
            f"{type(model).__name__}.forward takes {', '.join(needed)}, but a wrapped model gets one input: wrap a module whose "
            "forward makes the others itself"
        )


def _stacked(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.stack(values)
    if isinstance(first, tuple | list) and all(isinstance(v, Tensor) for v in first):
        return tuple(map(torch.stack, zip(*values, strict=True)))
    return values


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
