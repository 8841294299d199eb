"""Attacks of other libraries as attacks of this one."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import frozen
from snnrobust.attacks.threat import ThreatModel, common_eps
from snnrobust.draws import Stream, derive, device_of, keyed

__all__ = ["External", "from_foolbox", "from_torchattacks"]

Make = Callable[[nn.Module, float], Callable[[Tensor, Tensor], Tensor]]
Beyond = Literal["error", "clean"]

_ROUNDING = 16
"""Units in the last place of float32 (or coarser), at the largest value of the box, by which a result may miss the budget: other
libraries compute parts in float32 whatever they are given."""


@dataclass(frozen=True)
class External(Attack):
    """An attack of another library: ``make(model, eps)`` gives a function ``(x, y) -> x_adv``.

    Its result is held to the threat. Where it is outside by no more than rounding it is projected; where it is outside by more,
    that is an error. All of torch's, numpy's and Python's global draws inside are keyed by the stream, so the same seed gives the
    same result; they depend on the batch.

    Args:
        threat: What the result is held to; its ``eps`` is handed to ``make``.
        make: A function of the victim, which is in eval mode and whose parameters ask for no gradient, and the budget.
        beyond: ``"clean"`` gives up samples whose result is outside, and leaves them as they were: for attacks that look for
            the smallest change, such as CW and DeepFool, and know no budget.

    Raises:
        ValueError: a result outside the threat, or of another shape; a budget for each sample.
    """

    targetable: ClassVar[bool] = False

    threat: ThreatModel
    make: Make = field(repr=False)
    beyond: Beyond = "error"
    name: str = "External"

    def __post_init__(self) -> None:
        checks.function("make", self.make)
        checks.choice("beyond", self.beyond, get_args(Beyond))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        eps = common_eps(self.threat, self.name)
        key = derive(stream.key, "external", stream.sample_ids.numpy().tobytes())
        with torch.enable_grad(), frozen(model), _everything_keyed(key, model):
            x_adv = self.make(model, eps)(x.clone(), goal.y.clone())
        if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
            given = f"shape {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise ValueError(f"{self.name} must return inputs of shape {tuple(x.shape)}, got {given}")
        return self._held(x, x_adv.detach().to(x.device))

    def _held(self, x: Tensor, x_adv: Tensor) -> Tensor:
        if x_adv.isnan().any():
            raise ValueError(f"{self.name} returned NaN")
        ulp = max(torch.finfo(t).eps for t in (torch.float32, x.dtype, x_adv.dtype)) * max(
            1.0, *map(abs, self.threat.bounds)
        )
        x_adv = x_adv.to(x.dtype)
        legal = self.threat.project(x_adv, x)
        outside = ((legal.double() - x_adv.double()).abs() > _ROUNDING * ulp).flatten(1).any(1)
        if outside.any() and self.beyond == "error":
            reach = float(self.threat.distance(x, x_adv)[outside].max())
            raise ValueError(
                f"{self.name} left the threat {self.threat} on {int(outside.sum())} of {len(x)} samples: its inputs reach "
                f"{reach:.9g} and lie in [{float(x_adv.min()):.9g}, {float(x_adv.max()):.9g}]. Give both the same norm, eps and "
                'bounds, or pass beyond="clean" to give those samples up'
            )
        return torch.where(outside.view(-1, *[1] * (x.dim() - 1)), x, legal)


@contextmanager
def _everything_keyed(key: int, model: nn.Module) -> Iterator[None]:
    """The global generators of torch, numpy and Python, seeded inside and as they were afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
        random.seed(key)
        with keyed(key, model):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@dataclass(frozen=True)
class _TorchAttack:
    kind: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, model: nn.Module, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
        accepted = inspect.signature(self.kind).parameters
        arguments = dict(self.arguments)
        if "eps" in accepted:
            arguments["eps"] = eps
        if "seed" in accepted and "seed" not in arguments:  # else every batch sees the same noise
            arguments["seed"] = int(torch.randint(0, 2**31, ()))
        attack: Callable[[Tensor, Tensor], Tensor] = self.kind(model, **arguments)
        return attack


def from_torchattacks(
    kind: Callable[..., Any], threat: ThreatModel, *, beyond: Beyond = "error", **arguments: Any
) -> External:
    """``kind(model, eps=..., **arguments)`` of torchattacks, with the threat's ``eps``: ``from_torchattacks(torchattacks.PGD,
    Linf("8/255"), steps=10)``.

    A ``seed`` that is not given is drawn from the attack's own stream.
    """
    if not callable(kind) or (not isinstance(kind, type) and hasattr(kind, "get_logits")):
        raise TypeError(
            f"kind must be a class such as torchattacks.PGD, which is called with each model, got {type(kind).__name__}: for an "
            "attack with settings of its own use External(threat, lambda model, eps: ...)"
        )
    if "eps" in arguments:
        raise ValueError("leave eps out: it is the threat's")
    name = getattr(kind, "__name__", type(kind).__name__)
    return External(threat, _TorchAttack(kind, tuple(sorted(arguments.items()))), beyond, f"torchattacks.{name}")


@dataclass(frozen=True)
class _FoolboxAttack:
    attack: Any
    bounds: tuple[float, float]

    def __call__(self, model: nn.Module, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
        from foolbox.models.pytorch import PyTorchModel

        victim = PyTorchModel(model, bounds=self.bounds, device=device_of(model))

        def run(x: Tensor, y: Tensor) -> Tensor:
            clipped: Tensor = self.attack(victim, x, y, epsilons=eps)[1]
            return clipped

        return run


_NORMS = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0, "L0": 0.0}


def from_foolbox(attack: Any, threat: ThreatModel, *, beyond: Beyond = "error") -> External:
    """An attack object of foolbox, called with the threat's ``eps`` and bounds; its clipped inputs are the result.

    Raises:
        ValueError: an attack that measures in another norm than the threat.
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"attack must be an object such as foolbox.attacks.LinfPGD(steps=40), got {attack!r}")
    norm = getattr(getattr(attack, "distance", None), "p", None)
    expected = _NORMS.get(threat.name)
    if norm is not None and expected is not None and norm != expected:
        raise ValueError(
            f"{type(attack).__name__} measures in L{norm:g}, but the threat is {threat}: give both the same norm"
        )
    return External(threat, _FoolboxAttack(attack, threat.bounds), beyond, f"foolbox.{type(attack).__name__}")
