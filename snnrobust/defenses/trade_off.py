"""A weighted sum of the natural and the adversarial loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.defenses.adversarial import Backward, Given
from snnrobust.defenses.pgd_training import PGDTraining
from snnrobust.learning_rules import RULES, Lent

__all__ = ["TradeOff"]


@dataclass(frozen=True, kw_only=True)
class TradeOff(PGDTraining):
    r"""Learn each sample as it is and as :class:`~snnrobust.attacks.PGD` changes it.

    .. math:: (1 - \alpha) \, L(f(x), y) + \alpha \, L(f(x'), y)

    Both forward passes have the same draws; ``accuracy`` in the history is that at :math:`x`, ``adversarial_accuracy`` that at
    :math:`x'`. ``PGDTraining(share=alpha)`` has the same expectation, attacks fewer samples, and is cheaper; its gradient is
    noisier. :class:`~snnrobust.defenses.TRADES` compares the two answers rather than each with the label.

    Args:
        weight: :math:`\alpha` in (0, 1]; 1 is :class:`PGDTraining`.
        share: Must be 1 here.

    The trade-off loss of Li, Wang and Xin 2020 (arXiv:2008.13305): an author's public code has the natural loss and 8 times the
    adversarial one, which is ``weight=8/9`` up to a factor. The form in the paper is not verified.
    """

    name: ClassVar[str] = "TradeOff"

    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("weight", self.weight, 0.0, 1.0, exclusive_low=True, hint="without it this is BPTT")
        if self.share != 1.0:
            raise ValueError(f"share must be 1, got {self.share}: the weight says how much the attacked samples count")

    def _robust(self, model: nn.Module, lent: Lent, given: Given) -> Backward:
        attack, learn, right = self.attack, lent.backward, [0.0, 0.0]
        lent.tally["adversarial_accuracy"] = right

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            stream = given.stream
            x_adv = attack(model, x, y, seed=stream.key, sample_ids=stream.sample_ids)
            natural, logits = learn(x, y, scale * (1 - self.weight))
            adversarial, far = learn(x_adv, y, scale * self.weight)
            if scale > 0:  # else these samples are only there to go along
                right[0] += float((far.argmax(1) == y).sum())
                right[1] += len(y)
            return (1 - self.weight) * natural + self.weight * adversarial, logits

        return backward


RULES[TradeOff.name] = TradeOff
