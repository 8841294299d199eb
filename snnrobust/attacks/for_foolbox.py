"""Attacks of this library where foolbox expects one of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack

__all__ = ["ForFoolbox", "foolbox_victim", "to_foolbox"]

Inputs = Tensor | list[Tensor]


@dataclass(frozen=True)
class ForFoolbox:
    """What :func:`to_foolbox` returns: ``(model, inputs, criterion, *, epsilons) -> raw, clipped, success``."""

    attack: Attack
    seed: int | None = None

    def __call__(
        self, model: Any, inputs: Tensor, criterion: Any, *, epsilons: float | Sequence[float]
    ) -> tuple[Inputs, Inputs, Tensor]:
        bounds = tuple(map(float, model.bounds))
        if bounds != self.attack.threat.bounds:
            raise ValueError(
                f"the foolbox model has bounds {bounds}, the threat {self.attack.threat.bounds}: make them alike"
            )
        labels = criterion if isinstance(criterion, Tensor) else getattr(criterion, "labels", None)
        labels = getattr(labels, "raw", labels)
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"criterion must be labels [B] or foolbox.criteria.Misclassification, got {criterion!r:.100}"
            )
        several = isinstance(epsilons, Sequence)
        victim = foolbox_victim(model)
        found = []
        for eps in epsilons if isinstance(epsilons, Sequence) else [epsilons]:
            found.append(self.attack.at(float(eps))(victim, inputs, labels, seed=self.seed))
        with torch.no_grad():
            success = torch.stack([model(x_adv).argmax(-1) != labels for x_adv in found])
        if not several:
            return found[0], found[0].clone(), success[0]
        return found, [x_adv.clone() for x_adv in found], success


def to_foolbox(attack: Attack, *, seed: int | None = None) -> ForFoolbox:
    """``attack`` as foolbox calls one; it is always within the budget, so the raw and the clipped inputs are the same."""
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an attack such as PGD(Linf('8/255')), got {attack!r}")
    return ForFoolbox(attack, seed)


class _Victim(nn.Module):
    def __init__(self, model: Callable[[Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.model, self.module = model, module  # the module, so that modes, draws and surrogates reach it
        self.training = module.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def foolbox_victim(model: Any) -> nn.Module:
    """A ``foolbox.PyTorchModel``, its preprocessing included, as attacks, ``evaluate`` and ``diagnose`` take a model.

    Raises:
        TypeError: no torch module was found in it.
    """
    checks.function("model", model)
    inner = model
    while not isinstance(inner, nn.Module) and getattr(inner, "_model", None) is not None:
        inner = inner._model
    if inspect.isfunction(inner):  # PyTorchModel keeps its module in a closure
        inner = inspect.getclosurevars(inner).nonlocals.get("model")
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"model must be a foolbox.PyTorchModel, got {type(model).__name__} without a torch.nn.Module in it"
        )
    return _Victim(model, inner)
