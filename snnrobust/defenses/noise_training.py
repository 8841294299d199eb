"""Training through imperfect hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.defenses.noise_strength import NoiseStrength
from snnrobust.draws import Stream, derive
from snnrobust.hardware import Backend, Chain, GaussianNoise, on_chips
from snnrobust.hardware.backend import effects
from snnrobust.hardware.training import demand_learnable
from snnrobust.learning_rules import BPTT, RULES, Lent

__all__ = ["NoiseTraining"]


@dataclass(frozen=True, kw_only=True)
class NoiseTraining(BPTT):
    r"""Backpropagation through chips: every forward pass that is learnt runs on a backend, every batch on a chip of its own.

    .. math:: \min_\theta \mathbb{E}_{\text{chip, noise}} \, L(f_\theta(x; \text{chip, noise}), y)

    What is drawn once a chip is drawn for each batch, the rest as the backend declares it. Gradients pass ``program``
    straight through, and ``drive`` and ``read`` as these declare. Validation accuracy is that of the model without a chip.

    Args:
        backend: What the chips do; default ``GaussianNoise(multiplicative=0.1)``.
        backends: Several, in order, in place of ``Chain(*backends)``: as experiment files name them.
        strength: How strong the Gaussian noise is at each batch: variance-aware training. Default: as the backend says.
            A mapping of its arguments is one too: as experiment files name it.

    Source: Qin and Vucinic 2018 (arXiv:1811.10649), for the noise of :class:`~snnrobust.hardware.GaussianNoise`.
    """

    name: ClassVar[str] = "NoiseTraining"

    backend: Backend | None = None
    backends: tuple[Backend, ...] = ()
    strength: NoiseStrength | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend is not None and self.backends:
            raise ValueError("give backend or backends, not both")
        made: object = self.backend
        if self.backends:
            made = self.backends[0] if len(self.backends) == 1 else Chain(*self.backends)
        if made is None:
            made = GaussianNoise(multiplicative=0.1)
        if not isinstance(made, Backend):
            raise TypeError(
                f"backend must be a hardware Backend such as GaussianNoise(multiplicative=0.2), got {made!r:.80}"
            )
        object.__setattr__(self, "backend", made)
        object.__setattr__(self, "backends", ())
        if self.strength is None:
            return
        if isinstance(self.strength, Mapping):
            for name in self.strength:
                checks.choice("strength argument", name, [f.name for f in fields(NoiseStrength)])
            object.__setattr__(self, "strength", NoiseStrength(**self.strength))
        if not isinstance(self.strength, NoiseStrength):
            raise TypeError(
                f"strength must be a NoiseStrength such as NoiseStrength(spread=0.3), got {self.strength!r:.80}"
            )
        if not any(isinstance(part, GaussianNoise) for part in effects(made)):
            raise ValueError(
                "strength changes GaussianNoise, and the backend has none: leave strength out, or give "
                "backends=(..., GaussianNoise(additive=0.1))"
            )

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        assert self.backend is not None
        demand_learnable(model, self.backend)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        assert self.backend is not None
        with super().lend(model, example) as lent, on_chips(model, self.backend) as make:
            vary = _Varied(model, self.strength) if isinstance(self.strength, NoiseStrength) else None

            def before(stream: Stream, _: Tensor) -> None:
                make(derive(stream.key, "chip"))
                if vary is not None:
                    vary(stream.key)

            lent.before = before
            if vary is not None:
                lent.learnt, lent.after = vary, vary.learnt_one
            yield lent


class _Varied(nn.Module):
    """Gives the Gaussian noise of a model that learns on chips its strength of the batch. How many there were is resumed."""

    batches: Tensor

    def __init__(self, model: nn.Module, strength: NoiseStrength) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.strength = strength
        # in a tuple they are no part of the module tree, which is saved
        self._noises = tuple((m, m.sigma, m.additive) for m in model.modules() if isinstance(m, GaussianNoise))

    def forward(self, key: int) -> None:
        factor = self.strength.factor(key, int(self.batches))
        for noise, multiplicative, additive in self._noises:
            noise.snr_db, noise.multiplicative, noise.additive = None, factor * multiplicative, factor * additive

    def learnt_one(self) -> None:
        self.batches += 1


RULES[NoiseTraining.name] = NoiseTraining
