"""What every spiking neuron has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.kernels.lif import state_dtype
from snnrobust.neurons.surrogate import SILENT, Surrogate, spike
from snnrobust.temporal import State, Temporal

__all__ = ["NEURONS", "Membrane", "Neuron", "Reset", "continues", "fire", "heard", "potentials", "shown", "within"]

Reset = Literal["soft", "hard"]
Constant = float | Sequence[float] | Tensor
"""A number, or one per channel."""

NEURONS: dict[str, type[Neuron]] = {}


class Membrane(NamedTuple):
    """State of a neuron: the potential after the reset, ``[B, *]`` (float32 for inputs of 16 bits), and, where a refractory
    period or the surrogate needs it, the number of steps since the last spike."""

    v: Tensor
    quiet: Tensor | None


class Neuron(Temporal):
    """Base of all spiking neurons, ``[T, B, *] -> [T, B, *]``; subclasses register themselves by name.

    Args:
        reset: ``"soft"`` subtracts the threshold, ``"hard"`` returns to zero.
        surrogate: Derivative used for ds/dh in the backward pass.
        detach_reset: Whether the spike in the reset counts as a constant in the backward pass.
        refractory: Steps after a spike in which the neuron ignores its input and does not fire; its leak goes on.
    """

    threshold: float | Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.free_name(NEURONS, cls)
        NEURONS[cls.__name__] = cls

    def __init__(self, reset: Reset, surrogate: Surrogate, detach_reset: bool, refractory: int) -> None:
        super().__init__()
        check_rule(reset, surrogate, detach_reset, refractory)
        self.reset, self.surrogate = reset, surrogate
        self.detach_reset, self.refractory = detach_reset, refractory

    def membrane(self, x: Tensor) -> Tensor:
        """The potential after each step's reset, ``[T, B, *]``, without gradient."""
        return potentials(self, self.potential, x)

    def potential(self, state: State) -> Tensor:
        """The potential in a state."""
        return state.v  # type: ignore[no-any-return]

    def _rest(self, x_t: Tensor) -> Membrane:
        if not x_t.is_floating_point():
            raise TypeError(f"x_t must be floating, got {x_t.dtype}: convert with x_t.float()")
        check_rule(self.reset, self.surrogate, self.detach_reset, self.refractory)  # they may have been set since
        timed = self.refractory > 0 or self.surrogate.timed
        return Membrane(torch.zeros_like(x_t, dtype=state_dtype(x_t.dtype)), silence(x_t) if timed else None)

    def _fire(
        self, h: Tensor, threshold: float | Tensor, quiet: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Membrane]:
        s, after = fire(h, threshold, quiet, self.reset, self.surrogate, self.detach_reset, self.refractory)
        return s.to(dtype), after

    def _constant(
        self, name: str, value: Constant, low: float, high: float, *, positive: bool, attribute: str = ""
    ) -> None:
        """Keep a number as an attribute, one per channel as a buffer; of the same name unless told."""
        attribute = attribute or name
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()
        if isinstance(value, int | float | str):
            number = checks.number(name, value, low, high, exclusive_low=positive, hint=_HINTS.get(name, ""))
            setattr(self, attribute, number)
        else:
            self.register_buffer(attribute, channels(name, value, low, high, positive=positive))

    def _described(self, *names: str) -> str:
        parts = []
        for name in names:
            parts.append(f"{name}={shown(getattr(self, name))}")
        parts += [f"reset={self.reset!r}", f"surrogate={self.surrogate}"]
        parts += [] if self.detach_reset else ["detach_reset=False"]
        parts += [f"refractory={self.refractory}"] if self.refractory else []
        return ", ".join(parts)


def potentials(module: Temporal, potential: Callable[[State], Tensor], x: Tensor) -> Tensor:
    """``potential(state)`` after each step of ``module``, ``[T, B, *]``, without gradient."""
    checks.sequence("x", x)
    trace = []
    with torch.no_grad():
        state = module.initial_state(x[0])
        for x_t in x.unbind(0):
            _, state = module.step(x_t, state)
            trace.append(potential(state))
    return torch.stack(trace)


def continues(x_t: Tensor, before: Tensor) -> Tensor:
    """``x_t`` if a state that holds ``before`` is one of its batch: a smaller one would be broadcast without a word."""
    if x_t.shape != before.shape or before.dtype not in (x_t.dtype, state_dtype(x_t.dtype)):
        raise ValueError(
            f"the state is one of inputs {tuple(before.shape)} of {before.dtype}, and x_t is {tuple(x_t.shape)} of {x_t.dtype}: "
            "begin with initial_state(x_t)"
        )
    return x_t


