"""The state of modules that are not ours: fresh inside a context, and afterwards as it was."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["Kept", "Reset", "copied", "fresh", "keep", "reachable", "renew", "resets", "stateful"]

Reset = Callable[[nn.Module], object]

TORCH_OWN = frozenset(vars(nn.Module()))
"""What torch itself keeps on every module."""

_RESETS = ("reset_mem", "reset_states", "reset_state", "reset")
"""snnTorch; sinabs; SpikingJelly and others. ``reset_hidden`` of snnTorch reaches other networks' neurons and is never called."""

_CONTAINERS = (list, dict, set)


def resets(module: nn.Module) -> Callable[[], object] | None:
    """The module's own way back to its first state, a method that needs no arguments."""
    own, kind = vars(module), type(module)
    for name in _RESETS:
        method = own[name] if name in own else getattr(kind, name, None)
        bound = hasattr(method, "__func__") or name not in own  # else a function that was put on the module as it is
        if callable(method) and _needs_nothing(getattr(method, "__func__", method), bound):
            return getattr(module, name)  # type: ignore[no-any-return]
    return None


@lru_cache(1024)  # asked at every call
def _needs_nothing(function: Callable[..., object], bound: bool) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return True
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in free for p in parameters[bound:])


def stateful(module: nn.Module) -> bool:
    """Whether ``module`` is known to keep state between calls."""
    return resets(module) is not None


def _may_have_state(module: nn.Module, reset: Reset | None) -> bool:
    """Running statistics are none: training through a wrapped model moves them."""
    return stateful(module) or (reset is not None and not isinstance(module, _NormBase))


class Kept(NamedTuple):
    """What one module held at some time: references, and the contents of its lists and dictionaries."""

    module: nn.Module
    attributes: dict[str, Any]
    buffers: dict[str, Tensor | None]
    contents: list[tuple[Any, Any]]

    def put_back(self) -> None:
        own = vars(self.module)
        for name in [name for name in own if name not in TORCH_OWN and name not in self.attributes]:
            del own[name]
        own.update(self.attributes)
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        for container, content in self.contents:
            _refill(container, content)


def keep(module: nn.Module) -> Kept:
    attributes = {name: value for name, value in vars(module).items() if name not in TORCH_OWN}
    contents = [(value, copy.copy(value)) for value in attributes.values() if type(value) in _CONTAINERS]
    return Kept(module, attributes, dict(module._buffers), contents)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def reachable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose state Python reaches, by path; not those of TorchScript."""
    return {name: m for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}


@contextmanager
def fresh(model: nn.Module, reset: Reset | None = None) -> Iterator[None]:
    """Inside, the state of every module of ``model`` is its first one; afterwards, also after an error, it is what it was.

    What modules in training mode that keep no state between calls change on themselves stays changed, as running statistics do.

    Raises:
        ValueError: a reset changed a parameter.
    """
    kept = [keep(m) for m in reachable(model).values() if not m.training or _may_have_state(m, reset)]
    try:
        renew(model, reset)
        yield
    finally:
        for one in kept:
            one.put_back()


def renew(model: nn.Module, reset: Reset | None = None) -> None:
    """Every module of ``model`` in its first state. No tensor is changed in place that was there before."""
    modules = list(reachable(model).values())
    for m in modules:
        own = vars(m)
        if _may_have_state(m, reset):
            own.update({name: copied(value) for name, value in own.items() if name not in TORCH_OWN})
            for name, buffer in m._buffers.items():
                m._buffers[name] = copied(buffer)
    before = [(p, _version(p)) for p in model.parameters()]
    for m in modules:
        own_reset = resets(m)
        if own_reset is not None:
            own_reset()
    if reset is not None:
        reset(model)
    after = [(p, _version(p)) for p in model.parameters()]
    if len(before) != len(after) or any(a is not b or u != v for (a, u), (b, v) in zip(before, after, strict=True)):
        names = sorted({type(m).__name__ for m in modules if resets(m) is not None})
        raise ValueError(
            f"a reset changed the model's parameters (asked: {', '.join(names) or 'reset'}), so it does more than reset state: "
            "rename that method, or give wrap(reset=...) one that resets state only"
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def copied(value: Any) -> Any:
    """``value`` with tensors of its own, and without their graphs."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if type(value) is dict:
        return {name: copied(v) for name, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value
