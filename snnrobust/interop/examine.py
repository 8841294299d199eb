"""What is found out about a wrapped model at its first call, on a few samples and without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snnrobust.draws import draws, evaluating
from snnrobust.interop.state import Kept, copied, fresh, keep, reachable, renew, stateful
from snnrobust.neurons import surrogate

if TYPE_CHECKING:
    from snnrobust.interop.wrap import Wrapped

__all__ = ["HiddenStateError", "examine"]

_SAMPLES = 8
_ABSURD = 1e3  # a potential at which every neuron fires


class HiddenStateError(ValueError):
    """A model remembers something from one call to the next that no known reset reaches."""


def examine(wrapped: Wrapped, x: Tensor) -> int | None:
    """The axis of time in what the model returns, if it returns a sequence.

    Raises:
        HiddenStateError: the same input has other outputs after another one.
        ValueError: the model and ``time_axis`` contradict each other, or its parameters have no shape yet.
    """
    if any(is_lazy(p) for p in wrapped.model.parameters()):
        raise ValueError(
            "the model has lazy parameters, whose shapes the first call decides: call it once before the wrapped one"
        )
    few = _SAMPLES - (wrapped.time_steps == _SAMPLES)  # so that B and T are told apart
    probe = x.detach()[torch.arange(few, device=x.device) % len(x)]
    with torch.no_grad(), evaluating(wrapped), _surrogates_at_rest(wrapped.model):
        with fresh(wrapped.model, wrapped.state_reset), _counted(wrapped.model) as calls:
            first = _run(wrapped, probe)
        _check_calls(wrapped, calls)
        axis = _time_axis(wrapped, first, probe)
        _check_state(wrapped, probe)
    return axis


@contextmanager
def _surrogates_at_rest(model: nn.Module) -> Iterator[None]:
    """Those that an attack has lent, and that learn from what they see, are not to see these calls."""
    at_rest = surrogate.StraightThrough()
    with surrogate.override(model, at_rest) if surrogate.found(model) else nullcontext():
        yield


def _run(wrapped: Wrapped, x: Tensor) -> Any:
    with draws(wrapped, 0):
        return wrapped.outputs(x)


# ---------------------------------------------------------------- time


@contextmanager
def _counted(model: nn.Module) -> Iterator[Counter[nn.Module]]:
    """How often each module with state is called."""
    calls: Counter[nn.Module] = Counter()
    handles = [
        m.register_forward_hook(lambda module, *_: calls.update([module]))
        for m in model.modules()
        if stateful(m) and m is not model and not any(stateful(inner) for inner in list(m.modules())[1:])
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mode(module: nn.Module) -> object:
    """``"s"`` for a neuron that takes one time step, ``"m"`` for one that takes whole sequences, None where nobody says."""
    if "_memories" in vars(module):
        return getattr(module, "step_mode", None)  # SpikingJelly
    return "s" if callable(getattr(module, "reset_mem", None)) else None  # snnTorch


def _check_calls(wrapped: Wrapped, calls: Counter[nn.Module]) -> None:
    model, steps = wrapped.model, wrapped.time_steps
    single = [m for m in calls if _mode(m) == "s"]
    whole = [m for m in calls if _mode(m) == "m"]
    if wrapped.time_axis == "step":
        if not any(map(stateful, model.modules())) and wrapped.state_reset is None:
            raise ValueError(
                f'{type(model).__name__} keeps no state that is known, so time_axis="step" would make {steps} independent steps '
                "of it: pass reset=... if that is meant, or a module that takes the whole sequence"
            )
        if whole:
            raise ValueError(
                f"{type(whole[0]).__name__} takes whole sequences (step_mode 'm') and would take the batch for time: "
                "use time_axis=0, or functional.set_step_mode(model, 's')"
            )
        if single and steps is not None and min(calls[m] for m in single) > steps:
            raise ValueError(
                f"the model runs each neuron {min(calls[m] for m in single)} times in {steps} steps, so it loops over time "
                "itself: use time_axis=None (or, where one neuron stands at several places, give each its own)"
            )
        return
    if steps == 1 or not single or max(calls[m] for m in single) > 1:
        return
    name = type(single[0]).__name__
    if wrapped.time_axis is None:
        if not whole:
            raise ValueError(
                f'{name} was called once, so the model takes one time step: use time_axis="step" with time_steps=T, or '
                "time_steps=1 if one step is all"
            )
    else:
        raise ValueError(
            f"{name} takes one time step, but was called once with the whole sequence, whose {steps} steps it would take for "
            "samples or features: use time_axis=\"step\" (in SpikingJelly or functional.set_step_mode(model, 'm'))"
        )


def _time_axis(wrapped: Wrapped, value: Any, probe: Tensor) -> int | None:
    """Where time is in a returned sequence: told from the batch, whose size is known."""
    if callable(wrapped.decode) or wrapped.decode is None or not isinstance(value, Tensor) or value.dim() != 3:
        return None  # decoding says what is wrong, if anything
    if wrapped.time_axis == "step":
        return 0
    batch = len(probe)
    if value.shape[0] == value.shape[1] == batch:  # as many steps as samples
        batch -= 1
        with fresh(wrapped.model, wrapped.state_reset):
            value = _run(wrapped, probe[:batch])
    if batch not in value.shape[:2]:
        raise ValueError(
            f"the model must return [T, B, K] or [B, T, K] to be decoded by {wrapped.decode!r}, but for B = {batch} it returns "
            f"{list(value.shape)}: pass a function as decode"
        )
    axis = 1 if value.shape[0] == batch else 0
    if wrapped.time_axis is not None and value.shape[axis] != wrapped.time_steps:
        raise ValueError(
            f"the model was shown {wrapped.time_steps} steps and returns {list(value.shape)} for B = {batch}: check time_axis"
        )
    return axis


# --------------------------------------------------------------- state

_Left = dict[tuple[int, str], Any]


def _check_state(wrapped: Wrapped, probe: Tensor) -> None:
    """Run on other inputs, spoil what that left behind, reset: the outputs must be those of a first call."""
    model, reset = wrapped.model, wrapped.state_reset
    other = 0.5 * probe.flip(0)
    with fresh(model, reset):
        before = _kept(model)
        expected = _run(wrapped, probe)
        mine = _left(before)
    with fresh(model, reset):
        before = _kept(model)
        _run(wrapped, other)
        theirs = _left(before)
        remembered = {where: value for where, value in theirs.items() if not _alike(value, mine.get(where))}
        paths = list(reachable(model))
        names = sorted(f"{paths[i]}.{name}".lstrip(".") for i, name in remembered or theirs)
        _spoil(before, remembered)
        try:
            renew(model, reset)
            again = _run(wrapped, probe)
        except Exception as error:
            raise HiddenStateError(
                f"a second call fails with {type(error).__name__}: {error}. {_remedy(names)}"
            ) from error
    if not _alike(again, expected):
        raise HiddenStateError(f"the same input has other outputs at a second call. {_remedy(names)}")


def _remedy(names: list[str]) -> str:
    if not names:
        return "Nothing on its modules has changed: does it draw from another generator than torch's, or keep state outside?"
    return f"What is left over: {', '.join(names)}. Pass wrap(reset=...), a function of the model that resets it"


def _kept(model: nn.Module) -> list[tuple[Kept, dict[str, int]]]:
    kept = [keep(m) for m in reachable(model).values()]
    return [(k, {name: v._version for name, v in _items(k) if _versioned(v)}) for k in kept]


def _items(kept: Kept) -> list[tuple[str, Any]]:
    return [*kept.attributes.items(), *kept.buffers.items()]


def _versioned(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()


def _left(before: list[tuple[Kept, dict[str, int]]]) -> _Left:
    """What a call has changed on each module, by the number of the module and the name."""
    left: _Left = {}
    for i, (old, versions) in enumerate(before):
        contents = {id(container): content for container, content in old.contents}
        known = dict(_items(old))
        for name, value in _items(keep(old.module)):
            if id(value) in contents and value is known.get(name):
                changed = not _same(value, contents[id(value)])
            else:
                changed = value is not known.get(name, _ABSENT) or (
                    _versioned(value) and versions.get(name) != value._version
                )
            if changed:
                left[i, name] = copied(value)
    return left


_ABSENT = object()


def _same(a: Any, b: Any) -> bool:
    """The same objects, in containers of one kind."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[k] is b[k] for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(lambda u, v: u is v, a, b))
    return bool(a == b)


def _spoil(before: list[tuple[Kept, dict[str, int]]], remembered: _Left) -> None:
    """Absurd values in place of what depends on the input, so that whoever reads them shows it."""
    for (i, name), value in remembered.items():
        module = before[i][0].module
        if isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter):
            home = module._buffers if name in module._buffers else vars(module)
            home[name] = torch.full_like(value, _ABSURD)


def _alike(a: Any, b: Any) -> bool:
    """Equal, tensors up to rounding."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.allclose(a, b, 1e-4, 1e-6, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    try:
        return a is b or bool(a == b)
    except (RuntimeError, TypeError, ValueError):
        return False
