"""Training through imperfect hardware."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from snnrobust.draws import derive
from snnrobust.hardware import Backend, Chain, GaussianNoise, on_chips
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

    Source: Qin and Vucinic 2018 (arXiv:1811.10649), for the noise of :class:`~snnrobust.hardware.GaussianNoise`.
    """

    name: ClassVar[str] = "NoiseTraining"

    backend: Backend | None = None
    backends: tuple[Backend, ...] = ()

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

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        assert self.backend is not None
        demand_learnable(model, self.backend)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        assert self.backend is not None
        with super().lend(model, example) as lent, on_chips(model, self.backend) as make:
            lent.before = lambda stream, _: make(derive(stream.key, "chip"))
            yield lent


RULES[NoiseTraining.name] = NoiseTraining
