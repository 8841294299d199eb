"""The gradient of one realization of a model's randomness."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import Around, Backprop, GradientSource, again, begin, registered
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream

__all__ = ["Frozen"]


@registered
@dataclass(frozen=True)
class Frozen(Around):
    r"""``source`` with the same draws :math:`w` at all steps of a run: :math:`g = \nabla_x L(f(x; w), y)`.

    It is what an attacker does who differentiates a noisy chip and forgets that the noise is another next time; a restart
    freezes another realization. Beside ``EOT`` it shows what averaging is worth.

    Args:
        source: What is called.
        key: Of the realization; None for that of the first call of a run.
    """

    spiking: ClassVar[bool] = False
    freezes: ClassVar[bool] = True

    source: GradientSource = field(default_factory=Backprop)
    key: int | None = None

    def __post_init__(self) -> None:
        checks.function("source", self.source)
        if self.key is not None:
            checks.integer("key", self.key)

    def begin(self) -> Self:
        return replace(self, source=_Run(begin(self.source), [])) if self.key is None else super().begin()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        key = stream.key if self.key is None else self.key
        return self.source(model, x, y, loss, Stream(key, stream.sample_ids))


@dataclass(frozen=True)
class _Run:
    """Within one run of an attack: the key of its first call."""

    freezes: ClassVar[bool] = True

    source: GradientSource
    first: list[int]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        if not self.first:
            self.first.append(stream.key)
        return self.source(model, x, y, loss, Stream(self.first[0], stream.sample_ids))

    def again(self) -> Self:
        return replace(self, source=again(self.source))
