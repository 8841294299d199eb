"""What every attack is."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.draws import Stream, derive, evaluating

__all__ = ["ATTACKS", "Attack", "BluntGradientWarning", "Bound", "ProbabilitiesWarning", "warn_if_blunt"]

ATTACKS: dict[str, type[Attack]] = {}


class BluntGradientWarning(UserWarning):
    """A gradient attack got a gradient of exactly zero: it has learnt nothing about the model."""


class ProbabilitiesWarning(UserWarning):
    """A model returns probabilities where logits are expected, so the softmax of the loss is a second one."""


class Attack:
    """``attack(model, x, y)`` gives inputs of the same shape within the threat. Subclasses register themselves by name.

    The model is attacked in eval mode. Afterwards the model, its modes and statistics, ``x`` and torch's generators are as
    they were. A subclass is a frozen dataclass with a field ``threat`` and a method :meth:`perturb`.
    """

    threat: ThreatModel
    targetable: ClassVar[bool] = True
    """Whether it can be told which class to reach."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.free_name(ATTACKS, cls)
        ATTACKS[cls.__name__] = cls

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        targets: Tensor | None = None,
        seed: int | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Adversarial inputs for ``x``, same shape and dtype.

        Args:
            model: Inputs to logits ``[B, K]``.
            x: Inputs ``[B, *]`` within the threat's bounds.
            y: True labels, int64 ``[B]``.
            targets: Classes to be taken for, int64 ``[B]``; default any but ``y``.
            seed: Key of all draws. Default: derived from ``x`` and ``torch.initial_seed()``, so that other batches see
                other noise and torch's generator is not touched.
            sample_ids: int64 ``[B]``, the identity of each sample; default 0, 1, 2, ... With it the draws of a sample do not
                depend on its batch.

        Raises:
            ValueError, TypeError: inputs outside the bounds, NaN, labels out of range, a target equal to its label, wrong ranks,
                an empty batch, a budget that is meaningless for ``x``, targets for an attack that takes none.
        """
        checks.module("model", model)
        if not isinstance(self.threat, ThreatModel):
            raise TypeError(f'threat must be a threat model such as Linf("8/255"), got {self.threat!r}')
        self.threat.check("x", x)
        checks.labels("y", y, len(x))
        if targets is not None:
            self._check_targets(targets, y)
        ids = torch.arange(len(x)) if sample_ids is None else sample_ids
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != y.shape:
            given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"sample_ids must be an int64 tensor [B], one id for each of {len(x)} samples, got {given}")
        x, before = x.detach(), x.detach().clone()
        key = _key_of(x) if seed is None else derive(checks.count("seed", seed, low=0), "attack")
        with evaluating(model), _first_logits(model, type(self).__name__):
            x_adv = self.perturb(model, x, Goal(y, targets), Stream(key, ids.cpu()))
        if not torch.equal(x, before):
            raise RuntimeError(
                f"x was changed in place under {type(self).__name__}: perturb() and the model must work on a copy, x.clone()"
            )
        self.threat.validate(x, x_adv)
        return x_adv

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        """The attack itself, on checked input and a model in eval mode. ``x`` must not be changed."""
        raise NotImplementedError

    def _check_targets(self, targets: Tensor, y: Tensor) -> None:
        if not self.targetable:
            raise TypeError(f"{type(self).__name__} takes no targets: it has no class to go to")
        checks.labels("targets", targets, len(y))
        same = targets == y
        if same.any():
            raise ValueError(
                f"targets must differ from the labels, but {int(same.sum())} of {len(y)} are the label itself, the first of "
                f"sample {int(same.nonzero()[0])}: choose another class"
            )

    def bind(self, model: nn.Module, *, seed: int | None = None) -> Bound:
        """The attack on ``model`` as other libraries call one: ``attack.bind(model)(x, y)``."""
        return Bound(self, checks.module("model", model), seed)

    def at(self, eps: Eps) -> Self:
        """The same attack with another budget, or with one for each sample of the batch that it will get, ``[B]``."""
        return replace(self, threat=self.threat.at(eps))  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Bound:
    """An attack and its victim, ``(x, y) -> x_adv``."""

    attack: Attack
    model: nn.Module
    seed: int | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attack(self.model, x, y, seed=self.seed)


@contextmanager
def _first_logits(model: nn.Module, attack: str) -> Iterator[None]:
    """Look at what ``model`` returns at its first call inside, and only there."""

    def look(_: nn.Module, inputs: object, output: object) -> None:
        handle.remove()
        if isinstance(output, Tensor) and _are_probabilities(output.detach()):
            warnings.warn(
                f"{attack}: the model returns probabilities (each row lies in [0, 1] and sums to 1), so cross-entropy takes a "
                "second softmax, which blunts its gradient: return logits, such as probabilities.log() with a floor",
                ProbabilitiesWarning,
                stacklevel=2,
            )

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _are_probabilities(logits: Tensor) -> bool:
    """Rows in [0, 1] with sum 1, both within rounding, that are no rates of spikes: no multiples of 1/T at any T up to 256."""
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point() or logits.numel() == 0:
        return False
    rounding, z = 4 * torch.finfo(logits.dtype).eps, logits.double()
    if not ((z.sum(1) - 1).abs() <= logits.shape[1] * rounding).all() or (z < 0).any():
        return False
    for steps in range(1, 1 + min(256, int(1 / (8 * rounding)))):
        if ((z * steps - (z * steps).round()).abs() <= steps * rounding).all():
            return False
    return True


def _key_of(x: Tensor) -> int:
    content = hashlib.blake2b(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), digest_size=8)
    return derive(torch.initial_seed(), "attack", content.hexdigest())


def warn_if_blunt(attack: object, gradient: Tensor) -> None:
    """Say so when a whole batch has a gradient of exactly zero."""
    if not gradient.any():
        warnings.warn(
            f"{type(attack).__name__}: the gradient is exactly zero for all {len(gradient)} samples, so the attack is no "
            "stronger than its starting point. Does an encoder or quantizer pass no gradient? See evaluation.diagnose",
            BluntGradientWarning,
            stacklevel=2,
        )