def heard(x_t: Tensor, quiet: Tensor | None, refractory: int) -> Tensor:
    """The input that a neuron does not ignore ``quiet`` steps after its last spike."""
    return x_t * (quiet > refractory) if refractory and quiet is not None else x_t


def shown(value: object) -> str:
    count = value.numel() if isinstance(value, Tensor) else len(value) if isinstance(value, tuple) else None
    return repr(value) if count is None else f"{count} values"


def fire(
    h: Tensor,
    threshold: float | Tensor,
    quiet: Tensor | None,
    reset: Reset,
    surrogate: Surrogate,
    detach_reset: bool = True,
    refractory: int = 0,
) -> tuple[Tensor, Membrane]:
    r"""Fire and reset: :math:`s = [h \ge \theta]`, then :math:`v = h - \theta s` (soft) or :math:`v = h (1 - s)` (hard).

    Args:
        h: Potential after the charge, ``[B, *]``.
        threshold: :math:`\theta`, a number or a tensor that broadcasts to ``h``.
        quiet: Steps since the last spike, or None where nothing needs it.
        reset, surrogate, detach_reset, refractory: As in :class:`Neuron`.
    """
    s = spike(h - threshold, surrogate, quiet)
    if refractory and quiet is not None:
        s = s * (quiet > refractory)
    fired = s.detach() if detach_reset else s
    v = h * (1.0 - fired) if reset == "hard" else h - fired * threshold
    if quiet is not None:
        quiet = torch.where(s.detach() > 0, 1.0, quiet + 1.0)
    return s, Membrane(v, quiet)


def silence(x_t: Tensor) -> Tensor:
    """Steps since the last spike of neurons that have not fired; float32, as bfloat16 cannot count past 256."""
    return torch.full_like(x_t, SILENT, dtype=torch.float32)


_HINTS = {"decay": "use decay=1.0 for integrate-and-fire"}


def check_rule(reset: str, surrogate: Surrogate, detach_reset: bool, refractory: int) -> None:
    """Raise where one of the arguments that all neurons share is wrong."""
    checks.choice("reset", reset, get_args(Reset))
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a Surrogate such as ATan(2.0), got {surrogate!r}")
    checks.boolean("detach_reset", detach_reset)
    if checks.count("refractory", refractory, low=0) >= SILENT:
        raise ValueError(f"refractory must be below {SILENT} steps, got {refractory}: use a shorter period")


def within(name: str, value: float | Tensor, high: float, *, positive: bool = False) -> float | Tensor:
    """A constant given to a function: a number or a tensor in [0, high], or (0, high]."""
    if isinstance(value, Tensor):
        return checks.within(name, value, 0.0, high, exclusive_low=positive)
    return checks.number(name, value, 0.0, high, exclusive_low=positive, hint=_HINTS.get(name, ""))


def channels(name: str, value: Constant, low: float, high: float, *, positive: bool) -> Tensor:
    """One number per channel as a float tensor ``[C]``, each within its range."""
    try:
        numbers = value.detach().cpu().tolist() if isinstance(value, Tensor) else list(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name} must be a number or one number per channel, got {value!r:.80}") from error
    if not isinstance(numbers, list) or not numbers or any(isinstance(n, list) for n in numbers):
        raise ValueError(f"{name} must be a number or one number per channel [C], got {value!r:.80}")
    for number in numbers:
        checks.number(name, number, low, high, exclusive_low=positive, hint=_HINTS.get(name, ""))
    given = value.dtype if isinstance(value, Tensor) and value.is_floating_point() else torch.get_default_dtype()
    return torch.tensor(numbers, dtype=given)


def along_channels(name: str, value: float | Tensor, x_t: Tensor) -> float | Tensor:
    """``value`` as something that broadcasts to ``[B, C, *]``, in the dtype of the state so that it keeps that."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(state_dtype(x_t.dtype)) if x_t.is_floating_point() else value
    if value.dim() == 0:
        return value
    if value.dim() != 1 or x_t.dim() < 2 or x_t.shape[1] != len(value):
        raise ValueError(
            f"{name} has {value.numel()} values, one per channel, which do not fit"
            f" an input [B, C, ...] of shape {tuple(x_t.shape)}"
        )
    return value.view(1, -1, *[1] * (x_t.dim() - 2))
