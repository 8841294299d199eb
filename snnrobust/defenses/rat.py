"""Regularised adversarial training for spiking networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import FGSM, PGD
from snnrobust.defenses.adversarial import Adversarial, Given
from snnrobust.draws import Stream, derive
from snnrobust.learning_rules import RULES, Lent
from snnrobust.learning_rules.chain import SYNAPTIC

__all__ = ["RAT", "retract"]


def retract(weight: Tensor, beta: float, groups: int = 1) -> Tensor:
    r"""A step towards orthonormal rows, :math:`(1 + \beta) W - \beta \, W W^T W`.

    A singular value :math:`\sigma` becomes :math:`\sigma + \beta \sigma (1 - \sigma^2)`, which is nearer to 1 if
    :math:`0 < \sigma` and :math:`\beta \sigma (\sigma + 1) < 2`.

    Args:
        weight: ``[out, *]``, where a row is all that reaches one output.
        beta: :math:`\beta`.
        groups: Blocks of rows that have inputs of their own, as in a grouped convolution.

    Source: Cisse et al. 2017, "Parseval networks: improving robustness to adversarial examples".
    """
    w = weight.reshape(groups, len(weight) // groups, -1)
    return ((1 + beta) * w - beta * (w @ w.mT @ w)).view(weight.shape)


@dataclass(frozen=True, kw_only=True)
class RAT(Adversarial):
    r"""Adversarial training on a small budget, and a :func:`retract` of the weights after each step of the optimizer.

    Args:
        steps: 1 is FGSM; more is PGD from a random start, with steps of ``eps / steps``.
        beta: Strength of the retraction, 0 to 1; 0 leaves it out.
        rows: Share of the rows of each ``nn.Linear`` that are retracted at a step, drawn anew each time. Of convolutions, all.

    The published method also keeps the coefficients of residual sums convex: the sums here have none. Its own gradient of the
    spikes (1 where a neuron has fired) is not used: the attack goes through the surrogate that trains.

    Source: Ding et al. 2022, "SNN-RAT: robustness-enhanced spiking neural network through regularized adversarial training".
    """

    name: ClassVar[str] = "RAT"

    eps: float | str = "2/255"
    steps: int = 1
    beta: float = 1e-3
    rows: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("steps", self.steps)
        checks.number("beta", self.beta, 0.0, 1.0)
        checks.number("rows", self.rows, 0.0, 1.0, exclusive_low=True)

    @property
    def attack(self) -> FGSM | PGD:
        if self.steps == 1:
            return FGSM(self.threat, self._gradient())
        return PGD(self.threat, self.steps, self.budget / self.steps, gradient=self._gradient())

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, SYNAPTIC) and m.weight.requires_grad}
        with super().lend(model, example) as lent:
            given, before = Given(), lent.before

            def begin(stream: Stream, whole: Tensor) -> None:
                given.set(stream, whole)
                if before is not None:
                    before(stream, whole)

            @torch.no_grad()
            def after() -> None:
                for name, layer in layers.items():
                    w = layer.weight
                    if not isinstance(layer, nn.Linear):
                        w.copy_(retract(w, self.beta, layer.groups))
                        continue
                    drawn = self.drawn(len(w), derive(given.stream.key, "rows", name)).to(w.device)
                    w[drawn] = retract(w[drawn], self.beta)

            lent.before, lent.after = begin, after if self.beta > 0 else None
            yield lent

    def drawn(self, size: int, key: int) -> Tensor:
        """The rows of ``size`` that are retracted, int64, at least one."""
        order = torch.randperm(size, generator=torch.Generator().manual_seed(key))
        return order[: max(1, round(self.rows * size))].sort().values


RULES[RAT.name] = RAT
