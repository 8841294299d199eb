"""What every attack is."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.draws import Stream, derive, evaluating

__all__ = ["ATTACKS", "Attack", "BluntGradientWarning", "warn_if_blunt"]

ATTACKS: dict[str, type[Attack]] = {}


class BluntGradientWarning(UserWarning):
    """A gradient attack got a gradient of exactly zero: it has learnt nothing about the model."""


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
        with evaluating(model):
            x_adv = self.perturb(model, x, Goal(y, targets), Stream(key, ids.cpu()))
        if not torch.equal(x, before):
            raise RuntimeError(f"{type(self).__name__} changed its input x in place: perturb() must work on a copy")
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

    def at(self, eps: Eps) -> Self:
        """The same attack with another budget, or with one for each sample of the batch that it will get, ``[B]``."""
        return replace(self, threat=self.threat.at(eps))  # type: ignore[type-var]


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
