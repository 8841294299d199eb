"""PGD along gradients that are estimated from losses, with a budget of queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import GradientSource
from snnrobust.attacks.gradient_free import SPSA, EvolutionStrategies
from snnrobust.attacks.losses import Loss, cross_entropy, margin
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream, is_stochastic

__all__ = ["NES", "SPSAAttack"]


@dataclass(frozen=True)
class NES(Attack):
    r"""PGD from ``x`` along the gradient of ``EvolutionStrategies``: steps of ``samples`` losses, as many as ``queries`` allow.

    Args:
        threat: Any.
        queries: Forward passes per sample at most; every step takes ``samples + 1``, the last for the logits.
        samples: Losses of one estimate, even.
        sigma: Width of the Gaussian. The published one is for networks that are smooth; a spiking network is flat at that scale,
            and a width near the budget sees most.
        step_size: As in :class:`PGD`.
        loss: What is raised.
        early_stop: As in :class:`PGD`; None: only for models without randomness (which is tried with two passes of at most eight
            samples, beyond ``queries``, as are the ``selection_draws``).
        selection_draws: As in :class:`PGD`.

    Source: Ilyas, Engstrom, Athalye and Lin 2018, "Black-box adversarial attacks with limited queries and information", without
    its momentum and its adaptive step.
    """

    threat: ThreatModel
    queries: int = 5000
    samples: int = 50
    sigma: float | str = 0.001
    step_size: float | None = None
    loss: Loss = cross_entropy
    early_stop: bool | None = None
    selection_draws: int = 32

    def __post_init__(self) -> None:
        _check(self, EvolutionStrategies(self.samples, self.sigma))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        source = EvolutionStrategies(self.samples, self.sigma, bounds=self.threat.bounds)
        return _pgd(self, source, not is_stochastic(model, x[:8])).perturb(model, x, goal, stream)


@dataclass(frozen=True)
class SPSAAttack(Attack):
    r"""PGD from ``x`` along the gradient of the source ``SPSA``, of the margin: :class:`NES` with random signs.

    Args:
        threat, queries, samples, step_size, early_stop, selection_draws: As in :class:`NES`.
        delta: Length of a trial; see ``sigma`` there.
        loss: What is raised.

    Source: Uesato, O'Donoghue, van den Oord and Kohli 2018, "Adversarial risk and the dangers of evaluating against weak
    attacks", with steps of the threat in place of Adam's.
    """

    threat: ThreatModel
    queries: int = 5000
    samples: int = 256
    delta: float | str = 0.01
    step_size: float | None = None
    loss: Loss = margin
    early_stop: bool | None = None
    selection_draws: int = 32

    def __post_init__(self) -> None:
        _check(self, SPSA(self.samples, self.delta))

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        source = SPSA(self.samples, self.delta, bounds=self.threat.bounds)
        return _pgd(self, source, not is_stochastic(model, x[:8])).perturb(model, x, goal, stream)


def _check(attack: NES | SPSAAttack, source: GradientSource) -> None:
    if checks.count("queries", attack.queries) <= attack.samples:
        raise ValueError(
            f"queries must be more than samples = {attack.samples}, which a step takes, got {attack.queries}"
        )
    if attack.early_stop is not None:
        checks.boolean("early_stop", attack.early_stop)
    _pgd(attack, source, False)


def _pgd(attack: NES | SPSAAttack, source: GradientSource, default: bool) -> PGD:
    """Its ``early_stop`` is ``default`` where the attack leaves it open."""
    stop = default if attack.early_stop is None else attack.early_stop
    return PGD(
        attack.threat, attack.queries // (attack.samples + 1), attack.step_size, random_start=False, gradient=source,
        loss=attack.loss, early_stop=stop, selection_draws=attack.selection_draws,
    )  # fmt: skip
